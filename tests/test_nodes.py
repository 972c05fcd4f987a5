"""A cluster of several machines, which this one plays; one of them dies."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import interruptible

ROOT = Path(__file__).parents[1]
STARTS_WITHIN = 10  # seconds that Ray Train waits for workers: a minute, but for this test


@pytest.fixture
def training(phantoms, tmp_path):
    """A training on two nodes, one of which dies after the second epoch; gives its process."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    command = ["jobs/cnn.py", "--data", phantoms, "--out", tmp_path, "--weights", "none", "--image-size", 32]
    command += ["--optim.epochs", 10000, "--optim.batch-size", 16]
    command += ["--compute.address", cluster.address, "--compute.workers", 2]
    environment = os.environ | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(STARTS_WITHIN)}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        preexec_fn=interruptible,
    )
    for line in process.stdout:
        if "epoch 2/10000 · train" in line:
            break
    cluster.remove_node(other, allow_graceful=False)
    yield process
    process.kill()
    cluster.shutdown()


@pytest.mark.faults
def test_a_node_that_is_gone_for_good_ends_the_training_with_a_sentence(training):
    said, _ = training.communicate(timeout=150)
    assert training.returncode == 2, said
    assert re.search(r"error: 2 workers of 1 CPU .* could not be started: the cluster has 1 CPUs .* on 1 node", said), (
        said
    )
    assert "Traceback" not in said


@pytest.mark.faults
def test_a_training_that_waits_for_a_node_can_be_interrupted(training):
    time.sleep(STARTS_WITHIN / 2)
    training.send_signal(signal.SIGINT)
    said, _ = training.communicate(timeout=60)
    assert training.returncode == 130, said
    assert "Interrupted: run the same command again" in said
    assert "Traceback" not in said
