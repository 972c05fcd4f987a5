"""Mappings from names to texts, in YAML or JSON files."""

from pathlib import Path
from typing import Any

import yaml

from clipcovid.config import UserError
from clipcovid.io.tables import decode_text, parse_json


class _TextLoader(yaml.BaseLoader):
    """YAML whose scalars are all text, as they stand: `No:` and `0:` are names, too. No key may stand twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; a key that stands twice is a `yaml.YAMLError`."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
            raise yaml.YAMLError(f"the key {twice[0]!r} stands twice, line {node.start_mark.line + 1} and below")
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, flag: str, noun: str = "class names to texts") -> dict[str, Any]:
    """The mapping in a YAML or JSON (`.json`) file; in YAML all that is no list or mapping is text, keys too.

    A file that can't be read, or holds something else, is a `UserError` that names `flag`, and of `noun` it is a mapping.
    """
    where = f"{flag} {path}"
    try:
        text = decode_text(path.read_bytes(), where)
    except OSError as error:
        raise UserError(f"{where} can't be read ({error.strerror}).") from None
    if path.suffix.lower() == ".json":
        content = parse_json(text, where)
    else:
        try:
            content = yaml.load(text, Loader=_TextLoader)  # a safe loader: it builds text, lists and mappings alone
        except yaml.YAMLError as error:
            raise UserError(f"{where} is not valid YAML ({' '.join(str(error).split())[:300]}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold a mapping of {noun}.")
    return content
