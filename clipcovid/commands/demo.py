"""Run all of it on synthetic X-rays, without any download.

    clipcovid demo
    clipcovid demo --black

A study (clipcovid/study/demo.yaml): prepares phantoms in data/, trains every kind of classifier on them, and compares all on
the same images, in outputs/. Prints each command before it runs it. Stopped or killed and run again, it goes on where it
was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcovid.io.mappings import read_mapping
from clipcovid.study.file import Study, parse_study
from clipcovid.study.study import do_study

DEMO = Path(__file__).parents[1] / "study" / "demo.yaml"
BLACK_LUNGS_OVERRIDES: dict[str, Any] = {
    "name": "demo-black",
    "run-name": "{step}-black",
    "data": {"data": "data/phantom", "keep": "lungs-black", "out": "data/phantom-black"},
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Which of the two demos."""

    black: bool = False
    """The same methods where the lungs are blacked out: what they still score, they did not learn from the lungs. Needs the
    phantoms of `clipcovid demo`."""


def main(config: DemoConfig) -> None:
    """Do the demo's study; exit status 1 where a step failed."""
    if not do_study(demo_study(config.black)):
        raise SystemExit(1)


def demo_study(black: bool) -> Study:
    """The demo's study; with `black`, of the phantoms without their lungs, which have nothing to segment."""
    content = read_mapping(DEMO, "The demo", "settings")
    if black:
        methods = {name: method for name, method in content["methods"].items() if name != "segment"}
        content |= BLACK_LUNGS_OVERRIDES | {"methods": methods}
    return parse_study(content, "demo")
