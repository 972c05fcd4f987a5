"""The command `clipcovid register` as a script."""

from clipcovid.commands import run_command

if __name__ == "__main__":
    run_command("register")
