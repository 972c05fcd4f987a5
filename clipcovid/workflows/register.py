"""A run's model into MLflow's registry: by a command of its own, or where a training ends."""

from pathlib import Path

from clipcovid.config import RESEARCH_ONLY, ImagesConfig, TrainConfig, UserError
from clipcovid.data.manifest import Manifest
from clipcovid.inference.export_model import check_kind, check_pixels
from clipcovid.tracking.registry import check_registration, register_run


def register(run: Path, name: str, alias: str = "", out: Path | None = None) -> None:
    """Register the model of a finished run, and print what serves it. `out`: see `register_run`."""
    registered = register_run(run, name, alias=alias, out=out)
    done = "registered" if registered.created else "registered before"
    print(f"Model: {run} is {done} as {name}, version {registered.version}{f', alias {alias}' * bool(alias)}.")
    print(f"Serve it: {registered.serve_command(alias)}")
    print(RESEARCH_ONLY)


def check_register_flag(config: TrainConfig, manifest: Manifest) -> None:
    """Refuse, before a training, a --register that could not be done after it."""
    if config.register:
        check_registration(*split_register_flag(config.register))
        check_kind(config)
        check_pixels(ImagesConfig(**manifest.info["images"]), manifest.info["pack_hash"], str(config.data))


def split_register_flag(value: str) -> tuple[str, str]:
    """The name and the alias, or "", of NAME or NAME@ALIAS."""
    name, _, alias = value.partition("@")
    return name, alias


def refuse_register_flag(config: TrainConfig, what: str) -> None:
    """Refuse --register where there are many trainings. `what`: those, in a sentence."""
    if config.register:
        raise UserError(
            f"{what} trains many models: leave --register out, and clipcovid register the one that you choose."
        )
