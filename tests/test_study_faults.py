"""A real study, killed on its way: what was done stays, and what was not is done when it is run again."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import shown_below

from clipcovid.study.outcomes import Outcomes

STUDY = """
run-name: "{step}"
data: {source: phantom, out: data/phantom, phantom: {images: 90, size: 96}, size: 64, compute: {workers: 0}}
compute: {workers: 0}
encoders: {small: {model: tiny, pretrained: none}}
methods:
  zeroshot: {encoder: small}
  cnn: {weights: none, image-size: 32, optim: {epochs: 2, batch-size: 12}}
  long: {command: cnn, weights: none, optim: {epochs: 40, batch-size: 12}}
  broken: {command: cnn, weights: nowhere.safetensors}
  probe: {encoder: small}
crossval: {methods: [probe], folds: 2}
"""


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_goes_on_where_it_was(number, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "clipcovid", "study", "study.yaml"]
    folder, run = tmp_path / "outputs" / "study", tmp_path / "outputs" / "long"
    study = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not (run / "state" / "state.pt").exists():
            assert time.monotonic() < deadline
            assert study.poll() is None
            time.sleep(0.1)
        study.send_signal(number)
    except AssertionError:
        study.terminate()
        raise
    finally:
        study.wait()
    states = {name: outcome.state for name, outcome in Outcomes.read(folder).steps.items()}
    assert states["long"] == ("running" if number == signal.SIGKILL else "stopped")
    assert states["cnn"] == "done"
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert again.returncode == 1
    outcomes = Outcomes.read(folder).steps
    assert outcomes.pop("broken").state == "failed"
    assert {outcome.state for outcome in outcomes.values()} == {"done"}
    assert "nowhere.safetensors" in again.stdout
    log = (folder / "logs" / "long.log").read_text()
    assert log.count("$ clipcovid cnn") == 2
    epochs = [line["epoch"] for line in json.loads((run / "history.json").read_text())["epochs"]]
    assert epochs == sorted(set(epochs)) == [*range(1, 41)]
    compared = pd.read_csv(tmp_path / "outputs" / "compare" / "comparison.csv")
    assert {*compared["run"].dropna()} == {"zeroshot", "cnn", "long", "probe"}
    below = shown_below(tmp_path / "outputs")["study"]
    assert {"zeroshot", "cnn", "long", "probe", "probe-crossval", "compare", "audit"} <= {*below}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    started = [line.split()[2] for line in again.stdout.splitlines() if line.startswith("$ clipcovid")]
    assert started == ["prepare", "cnn", "report"]  # which looks for changed files, failed before, and tells of both
    assert "broken" in (tmp_path / "outputs" / "report" / "report.md").read_text()
