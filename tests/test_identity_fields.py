"""Every field of every job is part of its identity, or is left out for a reason."""

import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipcovid.config import ClipConfig, flatten_fields, override
from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.data.masked import ApplyMasksConfig
from clipcovid.data.prepare import PrepareConfig, _options
from clipcovid.evaluate.ensemble import EnsembleConfig
from clipcovid.identity import (
    IGNORED_FIELDS,
    cascade_identity,
    crossval_identity,
    encoder_identity,
    ensemble_identity,
    generation_identity,
    masked_identity,
    prompts_identity,
    run_identity,
    search_identity,
    sweep_identity,
    zeroshot_identity,
)
from clipcovid.inference.cascade import CascadeConfig
from clipcovid.inference.embed import EmbedConfig
from clipcovid.inference.generate import GenerateConfig
from clipcovid.inference.predict import PredictConfig
from clipcovid.inference.search import SearchConfig
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.methods.registry import METHODS
from clipcovid.workflows.prompt_search import read_space
from clipcovid.workflows.sweep import SweepConfig
from clipcovid.workflows.sweep_prompts import PromptSweepConfig

ROOT = Path(__file__).parents[1]
ANEW = "it computes anew each time, in no run's folder"
WITHOUT = {  # jobs that have no identity, and why
    "classify": ANEW,
    "evaluate": ANEW,
    "audit": "known by the data sets, and computed anew",
    "register": "it finds what was registered by the hash of the model",
    "compare": "known by the predictions that are compared, and computed anew",
    "report": "known by the predictions that are compared, and written anew",
    "study": "its steps are known, each by its own identity",
}
DATA, TINY = Path("unused"), ClipConfig(model="tiny", pretrained="none")


@dataclass(frozen=True)
class Job:
    """A job's config, what gives its identity, and the fields left out beside `IGNORED_FIELDS`, with the reason."""

    config: Any
    identity: Callable[[Any], Any]
    apart: dict[str, str] = field(default_factory=dict)


def data():
    """Two images."""
    rows = {
        "image_id": ["1", "2"],
        "label": ["a", "b"],
        "split": "train",
        "caption": ["x", "y"],
        "sha256": ["aa", "bb"],
    }
    return Manifest(
        table=normalize_columns(pd.DataFrame(rows)), classes=("a", "b"), dataset="d", info={"pack_hash": "p"}
    )


def method_job(config_type):
    """A training, by which captions are read where it can read any."""
    given = {"clip": TINY} if "clip" in config_type.__dataclass_fields__ else {}
    given |= {"captions": "dataset"} if "captions" in config_type.__dataclass_fields__ else {}
    contrastive = {"optim.accumulate": "1 alone is allowed"} if "positives" in config_type.__dataclass_fields__ else {}
    return Job(
        config_type(data=DATA, **given), lambda one: run_identity(one, one.resolve_manifest(data())), contrastive
    )


def jobs():
    """Each job that has an identity; those of methods by the method's name."""
    found = {name: method_job(method.config) for name, method in METHODS.items()}
    space = read_space(None, ("a", "b"))
    content = "known by what is in the file"
    found["zeroshot"] = Job(
        ZeroshotConfig(data=DATA, clip=TINY),
        lambda one: zeroshot_identity(one, data(), one.clip.precision),
        {"split": "the splits of one run stand side by side"},
    )
    found["prompts"] = Job(
        PromptSweepConfig(data=DATA, clip=TINY), lambda one: prompts_identity(one, data(), space), {"space": content}
    )
    found["embed"] = Job(
        EmbedConfig(data=DATA, clip=TINY), lambda one: encoder_identity(one.clip, one.seed, data(), one.input)
    )
    found["generate_captions"] = Job(GenerateConfig(data=DATA), lambda one: generation_identity(one, data()))
    found["apply_masks"] = Job(
        ApplyMasksConfig(data=DATA, out=DATA), lambda one: masked_identity(one, data()), {"overwrite": "makes it anew"}
    )
    cnn = METHODS["cnn"].config(data=DATA)
    found["search"] = Job(
        SearchConfig(data=DATA, clip=TINY, text=("x",)),
        lambda one: search_identity(one, encoder_identity(one.encoder, one.seed, data(), one.input), one.image),
        {"run": "known by its weights"},
    )
    found["cascade"] = Job(
        CascadeConfig(images=("x",), segment=(DATA,), classify=DATA),
        lambda one: cascade_identity([], one.keep, dict.fromkeys(one.images, "a hash")),
        {
            "segment": "known by the files of their checkpoints, and their settings",
            "classify": "known by the files of its checkpoint, and its settings",
            "json": "how it is printed",
        },
    )
    found["ensemble"] = Job(
        EnsembleConfig(runs=(Path("a"), Path("b"))),
        lambda one: ensemble_identity(
            one, {"split_hash": "a hash", "classes": ["a", "b"]}, {"val": np.ones((2, 3, 2))}
        ),
        {"runs": "known by what they predict"},
    )
    found["hparams"] = Job(
        SweepConfig(task=cnn),
        lambda one: sweep_identity(one, data(), one.metric, {}),
        {
            "space": content,
            "max_concurrent": "how many at once, which the cluster decides as well",
            "confirm_seeds": "trained when the search is over",
            "resume": "refuses to begin, and changes nothing",
        },
    )
    found["predict"] = Job(
        PredictConfig(run=DATA, data=DATA),
        lambda one: {"split": one.split},
        {"run": "known by the files of its checkpoint and its settings", "map": "known by the labels that it gives"},
    )
    found["prepare"] = Job(
        PrepareConfig(),
        _options,
        {
            "root": "known by its files",
            "image_folder": "known by the files that it names",
            "overwrite": "makes it anew",
            "max_bad": "stops, or changes nothing",
        },
    )
    return found


