"""Who may import whom, held by reading the imports."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("clipcovid", "jobs", "tune")
    for path in (ROOT / folder).rglob("*.py")
}
SOURCES = MODULES | {f"benchmarks.{path.stem}": path for path in (ROOT / "benchmarks").glob("*.py")}
LIBRARIES_ALLOWED = {
    "ray": lambda name: name.startswith("clipcovid.ray_backend."),
    "mlflow": lambda name: name.startswith("clipcovid.tracking."),
    "torch": lambda name: (
        name == "clipcovid.data.augment"  # which works on the device that a batch is on
        or not name.startswith(
            (
                "clipcovid.data",
                "clipcovid.evaluate",
                "clipcovid.report",
                "clipcovid.io",
                "clipcovid.config",
                "clipcovid.cli",
                "clipcovid.commands",
                "jobs.",
            )
        )
    ),
    "streamlit": lambda name: name == "clipcovid.app",
}
LAYERS = [
    ("clipcovid.terminal", "clipcovid.environment"),
    ("clipcovid.errors",),
    ("clipcovid.config",),
    ("clipcovid.cli", "clipcovid.flags"),
    ("clipcovid.io", "clipcovid.prompts", "clipcovid.distributed", "clipcovid.randomness", "clipcovid.search_space"),
    ("clipcovid.ray_backend", "clipcovid.models.weights"),
    ("clipcovid.identity",),
    ("clipcovid.models", "clipcovid.runs"),
    ("clipcovid.data",),
    ("clipcovid.evaluate",),
    ("clipcovid.report",),
    ("clipcovid.methods", "clipcovid.evaluate.report"),
    ("clipcovid.training",),
    ("clipcovid.tracking", "clipcovid.inference"),
    ("clipcovid.audit",),
    ("clipcovid.workflows",),
    ("clipcovid.commands", "clipcovid.study"),
    ("clipcovid.__main__",),
    ("jobs", "tune"),
]


def imports(path):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name):
    levels = [
        (len(prefix), at) for at, names in enumerate(LAYERS) for prefix in names if f"{name}.".startswith(f"{prefix}.")
    ]
    return max(levels)[1] if levels else None


def test_no_module_leads_back_to_itself():
    """Imports inside functions count: they hide a circle, they do not open it."""
    graph = {name.removesuffix(".__init__"): set() for name in MODULES}
    for name, path in MODULES.items():
        leaf = name.removesuffix(".__init__")
        graph[leaf] = {module for module in imports(path) if module in graph and module not in (leaf, *parents(leaf))}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"These import each other: {' -> '.join(error.args[1])}")


def parents(name):
    """The packages that a module is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_data_does_not_import_evaluate():
    for name, path in MODULES.items():
        if name.startswith("clipcovid.data."):
            assert not [module for module in imports(path) if module.startswith("clipcovid.evaluate")], name


def test_functions_fit_on_a_screen_and_files_in_a_sitting():
    lengths = {}
    for name, path in SOURCES.items():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lengths[f"{name}.{node.name}:{node.lineno}"] = node.end_lineno - node.lineno + 1
    long = {function: count for function, count in lengths.items() if count > 50}
    assert max(lengths.values()) <= 60, long
    assert len(long) <= len(lengths) / 100, long


def test_nothing_is_written_twice():
    """Eight lines in two places are one piece of code that has two."""
    places, repeated = {}, set()
    for name, path in SOURCES.items():
        lines = [(line.strip(), at) for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
        lines = [
            (line, at) for line, at in lines if re.search(r"\w", line) and not re.match(r"(from|import|#)\b", line)
        ]
        for start in range(len(lines) - 7):
            run = tuple(line for line, _ in lines[start : start + 8])
            here = f"{name}, line {lines[start][1]}"
            if places.setdefault(run, here) != here:
                repeated.add(f"{places[run]} and {here}")
    assert not repeated, "\n".join(sorted(repeated))


def test_docs_name_only_what_exists():
    """`MODULE.name` and `CONSTANT` in docstrings and in the recipes: a renamed function leaves no old name behind."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES.values()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    known = {getattr(node, field, 0) for node in nodes for field in ("id", "attr", "name")}
    stems = {name.split(".")[-1] for name in SOURCES}
    stale = []
    for path in (*trees, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "explanation" / "architecture.md"):
        text = path.read_text(encoding="utf-8")
        stale += [
            f"{path.relative_to(ROOT)}: {module}.{name}"
            for module, name in re.findall(r"`(\w+)\.([A-Za-z_]\w+)", text)
            if module in stems and name not in known and name not in ("py", "json", "parquet")
        ]
        constants = set(re.findall(r"`([A-Z][A-Z_]+)`", text)) - known
        stale += [
            f"{path.relative_to(ROOT)}: {name}" for name in constants if not name.startswith(("CLIPCOVID_", "RAY_"))
        ]
    assert not stale, stale


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_rooms(name):
    for library, allowed in LIBRARIES_ALLOWED.items():
        used = {module.split(".")[0] for module in imports(MODULES[name])}
        assert library not in used or allowed(name), f"{name} must not import {library}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__init__")])
def test_no_module_imports_from_above(name):
    assert layer(name) is not None, f"{name} has no place among the layers"
    for module in imports(MODULES[name]):
        if module.split(".")[0] in ("clipcovid", "jobs", "tune") and layer(module) is not None:
            assert layer(module) <= layer(name), f"{name} must not import {module}"


@pytest.mark.parametrize(
    "name",
    [
        "clipcovid.config",
        "clipcovid.data.manifest",
        "clipcovid.inference.embed",
        "clipcovid.workflows.train",
        "clipcovid.training.trainer",
    ],
)
def test_a_driver_starts_without_what_it_needs_later(name):
    import subprocess
    import sys

    code = f"import sys, {name}; sys.exit(', '.join({{'torch', 'matplotlib', 'scipy'}} & set(sys.modules)) or None)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_files_are_utf8_in_every_locale():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                at = {"read_text": 0, "write_text": 1}.get(node.func.attr)
                given = at is None or node.args[at:] or "encoding" in {keyword.arg for keyword in node.keywords}
                assert given, f"{name}, line {node.lineno}: give the encoding"
