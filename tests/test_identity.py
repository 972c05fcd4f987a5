"""What tells one run, file or table from another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipcovid.config import ClipConfig, override
from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.identity import (
    cascade_identity,
    digest,
    hash_or_name,
    prediction_identity,
    prompts_identity,
    run_identity,
    weight_paths,
    weights_hash,
    zeroshot_identity,
)
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.io.files import write_json
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.captioner.config import CaptionerConfig
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.coop.config import CoopConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.hybrid.config import HybridConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.tip_adapter.config import TipAdapterConfig
from clipcovid.prompts import PromptsConfig
from clipcovid.workflows.prompt_search import read_space
from clipcovid.workflows.sweep_prompts import PromptSweepConfig

DATA = Path("unused")
TINY = ClipConfig(model="tiny", pretrained="none")


def data(captions=("x", "y"), pixels=("aa", "bb"), boxes=("", ""), info=None):
    """Two images."""
    rows = {"image_id": ["1", "2"], "label": ["a", "b"], "split": "train", "caption": captions, "sha256": pixels}
    table = normalize_columns(pd.DataFrame(rows | {"boxes": boxes}))
    return Manifest(table=table, classes=("a", "b"), dataset="d", info={"pack_hash": "p"} | (info or {}))


def of(config, manifest=None):
    manifest = manifest or data()
    return run_identity(config, config.resolve_manifest(manifest))


def test_a_digest_goes_by_value_whatever_the_type():
    plain = {"a": [1, 0.5, True], "path": "x/y", "grid": [[1, 2]]}
    same = {"grid": np.array([[1, 2]]), "path": Path("x/y"), "a": (np.int64(1), np.float32(0.5), np.bool_(True))}
    assert digest(plain) == digest(same)
    assert digest({"a": 1}) != digest({"a": "1"}) != digest({"a": np.int32(1)})
    with pytest.raises(TypeError, match="object"):
        digest({"a": object()})


@pytest.mark.parametrize("method", [FinetuneConfig, HybridConfig, CoopConfig, TipAdapterConfig])
def test_prompts_are_known_by_their_words(tmp_path, method):
    path, copy = tmp_path / "p.yaml", tmp_path / "copy.json"
    path.write_text("a: [sick lungs]\nb: [clear lungs]")
    config = method(data=DATA, clip=TINY, prompts=PromptsConfig(prompts=str(path)))
    before = of(config)
    copy.write_text(json.dumps({"a": ["sick lungs"], "b": ["clear lungs"]}))
    assert of(override(config, {"prompts.prompts": str(copy)})) == before
    path.write_text("a: [sick lungs]\nb: [healthy lungs]")
    assert of(config) != before


def test_captions_are_known_by_their_words(tmp_path):
    path, copy = tmp_path / "c.csv", tmp_path / "copy.csv"
    path.write_text("image_id,caption\n1,x\n2,y\n")
    copy.write_text("image_id,caption\n2,y\n1,x\n")
    for config in (
        DualEncoderConfig(data=DATA),
        FinetuneConfig(data=DATA, clip=TINY),
        CaptionerConfig(data=DATA, clip=TINY),
    ):
        own = replace(config, captions="dataset")
        assert of(own) == of(own) != of(own, data(captions=("x", "z")))
        assert of(replace(config, captions=str(path))) == of(replace(config, captions=str(copy))) != of(own)
    copy.write_text("image_id,caption\n2,y\n1,z\n")
    assert of(replace(config, captions=str(path))) != of(replace(config, captions=str(copy)))
    for config in (CnnConfig(data=DATA), FinetuneConfig(data=DATA, clip=TINY)):
        assert of(config) == of(config, data(captions=("x", "z")))


def test_images_are_known_by_their_pixels_and_boxes_by_what_they_say():
    config = CnnConfig(data=DATA)
    assert of(config, data(pixels=("aa", "cc"))) != of(config)
    boxed = SegmentConfig(data=DATA, target="lung", supervision="boxes", augment=replace(CnnConfig.augment, rotate=0))
    assert of(boxed, data(boxes=("[1]", ""))) != of(boxed)
    assert of(config, data(boxes=("[1]", ""))) == of(config)
    masks = SegmentConfig(data=DATA, target="lung")
    one, other = (data(info={"masks_hash": {"lung_mask": text}}) for text in ("a", "b"))
    assert of(masks, one) != of(masks, other)


def test_files_of_weights_are_known_by_their_content_and_words_are_no_files(tmp_path, monkeypatch):
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "tokenizer.json").write_text("[1]" if name == "other" else "[]")
        (tmp_path / f"{name}.pt").write_text("1" if name == "other" else "0")
    for config, field, ending in (
        (CnnConfig(data=DATA), "weights", ".pt"),
        (SegmentConfig(data=DATA), "weights", ".pt"),
        (DualEncoderConfig(data=DATA, captions="dataset"), "text", ""),
        (CaptionerConfig(data=DATA, captions="dataset", clip=TINY), "decoder", ""),
    ):
        places = [str(tmp_path / f"{name}{ending}") for name in ("one", "same", "other")]
        one, same, other = (override(config, {field: place}) for place in places)
        assert of(one) == of(same) != of(other)
        assert weight_paths(one) == {field: Path(places[0])}
    monkeypatch.chdir(tmp_path)
    for word in ("pretrained", "none"):
        (tmp_path / word).mkdir()
        assert hash_or_name(word, ("pretrained", "none")) == word
        assert weight_paths(CnnConfig(data=DATA, weights=word)) == {}


def test_an_open_clip_checkpoint_is_known_by_its_config_and_the_file_that_is_loaded(tmp_path):
    config = ClipConfig(pretrained=str(tmp_path))
    write_json(tmp_path / "open_clip_config.json", {"quick_gelu": False})
    (tmp_path / "model.safetensors").write_text("weights")
    before = weights_hash(config, 0)
    (tmp_path / "gallery.safetensors").write_text("no weights")
    assert weights_hash(config, 0) == before
    write_json(tmp_path / "open_clip_config.json", {"quick_gelu": True})
    assert weights_hash(config, 0) != before
    write_json(tmp_path / "open_clip_config.json", {"quick_gelu": False})
    (tmp_path / "model.safetensors").write_text("other weights")
    assert weights_hash(config, 0) != before


def test_a_number_is_known_by_its_value():
    same = [of(CnnConfig(data=DATA, label_smoothing=value)) for value in (0, 0.0)]
    assert digest(same[0]) == digest(same[1])
    assert digest(of(CnnConfig(data=DATA, label_smoothing=0.5))) != digest(same[0])


def test_lists_are_not_known_by_the_text_that_joins_them():
    config = FinetuneConfig(data=DATA, clip=TINY, method="lora")
    changes = [{"lora.targets": ("attn,c_fc",)}, {"lora.targets": ("attn", "c_fc")}]
    one, other = (of(override(config, change)) for change in changes)
    assert one != other
    assert json.loads(json.dumps(one)) == one


def checkpoint(folder, config, weights="weights"):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text(weights)
    write_json(folder / "config.json", {"task": config.task})
    return folder


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (CnnConfig(data=DATA), {"tta": True}),
        (CnnConfig(data=DATA), {"image_size": 32}),
        (CaptionerConfig(data=DATA, clip=TINY), {"beams": 1}),
        (CaptionerConfig(data=DATA, clip=TINY), {"context": 20}),
        (SegmentConfig(data=DATA, target="both"), {"components": 2}),
        (SegmentConfig(data=DATA, target="both"), {"within_lungs": True}),
        (SegmentConfig(data=DATA, target="both"), {"tta": True}),
        (ProbeConfig(data=DATA, clip=TINY), {"input": "raw"}),
    ],
)
def test_equal_weights_with_other_settings_of_inference_predict_otherwise(tmp_path, config, change):
    def predicted(config, about=None, split="test"):
        return prediction_identity(checkpoint(tmp_path / "c", config), config, about or {}, data(), split)

    elsewhere = override(config, {"data": Path("moved"), "out": Path("there"), "name": "n", "compute.workers": 3})
    assert predicted(elsewhere) == predicted(config) == json.loads(json.dumps(predicted(config)))
    assert predicted(override(config, change)) != predicted(config)
    assert predicted(config, {"classes": ["b", "a"]}) != predicted(config, {"classes": ["a", "b"]})
    assert predicted(config, {"encoder": {"clip.weights": "1"}}) != predicted(config)
    assert predicted(config, split="val") != predicted(config)


def test_a_checkpoint_is_known_by_all_that_it_predicts_with(tmp_path):
    config = CnnConfig(data=DATA, weights=str(tmp_path / "gone.pt"))
    folder = checkpoint(tmp_path / "c", config)

    def predicted():
        return prediction_identity(folder, config, {}, data(), "test")

    before = predicted()
    (folder / "hf").mkdir()
    (folder / "hf" / "model.safetensors").write_text("a copy")
    (folder / "training_images.parquet").write_text("a list")
    assert predicted() == before
    (folder / "prompts.json").write_text("{}")
    assert predicted() != before


def test_a_cascade_is_known_by_the_settings_of_its_runs(tmp_path):
    config = CnnConfig(data=DATA)
    one, same, other = (checkpoint(tmp_path / name, config) for name in ("one", "same", "other"))
    for folder, tta, path in ((one, False, "x"), (same, False, "y"), (other, True, "x")):
        write_json(folder / "config.json", {"config": {"tta": tta, "data": path, "weights": path}})
    known = [digest(cascade_identity([folder], "lungs", {"a.png": "hash"})) for folder in (one, same, other)]
    assert known[0] == known[1] != known[2]


def test_searches_for_prompts_and_zero_shot_runs(tmp_path):
    config = PromptSweepConfig(data=DATA, clip=TINY)
    space = read_space(None, ("a", "b"))
    before = prompts_identity(config, data(), space)
    assert prompts_identity(replace(config, candidates=3), data(), space) != before
    assert prompts_identity(config, data(), replace(space, templates=("x {}",))) != before
    assert prompts_identity(config, data(pixels=("a", "c")), space) != before
    zero = ZeroshotConfig(data=DATA, clip=TINY)
    assert zeroshot_identity(replace(zero, split="val"), data(), "fp32") == zeroshot_identity(zero, data(), "fp32")
    assert zeroshot_identity(zero, data(), "bf16") != zeroshot_identity(zero, data(), "fp32")
    assert zeroshot_identity(replace(zero, input="raw"), data(), "fp32") != zeroshot_identity(zero, data(), "fp32")