@pytest.fixture
def files(tmp_path):
    """What fields can name, by the field."""
    contents = {
        "weights": ("weights.pt", "weights"),
        "clip.pretrained": ("clip.pt", "weights"),
        "captions": ("captions.csv", "image_id,caption\n1,other\n"),
        "prompts.prompts": ("prompts.json", '{"a": ["x"], "b": ["y"]}'),
        "masks": ("masks.parquet", "masks"),
    }
    for name, text in contents.values():
        (tmp_path / name).write_text(text)
    return {key: str(tmp_path / name) for key, (name, _) in contents.items()}


WORDS = {  # what a field takes, where not any text, number or list will do
    "fold": "1/2",
    "shots": ("4",),
    "optim.lr_scale": ("head=2",),
    "caption_template": "a {view}",
    "prompts.template": "so {}",
    "penalties": (0.5,),
    "images.size": 64,
    "images.mask_value": ("200",),
}
TOGETHER: dict[str, dict[str, Any]] = {  # what has to hold for a field to be changed
    "within_lungs": {"target": "both"},
    "supervision": {"target": "lung", "augment.rotate": 0.0},
    "caption_template": {"captions": "dataset"},
    "prompts.template": {"prompts.prompts": "single"},
}


def choices_of(config, key):
    """The values of a field that has only some."""
    for name in key.split(".")[:-1]:
        config = getattr(config, name)
    kind = typing.get_type_hints(type(config))[key.rpartition(".")[2]]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def another(config, key, value, files):
    """A value that differs from a field's."""
    if key in files:
        return Path(files[key]) if key == "masks" else files[key]
    if key in WORDS:
        return WORDS[key]
    if choices := choices_of(config, key):
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) and not key.startswith("augment.") else value / 3 + 0.0007
    return (*value, "more") if isinstance(value, tuple) else "another"


def test_every_job_is_here():
    names = {path.stem for folder in ("jobs", "tune") for path in (ROOT / folder).glob("*.py")} - {"spaces"}
    methods = {"cnn", "hybrid", "probe", "coop", "tip_adapter", "finetune", "caption", "captioner", "segment"}
    assert set(METHODS) == methods
    assert names == {*jobs(), *WITHOUT, "crossval"}
    config = METHODS["cnn"].config(data=DATA)
    assert crossval_identity(config, data(), 5) != crossval_identity(config, data(), 4)


@pytest.mark.parametrize("name", jobs())
def test_every_field_is_known_or_left_out_for_a_reason(name, files):
    job = jobs()[name]
    own = {key: value for key, value in flatten_fields(job.config).items() if not key.startswith("task.")}
    assert set(job.apart) <= set(own), "fields that are no more"
    for key, value in own.items():
        head = key.partition(".")[0]
        if head in IGNORED_FIELDS or key in job.apart:
            assert IGNORED_FIELDS.get(head) or job.apart[key]
            continue
        base = override(job.config, TOGETHER.get(key, {}))
        changed = override(base, {key: another(base, key, value, files)})
        assert job.identity(changed) != job.identity(base), f"{name}: {key} changes nothing"
