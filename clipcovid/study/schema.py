"""The JSON schema of study files, made from the commands' configs: editors complete and check a study by it."""

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from clipcovid.config import ClipConfig
from clipcovid.flags import Flag
from clipcovid.study.file import (
    METHOD_KEYS,
    PLAIN_NAME,
    SET_BY_STUDY,
    StudySettings,
    config_of,
    method_commands,
)
from clipcovid.study.settings import settings_of

Schema = dict[str, Any]
NUMBER_AS_TEXT = r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"  # 2e-4, which YAML 1.1 reads as text


def print_schema() -> None:
    """Print the schema as JSON."""
    print(json.dumps(study_schema(), indent=1, ensure_ascii=False))


def study_schema() -> Schema:
    """The schema of a study file (JSON Schema 2020-12)."""
    settings = _object(settings_of(StudySettings))
    properties = settings["properties"]
    name = {"type": "string", "pattern": f"^{PLAIN_NAME}$"}
    methods = {command: _ref(command) for command in method_commands()}
    other = {"anyOf": [{"allOf": [_ref(command), {"required": ["command"]}]} for command in methods]}
    names = {"type": ["array", "string"], "items": name}
    properties |= {
        "data": {"$ref": "#/$defs/data", "description": "A prepared folder, or how to prepare one."},
        "external": _entries({"$ref": "#/$defs/data"}, "Other data sets, which the methods meet after their training."),
        "encoders": _entries(_object(settings_of(ClipConfig)), "CLIPs, by names that methods refer to."),
        "methods": _entries(other, "The methods, by the names of their steps.")
        | {"properties": methods, "minProperties": 1},
        "sweeps": _entries(
            _about("sweep", {"method": name}), "Searches for a method's best settings, and their training."
        ),
        "crossval": _about("crossval", {"methods": names}),
        "ensembles": _entries(_about("ensemble", {"runs": names}), "Methods that join the runs of others."),
        "compare": _object(settings_of(config_of("compare"), SET_BY_STUDY)),
        "audit": _closing("audit"),
        "report": _closing("report"),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study of clipcovid",
        **settings,
        "required": ["data", "methods"],
        "$defs": {"data": _data()} | {command: _method(command) for command in methods},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _entries(entry: Schema, description: str) -> Schema:
    """Any number of entries by their names."""
    names = {"pattern": f"^{PLAIN_NAME}$"}
    return {"type": "object", "description": description, "propertyNames": names, "additionalProperties": entry}


def _data() -> Schema:
    prepare, masked = (_object(settings_of(config_of(command))) for command in ("prepare", "apply-masks"))
    masked["required"] = ["keep", "data", "out"]
    prepare["required"] = ["out"]
    return {"anyOf": [{"type": "string", "minLength": 1}, prepare, masked]}


def _method(command: str) -> Schema:
    flags = settings_of(config_of(command), SET_BY_STUDY)
    schema = _object(flags)
    schema["properties"]["command"] = {"const": command, "description": "The method, where the step has another name."}
    if "clip.model" in flags:
        about = "An encoder's name, or that of a method above, whose run is the encoder."
        schema["properties"]["encoder"] = {"type": "string", "description": about}
    assert {*METHOD_KEYS} == {"command", "encoder"}
    return schema


def _about(command: str, keys: Mapping[str, Schema]) -> Schema:
    """The settings of a command about methods, which it names under a key."""
    schema = _object(settings_of(config_of(command), SET_BY_STUDY))
    schema["properties"] |= keys
    return schema | {"required": list(keys)}


def _closing(command: str) -> Schema:
    """The settings of a step at the study's end, or false for none."""
    return {"anyOf": [{"const": False}, _object(settings_of(config_of(command), SET_BY_STUDY))]}


def _object(flags: Mapping[str, Flag], prefix: str = "") -> Schema:
    """The flags of a section as an object: nested, and under their dotted names."""
    properties: dict[str, Schema] = {}
    for name, flag in flags.items():
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix) or rest in properties:
            continue
        properties[rest] = _value(flag.type) | _described(flag)
        head, dot, _ = rest.partition(".")
        if dot and head not in properties:
            properties[head] = _object(flags, f"{prefix}{head}.")
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _described(flag: Flag) -> Schema:
    default = flag.default
    shown = (
        list(map(str, default))
        if isinstance(default, tuple)
        else str(default)
        if isinstance(default, Path)
        else default
    )
    return {"description": flag.text} | ({} if shown in (MISSING, None, "") else {"default": shown})


def _value(kind: Any) -> Schema:
    """The schema of a field's type."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _value(next(option for option in options if option is not type(None)))
    if origin is tuple:
        return {"anyOf": [{"type": "array", "items": _value(options[0])}, _value(options[0])]}
    if origin is typing.Literal:
        return {"enum": [*options]}
    number: Schema = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": NUMBER_AS_TEXT}]}
    text: Schema = {"type": ["string", "number"]}  # a class may be called 0
    simple: dict[Any, Schema] = {bool: {"type": "boolean"}, int: {"type": "integer"}, float: number}
    return simple.get(kind, text)
