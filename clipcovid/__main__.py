"""The console command `clipcovid`, also `python -m clipcovid`."""

import os
import sys

from clipcovid import __version__
from clipcovid.commands import COMMAND_ALIASES, command_names, command_table, run_command, unknown_command


def main() -> None:
    """Run the command that the first argument names, or list all; end quietly where nobody reads on, as in `| head`."""
    try:
        dispatch()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        raise SystemExit(128 + 13) from None  # as of a program that SIGPIPE ended


def dispatch() -> None:
    """Run the command that the first argument names, or list all of them."""
    first, *args = sys.argv[1:] or ["--help"]
    name = first.replace("_", "-")
    name = COMMAND_ALIASES.get(name, name)
    if first in ("-h", "--help"):
        print(command_table())
    elif first == "--version":
        print(f"clipcovid {__version__}")
    elif name in command_names():
        run_command(name, args, prog=f"clipcovid {name}")
    else:
        print(f"error: {unknown_command(first)}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
