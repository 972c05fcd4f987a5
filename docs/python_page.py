"""The reference of the package's public names: a Markdown page from their docstrings and signatures."""

import inspect
import re
import textwrap
from typing import Any

import clipcovid


def page() -> str:
    """The names of `clipcovid.__all__`: first the functions, then the configs and other classes."""
    owners = {name: getattr(clipcovid, name) for name in clipcovid.__all__ if not name.startswith("_")}
    functions = {name: value for name, value in owners.items() if inspect.isfunction(value)}
    classes = {name: value for name, value in owners.items() if inspect.isclass(value)}
    lines = ["# Python", "", _text(clipcovid)]
    for title, group in (("Functions", functions), ("Classes", classes)):
        lines += ["", f"## {title}"]
        for name, value in group.items():
            lines += ["", f"### {name}", "", *_signature(name, value), _text(value)]
    return "\n".join(lines) + "\n"


def _signature(name: str, value: Any) -> list[str]:
    """A function's signature as code, its types without their modules; nothing for a class, whose fields are flags."""
    if inspect.isclass(value):
        return []
    signature = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", str(inspect.signature(value)))
    signature = re.sub(r"<built-in function (\w+)>", r"\1", signature).replace("~", "")
    signature = re.sub(r"(: |-> )'([^']+)'", r"\1\2", signature)  # annotations that are text
    return ["```python", f"{name}{signature}", "```", ""]


def _text(value: Any) -> str:
    """A docstring, its indented examples as code."""
    blocks: list[str] = []
    for paragraph in (inspect.getdoc(value) or "").split("\n\n"):
        is_code = paragraph.startswith("    ")
        if is_code and blocks and blocks[-1].endswith("\n```"):
            blocks[-1] = f"{blocks[-1][:-4]}\n\n{textwrap.dedent(paragraph)}\n```"
        else:
            blocks.append(f"```python\n{textwrap.dedent(paragraph)}\n```" if is_code else _escaped(paragraph))
    return "\n\n".join(blocks)


def _escaped(text: str) -> str:
    """Prose whose angle brackets, outside of code, are no HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
