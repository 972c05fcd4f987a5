import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import HERE

from clipcovid.config import ClipConfig, UserError, override
from clipcovid.data.manifest import Manifest, read_manifest, write_manifest
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.inference.zeroshot import ZeroshotConfig, softmax, zeroshot
from clipcovid.prompts import PHRASES, PromptsConfig, build_prompts

CLASSES = ("COVID-19", "Non-COVID", "Normal")
TINY = ClipConfig(model="tiny", pretrained="none")


def quiet(text):
    pass


@pytest.fixture
def config(phantoms, tmp_path):
    return ZeroshotConfig(data=phantoms, clip=TINY, out=tmp_path / "outputs", compute=HERE)


def test_predictions_are_of_exactly_the_splits_labelled_images(config):
    scored = zeroshot(config, quiet)
    table, about = read_predictions(scored.run.folder / "predictions" / "test.parquet")
    manifest = read_manifest(config.data)
    assert set(table["image_id"]) == set(manifest.rows("test")["image_id"])
    assert table["image_id"].is_unique
    np.testing.assert_allclose(table[[f"prob_{name}" for name in CLASSES]].sum(axis=1), 1)
    assert about["split_hash"] == manifest.split_hash
    assert about["classes"] == list(CLASSES)
    assert about["method"] == "zeroshot"
    assert scored.scores.n == len(table)


def test_the_run_folder_is_whole_and_marked_last(config):
    run = zeroshot(config, quiet).run
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"config.json", "metrics.json", "prompts.json", "predictions", "figures", "_SUCCESS"}
    marker = (run.folder / "_SUCCESS").stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns <= marker for path in run.folder.rglob("*"))
    assert json.loads((run.folder / "config.json").read_text())["identity"] == run.identity


def test_scores_come_beside_baselines_intervals_and_alarms(config):
    body = zeroshot(config, quiet).scores
    low, high = body.intervals["intervals"]["accuracy"]
    assert low <= body.metrics["accuracy"] <= high
    assert body.intervals["unit"] == "patient"
    assert body.baselines["majority"]["from"] == "train"
    assert "mean_true_similarity" in body.metrics
    assert isinstance(body.alarms, list)


def test_splits_of_one_run_stand_side_by_side(config):
    run = zeroshot(config, quiet).run
    assert zeroshot(override(config, {"split": "val"}), quiet).run.folder == run.folder
    assert set(run.metrics()) == {"test", "val"}


def test_the_same_twice_is_the_same_run_and_the_same_scores(config):
    first, second = zeroshot(config, quiet), zeroshot(config, quiet)
    assert first == second


@pytest.mark.parametrize("change", [{"prompts.prompts": "ensemble"}, {"seed": 1}, {"prompts.template": "an X-ray: {}"}])
def test_other_words_or_weights_are_another_run(config, change):
    first = zeroshot(config, quiet)
    other = zeroshot(override(config, change), quiet)
    assert other.run.folder != first.run.folder


def test_a_name_that_holds_another_run_is_refused(config):
    named = override(config, {"name": "mine"})
    zeroshot(named, quiet)
    with pytest.raises(UserError, match=r"mine holds another run \(prompts differ\): choose another --name"):
        zeroshot(override(named, {"prompts.prompts": "ensemble"}), quiet)


def test_a_prompt_file_with_the_same_words_is_the_same_run(config, tmp_path):
    words = build_prompts(PromptsConfig(), CLASSES)
    (tmp_path / "words.json").write_text(json.dumps(words))
    from_file = override(config, {"prompts.prompts": str(tmp_path / "words.json")})
    assert zeroshot(from_file, quiet).run.folder == zeroshot(config, quiet).run.folder


def test_the_prompts_of_a_run_can_be_used_again(config):
    run = zeroshot(override(config, {"prompts.prompts": "ensemble"}), quiet).run
    again = zeroshot(override(config, {"prompts.prompts": str(run.folder / "prompts.json")}), quiet)
    assert again.run.folder == run.folder


def test_swapping_two_classes_words_swaps_their_probabilities(config, tmp_path):
    words = build_prompts(PromptsConfig(), CLASSES)
    swapped = words | {"COVID-19": words["Normal"], "Normal": words["COVID-19"]}
    (tmp_path / "swapped.yaml").write_text(yaml.safe_dump(swapped))
    tables = [
        read_predictions(zeroshot(each, quiet).run.folder / "predictions" / "test.parquet")[0]
        for each in (config, override(config, {"prompts.prompts": str(tmp_path / "swapped.yaml")}))
    ]
    pd.testing.assert_series_equal(tables[0]["prob_COVID-19"], tables[1]["prob_Normal"], check_names=False)


