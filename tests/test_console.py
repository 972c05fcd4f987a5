"""The command `clipcovid`: its list of commands, and what it answers to others."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_and_list_imports

from clipcovid import __version__
from clipcovid.commands import COMMAND_ALIASES, GROUPS, command_names, command_summary, command_table
from clipcovid.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
MAIN = ROOT / "clipcovid" / "__main__.py"
HEAVY = {"torch", "ray", "pandas", "numpy", "matplotlib", "scipy", "mlflow", "tyro"}


def clipcovid(*words):
    return subprocess.run([sys.executable, "-m", "clipcovid", *words], capture_output=True, text=True)


def test_every_module_is_a_command_and_every_script_runs_one():
    modules = {path.stem for path in (ROOT / "clipcovid" / "commands").glob("[a-z]*.py")}
    assert sorted([*modules, *METHODS]) == sorted(name.replace("-", "_") for name in command_names())
    scripts = [path for folder in ("jobs", "tune") for path in (ROOT / folder).glob("*.py")]
    run = {COMMAND_ALIASES.get(path.stem, path.stem.replace("_", "-")): path for path in scripts}
    assert run.keys() <= set(command_names())
    for name, path in run.items():
        assert f'run_command("{name}")' in path.read_text()
        assert len(path.read_text().splitlines()) < 10


def test_the_list_of_commands_fits_a_terminal_and_comes_at_once():
    lines = command_table().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ")] == command_names()
    assert [line[:-1] for line in lines if line.endswith(":")] == list(GROUPS)
    assert all(command_summary(name).endswith(".") for name in command_names())
    done, imported = run_and_list_imports(MAIN, "--help")
    assert done.stdout == command_table() + "\n"
    assert not HEAVY & {module.strip() for module in imported}


def test_the_list_of_commands_takes_a_third_of_a_second():
    def seconds(*words):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.perf_counter() - began

    bare = min(seconds("-c", "") for _ in range(5))  # what Python itself takes on this machine, as busy as it is
    assert min(seconds("-m", "clipcovid", "--help") for _ in range(5)) < bare + 0.3


@pytest.mark.parametrize(
    ("word", "close"),
    [
        ("finetun", "near it: finetune."),
        ("promts", "near it: tune-prompts"),
        ("hparam", "near it: sweep."),
        ("qqq", "'qqq'."),
    ],
)
def test_an_unknown_command_is_a_sentence_with_those_near_it(word, close):
    done = clipcovid(word, "--data", "d")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: There is no command '{word}'")
    assert close in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "clipcovid", "sweep", "cnn", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)
    process.stderr.close()


def test_the_version_is_that_of_the_package():
    assert clipcovid("--version").stdout == f"clipcovid {__version__}\n"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["cnn", "apply-masks", "apply_masks", "hparams"])
def test_help_and_errors_call_a_command_by_its_name(name):
    shown = {"hparams": "sweep"}.get(name, name.replace("_", "-"))
    assert f"usage: clipcovid {shown} " in clipcovid(name, "--help").stdout
    wrong = clipcovid(name, "--no-such-flag")
    assert wrong.returncode == 2
    assert f"clipcovid {shown} --help" in " ".join((wrong.stderr + wrong.stdout).split())


def test_a_command_and_its_script_show_the_same_help():
    command, script = (
        subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for words in (["-m", "clipcovid", "zeroshot"], ["jobs/zeroshot.py"])
    )
    assert command.partition("\n\n")[2] == script.partition("\n\n")[2]


def test_scripts_hold_no_code_of_their_own():
    for path in [*(ROOT / "jobs").glob("*.py"), *(ROOT / "tune").glob("*.py")]:
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
