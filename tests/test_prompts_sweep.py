"""Searching for prompts."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import HERE, LOCAL

from clipcovid.config import ClipConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.prompts import PromptsConfig
from clipcovid.workflows.prompt_search import (
    SEARCHES,
    Candidate,
    CandidateSampler,
    CandidateScorer,
    PromptSpace,
    every_candidate,
    read_space,
)
from clipcovid.workflows.sweep_prompts import PromptSweepConfig, sweep_prompts

TINY = ClipConfig(model="tiny", pretrained="none")
SPACE = PromptSpace(tuple(f"t{i} {{}}" for i in range(12)), (3, 4), {"a": ("x", "y"), "b": ("u", "v", "w")})


WORDS = """
templates: ['a chest X-ray of {}', '{} in the lungs', 'a radiograph showing {}', '{}']
classes:
  COVID-19: [COVID-19, coronavirus]
  Non-COVID: [pneumonia, consolidation]
  Normal: [normal lungs, no findings]
"""


def sweep(data, out, compute=HERE, **settings):
    space = out / "space.yaml"
    space.write_text(WORDS)
    return PromptSweepConfig(data=data, out=out, clip=TINY, compute=compute, space=space, **settings)


def planted(seed=0):
    """Images that template 7 with the phrases y and w tells apart, and no other candidate does as well."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    axes = np.eye(16)
    images = axes[labels] + 0.3 * rng.normal(size=(60, 16))
    vectors = rng.normal(size=(12, 5, 16))
    vectors[7, 1], vectors[7, 4] = 5 * axes[0], 5 * axes[1]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    images /= np.linalg.norm(images, axis=-1, keepdims=True)
    return CandidateScorer(SPACE, vectors.astype(np.float16), images, labels, "macro_f1", 100)


def test_candidates_are_scored_as_a_naive_loop_does():
    scorer, draw = planted(), CandidateSampler(SPACE, 3, seed=1)
    made = [draw.candidate() for _ in range(50)]
    for one, score in zip(made, scorer(made), strict=True):
        prompts = SPACE.prompts(one)
        means = []
        for name, start in (("a", 0), ("b", 2)):
            texts = [
                scorer.text_features[
                    SPACE.templates.index(f"{t.split()[0]} {{}}"), start + SPACE.phrases[name].index(t.split()[1])
                ]
                for t in prompts[name]
            ]
            mean = np.mean(np.array(texts, np.float64), axis=0)
            means.append(mean / np.linalg.norm(mean))
        predicted = (scorer.image_features @ np.stack(means).T).argmax(axis=1)
        rates = [2 * ((predicted == k) & (scorer.labels == k)).sum() for k in (0, 1)]
        sizes = [(predicted == k).sum() + (scorer.labels == k).sum() for k in (0, 1)]
        assert score == pytest.approx(np.mean([rate / size for rate, size in zip(rates, sizes, strict=True)]))


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_finds_what_is_planted(search):
    scorer = planted()
    best = scorer([Candidate((7,), ((1,), (2,)))])[0]
    found = list(SEARCHES[search](CandidateSampler(SPACE, 2, seed=0), scorer, 600))
    assert len(found) == 600
    top = max(found, key=lambda pair: pair[1])
    assert top[1] >= best - 0.02
    assert 7 in top[0].templates
    again = list(SEARCHES[search](CandidateSampler(SPACE, 2, seed=0), scorer, 600))
    assert found == again


def test_children_stay_in_the_space():
    draw = CandidateSampler(SPACE, 3, seed=0)
    one = draw.candidate()
    for _ in range(300):
        one = draw.breed(one, draw.candidate())
        assert 1 <= len(one.templates) <= 3
        assert set(one.templates) <= set(range(12))
        assert all(chosen and max(chosen) < size for chosen, size in zip(one.phrases, (2, 3), strict=True))


def test_exhaustive_is_every_template_with_every_choice():
    made = list(every_candidate(SPACE))
    assert len(made) == len(set(made)) == 12 * 2 * 3


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    config = sweep(phantoms, tmp_path_factory.mktemp("sweep"), candidates=60, batch=25, name="s", search="evolve")
    sweep_prompts(config)
    return config, config.out / "s"


