"""A checkpoint's config and texts, without its weights: no torch here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipcovid.config import ConfigT, UserError, config_from_dict, override
from clipcovid.data.captions import read_captions
from clipcovid.identity import CAPTION_SOURCES
from clipcovid.io.files import read_json_object, write_json, write_parquet
from clipcovid.methods.registry import METHODS
from clipcovid.models.availability import check_file
from clipcovid.prompts import PromptsConfig, build_prompts

PROMPTS, CAPTION_TABLE = "prompts.json", "captions.parquet"
CHECKPOINT_FILES = (  # what is written into `checkpoint/`, as a regular expression of paths in a run's folder
    r"checkpoint/((hf|text|decoder)/)?((model|gallery|known)\.safetensors|(gallery|known|prompts|(\w+_)?config|tokenizer|vocab"
    r"|special_tokens_map|added_tokens)\.json|(vocab|merges)\.txt|chat_template\.jinja"
    r"|(captions|training_images)\.parquet)"
)


def read_checkpoint(run: Path) -> tuple[Any, dict[str, Any], Path]:
    """A run's config, the rest of the checkpoint's `config.json`, and its folder; without a checkpoint: `UserError`."""
    folder = run / "checkpoint" if (run / "checkpoint").is_dir() else run
    path = folder / "config.json"
    metadata = read_json_object(path)
    if metadata.get("task") not in METHODS or not (folder / "model.safetensors").is_file():
        raise UserError(f"{run} holds no checkpoint: give the folder of a finished training run.")
    check_file(folder / "model.safetensors")
    return (
        with_saved_texts(config_from_dict(METHODS[metadata["task"]].config, metadata.pop("config")), folder),
        metadata,
        folder,
    )


def save_texts(config: ConfigT, classes: Sequence[str], folder: Path) -> ConfigT:
    """Write the texts that a config names into `folder`; gives the config that reads them there.

    So a training goes on with the texts that it began with, and its checkpoint predicts with them, whatever becomes of the
    files that were given.
    """
    prompts, captions = getattr(config, "prompts", None), getattr(config, "captions", "labels")
    if isinstance(prompts, PromptsConfig):
        write_json(folder / PROMPTS, build_prompts(prompts, tuple(classes)))
    if captions not in CAPTION_SOURCES:
        write_parquet(folder / CAPTION_TABLE, read_captions(captions), {})
    return with_saved_texts(config, folder)


def with_saved_texts(config: ConfigT, folder: Path) -> ConfigT:
    """A config that reads the texts which `save_texts` left in `folder`; as it is, where there are none."""
    saved = {"prompts.prompts": folder / PROMPTS, "captions": folder / CAPTION_TABLE}
    return override(config, {key: str(path.resolve()) for key, path in saved.items() if path.is_file()})
