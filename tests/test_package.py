"""The package as others install and import it: public names, the quickstart notebook, and what is in the wheel."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import run_and_list_imports

import clipcovid

ROOT = Path(__file__).parents[1]
INIT = ROOT / "clipcovid" / "__init__.py"
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.mark.parametrize("name", clipcovid.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(clipcovid)
    assert getattr(clipcovid, name) is vars(clipcovid)[name]


def test_names_for_type_checkers_are_those_at_run_time():
    imports = [node for node in ast.walk(ast.parse(INIT.read_text())) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert {name: typed[name] for name in clipcovid._OWNERS} == clipcovid._OWNERS
    assert {*clipcovid._OWNERS, "__version__"} == set(clipcovid.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        _ = clipcovid.trane
    assert not hasattr(clipcovid, "__path_of_nothing__")


def test_importing_the_package_imports_nothing_else(tmp_path):
    (tmp_path / "script.py").write_text("import clipcovid")
    _, imported = run_and_list_imports(tmp_path / "script.py")
    assert {name for name in imported if name.startswith("clipcovid")} == {"clipcovid"}
    assert not {"numpy", "pandas", "tyro", "torch", "ray"} & imported


@pytest.mark.docs
def test_the_quickstart_notebook_runs_and_has_no_outputs(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    checks = "\nprint(words.scores.n, probe.scores.n, comparison.is_done, figure.exists())"
    settings = {"MPLBACKEND": "Agg", "MLFLOW_TRACKING_URI": "file:nowhere"}  # which MLflow refuses at once: a warning
    done = subprocess.run(
        [sys.executable, "-c", code + checks], cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second, *there = done.stdout.splitlines()[-1].split()
    assert first == second
    assert there == ["True", "True"]
    assert {path.name for path in (tmp_path / "quickstart" / "outputs").iterdir()} == {"zeroshot", "probe", "compare"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that a copy of the repository builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("clipcovid", "jobs", "tune", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "copy", check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    about = f"clipcovid-{clipcovid.__version__}.dist-info"
    files = [path for path in (ROOT / "clipcovid").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {name for name in wheel if not name.startswith(about)} == {
        path.relative_to(ROOT).as_posix() for path in files
    }
    assert {"clipcovid/py.typed", "clipcovid/models/configs/tiny.json", "clipcovid/study/demo.yaml"} <= wheel.keys()
    assert b"clipcovid = clipcovid.__main__:main" in wheel[f"{about}/entry_points.txt"]
    assert wheel[f"{about}/top_level.txt"] == b"clipcovid\n"
