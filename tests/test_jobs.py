"""Whole jobs, as a user runs them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipcovid.ray_backend.cluster import OWN_CLUSTER_VARIABLE
from clipcovid.tracking.provenance import REVISION_VARIABLE

ROOT = Path(__file__).parents[1]
TINY = ["--clip.model", "tiny", "--clip.pretrained", "none"]
LOCAL, HERE = ["--compute.address", "local"], ["--compute.workers", "0"]


def job(name, *args, **settings):
    command = [sys.executable, ROOT / "jobs" / f"{name}.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, **settings)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A red and a blue photograph, one of them a WebP named .png, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    ramp = np.linspace(60, 255, 200).astype(np.uint8)
    for name, channel, kind in (("red.jpg", 0, "JPEG"), ("blue.png", 2, "WebP")):
        pixels = np.zeros((150, 200, 3), np.uint8)
        pixels[..., channel] = ramp
        Image.fromarray(pixels).save(folder / name, kind)
    (folder / "page.png").write_text("<html>not found</html>")
    return folder


def test_the_way_through_from_phantoms_to_mlflow(tmp_path):
    data, out = tmp_path / "data", tmp_path / "outputs"
    prepared = job("prepare", "--out", data, "--phantom.images", 90, "--phantom.size", 96, *HERE)
    assert prepared.returncode == 0, prepared.stderr
    assert "Quarantined: 0." in prepared.stdout
    scored = job("zeroshot", "--data", data, "--out", out, "--name", "mine", *TINY, *HERE)
    assert scored.returncode == 0, scored.stderr
    assert "Research use only, not for diagnosis." in scored.stdout
    assert "mlflow ui --backend-store-uri" in scored.stdout
    assert (out / "mine" / "_SUCCESS").exists()
    assert (out / "mlflow.db").exists()
    assert not re.search(r"Traceback|WARNING|Deprecat", scored.stderr)
    assert not (ROOT / "mlruns").exists()

    # What zero-shot wrote, the scorer of foreign predictions scores the same.
    table = pd.read_parquet(out / "mine" / "predictions" / "test.parquet")
    table.drop(columns=["label", "patient_id"]).to_csv(tmp_path / "predictions.csv", index=False)
    table[["image_id", "label", "patient_id"]].to_json(tmp_path / "truth.json", orient="records")
    again = job(
        "evaluate", "--predictions", tmp_path / "predictions.csv", "--ground-truth", tmp_path / "truth.json", "--json"
    )
    assert again.returncode == 0, again.stderr
    ours = json.loads((out / "mine" / "metrics.json").read_text())["test"]
    theirs = json.loads(again.stdout)
    assert theirs["metrics"].pop("accuracy") == ours["metrics"]["accuracy"]
    assert theirs["intervals"]["intervals"]["macro_f1"] == pytest.approx(ours["intervals"]["intervals"]["macro_f1"])


def test_classify_gives_every_image_its_probabilities(photos):
    done = job("classify", photos / "red.jpg", photos / "blue.png", "--classes", "red, green, blue", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [Path(entry["image"]).name for entry in found] == ["red.jpg", "blue.png"]
    for entry in found:
        values = list(entry["probabilities"].values())
        assert set(entry["probabilities"]) == {"red", "green", "blue"}
        assert sum(values) == pytest.approx(1)
        assert values == sorted(values, reverse=True)
    assert found[0]["probabilities"] != found[1]["probabilities"]  # colour is seen


def test_classify_names_a_bad_image_and_prints_the_top_of_the_others(photos):
    done = job("classify", photos / "red.jpg", photos / "page.png", photos / "gone.png", "--top", 1, *TINY)
    assert done.returncode == 2
    assert len(re.findall(r"0\.\d{4}", done.stdout)) == 1
    assert "not for diagnosis" in done.stdout
    assert re.search(r"error: .*page\.png: is an HTML page.*gone\.png: file not found", done.stderr)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--classes", "only one"], "two or more different texts"),
        (["--classes", "same, same"], "two or more different texts"),
        (["--top", "0"], "--top 0 must be at least 1"),
        (["--clip.pretrained", "openai", "--clip.model", "tiny"], "tiny has no published weights"),
    ],
)
def test_classify_says_what_is_wrong(photos, args, says):
    done = job("classify", photos / "red.jpg", *args)
    assert done.returncode == 2
    assert says in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr + done.stdout).split())
    assert "Traceback" not in done.stderr


def test_a_missing_data_folder_says_how_to_make_it(tmp_path):
    for name in ("embed", "zeroshot"):
        done = job(name, "--data", tmp_path / "nowhere", *TINY)
        assert done.returncode == 2
        assert "clipcovid prepare" in done.stderr


@pytest.fixture(scope="module")
def dashboard():
    """The address of the dashboard of a running `ray start --head` with two CPUs."""
    ray = Path(sys.executable).parent / "ray"
    ports = [free_port() for _ in range(3)]
    here = ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", "--num-cpus", "2", "--block"]
    here += ["--port", ports[0], "--dashboard-port", ports[1], "--dashboard-agent-listen-port", ports[2]]
    head = subprocess.Popen(
        [ray, "start", "--head", *map(str, here), "--disable-usage-stats"],
        env=head_environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield f"http://127.0.0.1:{ports[1]}"
    head.terminate()  # it ends its own processes in order
    head.wait(60)


def head_environment():
    """Of a cluster with a token, and of who submits to it."""
    own = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", OWN_CLUSTER_VARIABLE)}
    return own | {"RAY_TMPDIR": "/tmp", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "a"}


def submit(dashboard, name, *args, flags=()):
    """The finished `ray job submit` of jobs/NAME.py, sent again until the cluster takes jobs."""
    command = [Path(sys.executable).parent / "ray", "job", "submit", "--address", dashboard, "--working-dir", ROOT]
    command += ["--runtime-env-json", json.dumps({"env_vars": {REVISION_VARIABLE: "1a2b3c4d"}}), *flags]
    command += ["--", sys.executable, f"jobs/{name}.py", *args]
    for _ in range(60):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=head_environment())
        said = done.stdout + done.stderr
        if not any(starting in said for starting in ("Failed to connect", "No available agent")):
            break
        time.sleep(1)
    return done


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "flags"),
    [("zeroshot", []), ("finetune", ["--compute.workers", 2, "--optim.epochs", 1, "--optim.batch-size", 20])],
)
def test_a_submitted_job_succeeds_on_a_running_cluster(dashboard, tmp_path, name, flags):
    """`ray start --head`, then `ray job submit`: the submission's exit status is the job's."""
    data, out = tmp_path / "data", tmp_path / "outputs"
    assert job("prepare", "--out", data, "--phantom.images", 60, "--phantom.size", 96, *LOCAL).returncode == 0
    done = submit(dashboard, name, "--data", data, "--out", out, "--name", "sent", *TINY, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("succeeded", done.stdout + done.stderr, re.IGNORECASE)
    assert (out / "sent" / "_SUCCESS").exists()
    run = tracked(out)
    assert (run.info.status, run.data.tags["mlflow.source.git.commit"]) == ("FINISHED", "1a2b3c4d")


def tracked(out):
    """The one run that MLflow shows of this folder."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("clipcovid")
    (found,) = client.search_runs([experiment.experiment_id]) if experiment else [None]
    return found


@pytest.mark.faults
def test_a_submitted_job_that_is_stopped_is_shown_as_killed(dashboard, phantoms, tmp_path):
    flags = ["--optim.epochs", 5000, "--optim.batch-size", 16, "--compute.workers", 1]
    sent = submit(dashboard, "finetune", "--data", phantoms, "--out", tmp_path, *TINY, *flags, flags=["--no-wait"])
    assert sent.returncode == 0, sent.stdout + sent.stderr
    (job_id,) = set(re.findall(r"raysubmit_\w+", sent.stdout + sent.stderr))

    def wait_for(status):
        until = time.time() + 120
        while time.time() < until:
            if (tmp_path / "mlflow.db").exists() and (run := tracked(tmp_path)) and run.info.status == status:
                return
            time.sleep(1)
        pytest.fail(f"not {status}")

    wait_for("RUNNING")
    command = [Path(sys.executable).parent / "ray", "job", "stop", "--address", dashboard, job_id]
    subprocess.run(command, env=head_environment(), check=True, capture_output=True)
    wait_for("KILLED")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
