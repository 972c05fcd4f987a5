"""The documentation says what the code does: flags, commands, messages, sources and metrics are checked against it."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from clipcovid.cli import from_cli
from clipcovid.data.sources import SOURCES
from clipcovid.evaluate import metrics

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import flag_pages  # noqa: E402 (the book's own code)

COMMANDS = flag_pages.all_commands()
OPTIONS = r"^[│ ] (--?[a-z][\w.-]*(?:, --?[a-z][\w.-]*)*)(?= [A-Z{\[]|  )"  # before a value's name, or a gap
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text):
    """The command lines in a page's code blocks: (command, arguments)."""
    for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.match(r"\$? ?(?:\s*-- )?(?:python -m )?clipcovid ([a-z][a-z-]*)(.*)", line):
                yield match[1], shlex.split(match[2], comments=True)


@pytest.mark.parametrize(
    ("page", "name", "arguments"),
    [
        pytest.param(page, *command, id=f"{page.relative_to(ROOT)}: {' '.join(command[1])[:60]}")
        for page in PAGES
        for command in commands(page.read_text(encoding="utf-8"))
    ],
)
def test_commands_of_the_documentation_are_accepted(page, name, arguments):
    config = COMMANDS[name].config
    assert isinstance(from_cli(config, "", arguments), config)


@pytest.mark.parametrize("name", COMMANDS)
def test_flag_pages_list_the_flags_of_help(name, capsys):
    config = COMMANDS[name].config
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"])
    shown = re.findall(OPTIONS, capsys.readouterr().out, re.MULTILINE)
    accepted = {name for names in shown for name in names.split(", ")} - {"-h", "--help"}
    listed = {name for flag in flag_pages.flags(config) for name in flag.spellings if name.startswith("-")}
    assert listed == accepted


def test_readme_is_short_and_names_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert [name for name in COMMANDS if f"| `{name}` |" not in text] == []


def test_links_of_readme_lead_to_files():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        targets = re.findall(r'(?:\]\(|src=")([^)"#:]+)[)"#]', page.read_text(encoding="utf-8"))
        assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_source_is_documented():
    text = (ROOT / "docs/how-to/data.md").read_text(encoding="utf-8")
    assert [name for name in [*SOURCES, "phantom"] if f"| `{name}` |" not in text] == []


def test_every_classification_metric_is_documented():
    text = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    scores = metrics.classification_metrics(list("abca"), np.eye(4)[[0, 1, 2, 3]][:, :3] + 0.01, ["a", "b", "c"])
    names = {re.sub("/.*", "/<class>", name) for name in scores}
    assert {name for name in names if f"`{name}`" not in text} == {"top2_accuracy"} - {
        n for n in names if f"`{n}`" in text
    }


def test_messages_of_the_documentation_are_those_of_the_code():
    told = [
        line for line in (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8").splitlines() if line[:1] == "`"
    ]
    texts = list(strings())
    assert told
    for message in (message for line in told for message in re.findall("`([^`]+)`", line)):
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert any(re.search(pattern, text, re.DOTALL) for text in texts), message


def strings():
    """Every text of the code, with … for what is filled in."""
    for path in (ROOT / "clipcovid").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.docs
def test_the_book_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    loads = r'<(?:script|img|iframe|link)[^>]*(?:src|href)="(https?:)?//'
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    assert [page.name for page in pages if re.search(loads, page.read_text(encoding="utf-8"))] == []
