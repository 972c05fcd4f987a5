"""The console command `clipcovid`, also `python -m clipcovid`."""

import sys

from clipcovid import __version__
from clipcovid.commands import OTHER_NAMES, contents, names, nearest, run_command


def main() -> None:
    """Run the command that the first argument names, or list all of them."""
    first, *args = sys.argv[1:] or ["--help"]
    name = first.replace("_", "-")
    name = OTHER_NAMES.get(name, name)
    if first in ("-h", "--help"):
        print(contents())
    elif first == "--version":
        print(f"clipcovid {__version__}")
    elif name in names():
        run_command(name, args, prog=f"clipcovid {name}")
    else:
        print(f"error: {nearest(first)}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