def test_images_without_a_label_are_left_out_and_counted(config, tmp_path):
    manifest = read_manifest(config.data)
    table = manifest.table.copy()
    unlabelled = table.index[table["split"] == "test"][:3]
    table.loc[unlabelled, "label"] = ""
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(config.data, copy)
    write_manifest(copy, Manifest(table=table, classes=manifest.classes, dataset="x", info=manifest.info))
    scored = zeroshot(override(config, {"data": copy}), quiet)
    assert scored.scores.n == (table["split"] == "test").sum() - 3
    assert scored.scores.notes[0] == "3 images without a label are left out."


def test_texts_beyond_the_context_are_counted(config, tmp_path):
    (tmp_path / "long.json").write_text(json.dumps({name: ["word " * 200] for name in CLASSES[:2]} | {"Normal": ["x"]}))
    said = []
    zeroshot(override(config, {"prompts.prompts": str(tmp_path / "long.json")}), said.append)
    assert any("2 prompts are longer" in text for text in said)


def test_softmax_is_stable():
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0, -1000.0]])), [[0.5, 0.5, 0.0]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_similarities_that_are_not_finite_are_no_probabilities(value):
    with pytest.raises(UserError, match=r"not finite: try --clip\.precision fp32"):
        softmax(np.array([[1.0, value]]))


# Prompt files


def test_templates_and_phrases_make_every_combination(tmp_path):
    content = {"templates": ["a {}", "the {}"], "classes": {"A": ["x", "y"], "B": "z"}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    prompts = build_prompts(PromptsConfig(prompts=str(tmp_path / "p.yaml")), ("A", "B"))
    assert prompts == {"A": ["a x", "a y", "the x", "the y"], "B": ["a z", "the z"]}


def test_classes_of_ones_own_stand_for_themselves():
    assert build_prompts(PromptsConfig(template="a photo of a {}"), ("dog", "cat")) == {
        "dog": ["a photo of a dog"],
        "cat": ["a photo of a cat"],
    }
    assert build_prompts(PromptsConfig(), CLASSES)["Normal"] == [f"a chest X-ray of {PHRASES['Normal'][0]}"]


def test_classes_of_a_prompt_file_are_called_as_they_stand_there(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "\ufeffNo: clear lungs\nYes: [a mass]\n0: zero\n1.0: one\n2020-03-01: 5\n", "utf-8"
    )
    prompts = build_prompts(PromptsConfig(prompts=str(tmp_path / "p.yaml")), ("No", "Yes", "0", "1.0", "2020-03-01"))
    assert prompts == {"No": ["clear lungs"], "Yes": ["a mass"], "0": ["zero"], "1.0": ["one"], "2020-03-01": ["5"]}
    (tmp_path / "p.yaml").write_text("templates: ['a {}']\nclasses: {off: x, ON: y}\n")
    assert build_prompts(PromptsConfig(prompts=str(tmp_path / "p.yaml")), ("off", "ON")) == {
        "off": ["a x"],
        "ON": ["a y"],
    }
    for text in ("A: x\nB: y\nA: z\n", '"A": x\nB: {C: y, C: z}\n'):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(UserError, match="stands twice"):
            build_prompts(PromptsConfig(prompts=str(tmp_path / "p.yaml")), ("A", "B"))
    for nothing in ("", "~", "null", "[x, null]"):
        (tmp_path / "p.yaml").write_text(f"A: x\nB: {nothing}\n")
        with pytest.raises(UserError, match=r"no text for the class 'B'|is not a text"):
            build_prompts(PromptsConfig(prompts=str(tmp_path / "p.yaml")), ("A", "B"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ('{"A": "x", "A": "y", "B": "z"}', "the key 'A' stands twice"),
        ('{"templates": ["a {}"], "classes": ["A", "B"]}', "classes must be a mapping"),
        ("[1, 2]", "must hold a mapping"),
        ('{"A": ["x"]}', "no text for the class 'B'"),
        ('{"A": [], "B": ["x"]}', "no text for the class 'A'"),
        ('{"A": [1], "B": ["x"]}', "is not a text or a list of texts"),
        ('{"templates": ["no place"], "classes": {"A": "x", "B": "y"}}', "has no {}"),
    ],
)
def test_a_bad_prompt_file_is_one_sentence(tmp_path, text, says):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        build_prompts(PromptsConfig(prompts=str(tmp_path / "p.json")), ("A", "B"))
    assert "\n" not in str(error.value)


def test_a_missing_prompt_file_and_a_template_without_place_are_refused():
    with pytest.raises(UserError, match="no such prompt file"):
        build_prompts(PromptsConfig(prompts="gone.yaml"), CLASSES)
    with pytest.raises(UserError, match="--template"):
        PromptsConfig(template="no place")
