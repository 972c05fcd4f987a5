"""A stand-in for the command `clipcovid` that writes what a job would, and does as the file FAKE_ORDERS says.

Orders are words by the step's name: fail, kill, forget (the marker), sleep (until a signal comes), a number of seconds, or
"with STEP": to end only once that step has begun.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

words = sys.argv[1:]


def flag(name, default=""):
    return words[words.index(name) + 1] if name in words else default


command, name = words[0], flag("--name")
folder = Path(flag("--out", "embeddings")) / name
step = (name or (command if command != "prepare" else f"prepare {folder.name}")) + "-val" * (flag("--split") == "val")
orders = json.loads(Path(os.environ["FAKE_ORDERS"]).read_text())
calls = Path(os.environ["FAKE_ORDERS"]).with_name("calls.jsonl")


def note(event):
    entry = {"step": step, "event": event, "time": time.monotonic(), "words": words, "pid": os.getpid()}
    entry |= {"study": os.environ.get("CLIPCOVID_STUDY"), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with calls.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def stopped(number, frame):
    time.sleep(0.2)  # it ends in order
    note(signal.Signals(number).name)
    raise SystemExit(128 + number)


signal.signal(signal.SIGINT, stopped)
signal.signal(signal.SIGTERM, stopped)
note("began")
print(f"{step} works")
order = orders.get(step, "")
if order == "fail":
    print("error: there is something wrong with it.\nand a line after that")
    raise SystemExit(2)
if order == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if order == "sleep":
    time.sleep(60)
time.sleep(float(order) if order[:1].isdigit() else 0.05)
deadline = time.monotonic() + 60
while order[:5] == "with " and f'"step": "{order[5:]}", "event": "began"' not in calls.read_text():
    assert time.monotonic() < deadline, f"{order[5:]} does not begin beside {step}"
    time.sleep(0.02)
folder.mkdir(parents=True, exist_ok=True)
if command == "compare":
    (folder / "config.json").write_text(json.dumps({"method": command, "identity": words}))
if command == "sweep":
    best = {"optim.lr": 0.003, "class_weights": "balanced", "optim.lr_scale": ["a=1", "b=2"]}
    (folder / "best.json").write_text(json.dumps({"values": best}))
marker = folder / {"prepare": "manifest.parquet"}.get(command, "_SUCCESS")
if command == "zeroshot":
    (folder / "predictions").mkdir(exist_ok=True)
    (folder / "predictions" / f"{flag('--split', 'test')}.parquet").touch()
if order != "forget" and not marker.exists():
    marker.touch()
note("ended")