def test_a_sweep_leaves_a_prompt_file_all_candidates_and_one_test(finished, phantoms, tmp_path):
    _, folder = finished
    table = pd.read_parquet(folder / "candidates.parquet")
    assert len(table) == 60
    assert table["trial"].value_counts().tolist() == [25, 25, 10]
    best = json.loads((folder / "prompts.json").read_text())
    assert best == json.loads(table.loc[table["score"].idxmax(), "prompts"])
    assert set(best) == set(read_manifest(phantoms).classes)
    own = ZeroshotConfig(
        data=phantoms,
        clip=TINY,
        prompts=PromptsConfig(prompts=str(folder / "prompts.json")),
        out=tmp_path,
        compute=HERE,
    )
    body = json.loads((folder / "metrics.json").read_text())["test"]
    assert zeroshot(own, lambda text: None).scores.metrics == pytest.approx(body["metrics"])
    assert any("best of 60" in note and "scored once" in note for note in body["notes"])
    assert (folder / "figures" / "spread.png").exists()
    val = ZeroshotConfig(**(vars(own) | {"split": "val", "name": "val"}))
    assert zeroshot(val, lambda text: None).scores.metrics["macro_f1"] == pytest.approx(table["score"].max(), abs=1e-6)


def test_mlflow_has_a_child_for_each_trial(finished):
    from mlflow import MlflowClient

    config, _ = finished
    client = MlflowClient(f"sqlite:///{config.out.resolve()}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("clipcovid").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.metrics["val/candidates"] for run in children) == [10, 25, 25]


def test_a_killed_sweep_goes_on_with_what_is_missing(finished, capsys):
    config, folder = finished
    (folder / "_SUCCESS").unlink()
    before = pd.read_parquet(folder / "candidates.parquet")
    kept = (folder / "trials" / "00000.parquet").stat().st_mtime_ns
    (folder / "trials" / "00001.json").unlink()
    sweep_prompts(config)
    assert (folder / "trials" / "00000.parquet").stat().st_mtime_ns == kept
    assert "Going on: 2 of 3 trials are there.\ntrial 3 of 3" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "candidates.parquet"), before)
    sweep_prompts(config)
    assert "finished already" in capsys.readouterr().out


def test_trials_run_on_tune(cluster, phantoms, tmp_path):
    sweep_prompts(sweep(phantoms, tmp_path, compute=LOCAL, candidates=40, batch=10, name="t"))
    here = sweep(phantoms, tmp_path, candidates=40, batch=10, name="h")
    sweep_prompts(here)
    one, other = (pd.read_parquet(tmp_path / name / "candidates.parquet") for name in ("t", "h"))
    pd.testing.assert_frame_equal(one, other)


def test_what_can_not_be_searched_is_a_sentence(phantoms, tmp_path):
    (tmp_path / "s.yaml").write_text("templates: ['a photo']\nclasses: {Normal: [x]}")
    with pytest.raises(UserError, match=r"no \{\}"):
        read_space(tmp_path / "s.yaml", ("Normal",))
    (tmp_path / "s.yaml").write_text("templates: ['a {}']\nclasses: {Normal: [x]}")
    with pytest.raises(UserError, match="COVID-19"):
        read_space(tmp_path / "s.yaml", ("Normal", "COVID-19"))
    (tmp_path / "s.yaml").write_text("templates: a {}\nclasses: {No: clear lungs}")  # not a phrase a letter
    assert read_space(tmp_path / "s.yaml", ("No",)).phrases == {"No": ("clear lungs",)}
    with pytest.raises(UserError, match="can't be read"):
        read_space(tmp_path / "none.yaml", ("Normal",))
    with pytest.raises(UserError, match="--search exhaustive has"):
        sweep_prompts(sweep(phantoms, tmp_path, search="exhaustive", candidates=10))
    with pytest.raises(UserError, match="--batch"):
        sweep(phantoms, tmp_path, batch=0)
