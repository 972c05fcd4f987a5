"""Run all of it on synthetic X-rays, without any download.

    clipcovid demo
    clipcovid demo --black

Prepares phantoms in data/, trains every kind of classifier on them, and compares all on the same images, in outputs/.
Prints each command before it runs it. Stopped or killed and run again, it goes on where it was.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PHANTOM_COMMANDS = """\
prepare --source phantom --out data/phantom --size 128
segment --data data/phantom --target both --name segment {unet} --optim.epochs 8 {local}
"""
BLACKENED_COMMANDS = """\
apply-masks --data data/phantom --keep lungs-black --out data/phantom-black
"""
METHOD_COMMANDS = """\
embed {tiny} none
zeroshot {tiny} none --prompts ensemble --name zeroshot{suffix}
finetune {tiny} none --name finetune{suffix} {clip} --optim.epochs 12 --compute.workers 2
finetune {tiny} {tuned} --method lora --name lora{suffix} {clip} --optim.epochs 2 {local}
probe {tiny} none --name probe{suffix} {local}
probe {tiny} {tuned} --name probe-finetuned{suffix} {local}
coop {tiny} {tuned} --name coop{suffix} {local}
tip-adapter {tiny} {tuned} --name tip-adapter{suffix} {local}
tune-prompts {tiny} {tuned} --name prompts{suffix} --candidates 1000 {local}
cnn --data {data} --image-size 64 --name cnn{suffix} {cnn} --optim.epochs 15 {local}
hybrid {tiny} {tuned} --name hybrid{suffix} {cnn} --optim.epochs 10 {local}
compare --name compare{suffix} {compared}"""
COMPARED_RUNS = "zeroshot finetune lora prompts coop tip-adapter probe probe-finetuned cnn hybrid"
NO_AUGMENTATION = "--augment.rotate 0 --augment.shift 0 --augment.scale 0 --augment.intensity 0 --augment.noise 0"
SETTINGS = {
    "local": "--compute.workers 0",
    "clip": f"--optim.batch-size 32 --optim.lr 2e-4 {NO_AUGMENTATION}",
    "cnn": "--weights none --optim.batch-size 32 --optim.lr 2e-3 --optim.keep last",
    "unet": "--weights none --optim.batch-size 8 --optim.lr 2e-3 --optim.keep last",
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Which of the two demos."""

    black: bool = False
    """The same methods where the lungs are blacked out: what they still score, they did not learn from the lungs. Needs the
    phantoms of `clipcovid demo`."""


def main(config: DemoConfig) -> None:
    """Run the commands one after the other; the first that fails ends it with its exit status."""
    for command in demo_commands(config.black):
        print(f"$ clipcovid {command}", flush=True)
        if status := _run(shlex.split(command)):
            print("The demo ends here. Run the same command again to go on with what is missing.", file=sys.stderr)
            raise SystemExit(status if status > 0 else 128 - status)


def demo_commands(black: bool) -> list[str]:
    """The demo's commands in their order, without `clipcovid`."""
    suffix, data = ("-black", "data/phantom-black") if black else ("", "data/phantom")
    runs = (Path(f"outputs/{name}{suffix}") for name in COMPARED_RUNS.split())
    values = SETTINGS | {
        "suffix": suffix,
        "data": data,
        "tiny": f"--data {data} --clip.model tiny --clip.pretrained",
        "tuned": f"outputs/finetune{suffix}",
        "compared": " ".join(str(run / "winner" if run.name.startswith("prompts") else run) for run in runs),
    }
    return ((BLACKENED_COMMANDS if black else PHANTOM_COMMANDS) + METHOD_COMMANDS).format(**values).split("\n")


def _run(words: list[str]) -> int:
    """The exit status of a command; negative where a signal ended it."""
    process = subprocess.Popen([sys.executable, "-m", "clipcovid", *words])
    try:
        return process.wait()
    except BaseException as stopped:
        if not isinstance(stopped, KeyboardInterrupt):  # which the terminal sends to the command, too
            process.terminate()
        process.wait()  # it ends in order
        raise
