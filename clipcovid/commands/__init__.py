"""The command line: a module for each command, with its description, its config and its `main`."""

import importlib
import typing


def run_command(name: str) -> None:
    """Run the command of this name, e.g. `apply-masks`, with the flags of the command line."""
    from clipcovid.config import run_job

    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    run_job(typing.get_type_hints(module.main)["config"], module.main, module.__doc__)
