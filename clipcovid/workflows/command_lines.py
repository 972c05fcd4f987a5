"""Command lines made of configs: what to type to get the same again."""

import graphlib
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from clipcovid.config import UserError, flatten_fields, flatten_resolved
from clipcovid.data.prepare import PrepareConfig
from clipcovid.inference.predict import PredictConfig
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.methods.registry import METHODS

PATH_PLACEHOLDER = "PATH"  # where a command's required path is not known


def command_line(command: str, config: Any, default: Any, given: Sequence[str] = ("data",)) -> str:
    """The command with the flags in which a config differs from a default one, and those of `given` in any case."""
    defaults, settings = flatten_resolved(default), flatten_resolved(config)
    tuples = {key: list(map(str, value)) for key, value in flatten_fields(config).items() if isinstance(value, tuple)}
    flags = []
    for key in (*(key for key in given if key in settings), *(key for key in settings if key not in given)):
        value = settings[key]
        if key not in given and value == defaults.get(key):
            continue
        name = key.removeprefix("prompts.").replace("_", "-")
        if isinstance(value, bool):
            section, dot, flag = name.rpartition(".")
            flags.append(f"--{name}" if value else f"--{section}{dot}no-{flag}")
        else:
            flags.append(f"--{name} {shlex.join(tuples.get(key, [str(value)]))}")
    return " ".join([f"clipcovid {command}", *flags])


def command_of_run(metadata: Mapping[str, Any]) -> str:
    """The command that makes a run again, from its `config.json`; "" where that does not tell."""
    settings, identity = metadata.get("config", {}), metadata.get("identity", {})
    task = identity.get("task", "")
    config_type: Any
    if task in METHODS:
        command, config_type = task.replace("_", "-"), METHODS[task].config
        if "folds" in identity:
            command = f"crossval {command} --folds {identity['folds']}"
    elif {"prompts.prompts", "split"} <= settings.keys():
        command, config_type = "zeroshot", ZeroshotConfig
    elif {"run", "map", "split"} <= settings.keys():
        command, config_type = "predict", PredictConfig
    else:
        return ""
    required = [field.name for field in fields(config_type) if field.default is MISSING and field.init]
    try:
        config = config_type(**typed_fields(config_type, settings))
        default = config_type(**dict.fromkeys(required, Path(PATH_PLACEHOLDER)))
    except (UserError, TypeError):  # of another version, whose settings this one does not have
        return ""
    return command_line(command, config, default, required)


def prepare_command(folder: str, recipe: Mapping[str, Any]) -> str:
    """The command that prepares a data set again, from the recipe that its manifest keeps, without its root."""
    defaults = flatten_fields(PrepareConfig())
    root = "" if recipe["source"] == "phantom" else f" --root {PATH_PLACEHOLDER}"
    flags = []
    for key, default in defaults.items():
        value = recipe.get(key, "")
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        if key in ("source", "out", "root") or key not in recipe or value == shown:
            continue
        name = key.removeprefix("images.").replace("_", "-")
        words = value.split(",") if isinstance(default, tuple) else [value]
        flags.append(f" --{name}" + ("" if isinstance(default, bool) else f" {shlex.join(words)}"))
    return f"clipcovid prepare --source {recipe['source']}{root} --out {shlex.quote(folder)}{''.join(flags)}"


def sort_commands(commands: Mapping[str, str]) -> list[str]:
    """Commands by the folders that they write, so that one that reads another's folder comes after it."""
    reads = {
        folder: {other for other in commands if other != folder and other in shlex.split(command, comments=True)}
        for folder, command in commands.items()
    }
    return [commands[folder] for folder in graphlib.TopologicalSorter(reads).static_order()]


def typed_fields(config_type: Any, flat: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config from the dotted keys of a `config.json`: tuples, which were texts with commas, and paths."""
    types, values = typing.get_type_hints(config_type), dict[str, Any]()
    for field in (field for field in fields(config_type) if field.init):
        key, field_type = f"{prefix}{field.name}", types[field.name]
        if is_dataclass(field_type) and isinstance(field_type, type):
            values[field.name] = field_type(**typed_fields(field_type, flat, f"{key}."))
        elif key in flat:
            value, parts = flat[key], typing.get_args(field_type)
            if typing.get_origin(field_type) is tuple:
                value = tuple(map(parts[0], value.split(","))) if value else ()
            elif Path in (field_type, *parts) and value is not None:
                value = Path(value)
            values[field.name] = value
    return values
