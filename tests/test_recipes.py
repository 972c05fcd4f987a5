"""The recipes of CONTRIBUTING.md are run as they are printed: on a copy of the repository, with the test that each brings."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("clipcovid", "docs", "jobs", "tune", "README.md", "CONTRIBUTING.md", "pyproject.toml")
HEADING = re.compile(r"^### (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```(python|diff|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def recipes():
    """Heading → its blocks: (path, language, text)."""
    _, *parts = HEADING.split((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {heading: BLOCK.findall(text) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def patched(text, diff):
    """`text` with a diff's lines in place of those that it removes or keeps, which must stand there once."""
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, f"this must stand once in the file:\n{before}"
    return text.replace(before, after)


def apply(blocks, root):
    """Write and change the files of a recipe."""
    for path, language, text in blocks:
        file = root / path
        assert file.exists() == (language == "diff"), path
        file.parent.mkdir(parents=True, exist_ok=True)
        content = patched(file.read_text(encoding="utf-8"), text) if language == "diff" else text
        file.write_text(content, encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository, without data and history."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, tmp_path / name)
    (tmp_path / "tests").mkdir()
    for name in ("test_docs.py", "test_structure.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    return tmp_path


def test_every_block_of_the_recipes_is_run():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {"A source", "A metric"} <= set(recipes())
    assert len(re.findall("^```[a-z]", text, re.MULTILINE)) == sum(map(len, recipes().values()))


@pytest.mark.recipes
@pytest.mark.parametrize("name", recipes())
def test_a_recipe_works_as_printed(name, copy):
    blocks = recipes()[name]
    apply(blocks, copy)
    tests = [path for path, *_ in blocks if path.startswith("tests/")]
    assert tests, "a recipe brings its test"
    documented = ["tests/test_docs.py"] if any(path.endswith(".md") for path, *_ in blocks) else []
    held = ["tests/test_structure.py", *documented, "-k", "documented or names_every or from_above or rooms"]
    for arguments in (tests, held):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_diff_that_does_not_fit_is_refused():
    assert patched("a\nb\nc\n", " a\n-b\n+d\n") == "a\nd\nc\n"
    with pytest.raises(AssertionError, match="once"):
        patched("a\na\n", "-a\n+b\n")
