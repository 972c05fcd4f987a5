import os
import sys

import pytest
import ray

from clipcovid.config import ComputeConfig, UserError
from clipcovid.ray_backend.map import parallel_map
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources, resolve_precision

LAPTOP = [(2.0, 0.0)]
SERVER = [(16.0, 1.0)]
TWO = [(8.0, 2.0), (8.0, 2.0)]


@pytest.mark.parametrize(
    ("have", "gpu", "workers", "device"),
    [
        (LAPTOP, False, 2, "cpu"),
        (LAPTOP, True, 2, "cpu"),
        (SERVER, True, 1, "cuda"),
        (TWO, True, 4, "cuda"),
        (TWO, False, 16, "cpu"),
    ],
)
def test_defaults_fill_the_cluster_and_no_more(have, gpu, workers, device):
    chosen = plan_resources(ComputeConfig(), have, gpu=gpu)
    assert (chosen.workers, chosen.device) == (workers, device)
    assert chosen.workers * chosen.cpus_per_worker <= sum(cpu for cpu, _ in have)
    assert chosen.workers * chosen.gpus_per_worker <= sum(gpu for _, gpu in have)


def test_no_more_workers_than_pieces_of_work():
    assert plan_resources(ComputeConfig(), [(64.0, 0.0)], gpu=False, items=3).workers == 3


@pytest.mark.parametrize(
    "asked",
    [
        {"workers": 3, "cpus_per_worker": 1.0},
        {"cpus_per_worker": 4.0},
        {"gpus_per_worker": 1.0},
        {"workers": 100, "cpus_per_worker": 0.1},
    ],
)
def test_asking_for_more_than_there_is_ends_at_once_with_the_way_out(asked):
    with pytest.raises(UserError, match=r"do not fit: the cluster has 2 CPUs and 0 GPUs.*--compute\.workers"):
        plan_resources(ComputeConfig(**asked), LAPTOP, gpu=True)


def test_a_worker_must_fit_on_one_node():
    with pytest.raises(UserError, match="room for 0"):
        plan_resources(ComputeConfig(workers=1, cpus_per_worker=12.0), [(8.0, 0.0), (8.0, 0.0)], gpu=False)


def test_more_workers_than_cores_share_them():
    chosen = plan_resources(ComputeConfig(workers=5), LAPTOP, gpu=False)
    assert chosen.workers == 5
    assert chosen.workers * chosen.cpus_per_worker <= 2


def test_workers_that_train_together_have_a_core_each():
    with pytest.raises(UserError, match=r"5 workers of 1 CPU each .* has 2 CPUs .* room for 2"):
        plan_resources(ComputeConfig(workers=5), LAPTOP, gpu=True, oversubscribe=False)
    assert plan_resources(ComputeConfig(workers=2), LAPTOP, gpu=True, oversubscribe=False).cpus_per_worker == 1
    assert (
        plan_resources(ComputeConfig(workers=4, cpus_per_worker=0.5), LAPTOP, gpu=True, oversubscribe=False).workers
        == 4
    )
    assert plan_resources(ComputeConfig(workers=2), [(1.0, 2.0)], gpu=True, oversubscribe=False).workers == 2, (
        "GPUs do the work"
    )


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(UserError, match="do not fit"):
        plan_resources(ComputeConfig(), [(0.0, 0.0)], gpu=False)


@pytest.mark.parametrize(("field", "value"), [("workers", -1), ("threads", 0), ("batch_size", 0)])
def test_too_small_numbers_are_refused(field, value):
    with pytest.raises(UserError, match=field.replace("_", "-")):
        ComputeConfig(**{field: value})


def test_no_workers_is_this_process_with_all_its_cores():
    chosen = plan_resources(ComputeConfig(workers=0), [], gpu=False)
    assert (chosen.workers, chosen.device) == (0, "cpu")
    assert chosen.threads == len(os.sched_getaffinity(0))
    assert plan_resources(ComputeConfig(workers=0, threads=1), [], gpu=False).threads == 1


def test_half_precision_is_not_for_cpus():
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")
    assert resolve_precision("auto", "cuda") == "bf16"
    assert resolve_precision("fp32", "cuda") == "fp32"


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import a test's module
ONE = ResourcePlan(workers=1, cpus_per_worker=1, gpus_per_worker=0, threads=1, batch_size=1)


def double(item, *, by):
    if item["n"] == 13:
        raise UserError("Thirteen is not doubled: leave it out.")
    return {"n": item["n"] * by, "images": 1}


class Crash:
    """Dies at its first item, as if killed: every time, or once."""

    def __init__(self, *, marker, always):
        self.marker, self.always = marker, always

    def __call__(self, item):
        import os

        if self.always or not self.marker.exists():
            self.marker.touch()
            os._exit(9)
        return item | {"images": 1}


def test_a_cluster_of_ours_keeps_its_sockets_where_their_paths_are_short(cluster):
    assert ray.get_runtime_context().get_temp_dir() == "/tmp/ray"


def test_every_item_is_worked_on_once(cluster):
    items = [{"n": n} for n in range(12)]
    results = list(parallel_map(items, double, ONE, total=12, label="", settings={"by": 2}))
    assert sorted(result["n"] for result in results) == list(range(0, 24, 2))


def test_a_users_mistake_in_a_worker_is_raised_as_it_was(cluster):
    with pytest.raises(UserError, match=r"^Thirteen is not doubled: leave it out\.$"):
        list(parallel_map([{"n": 1}, {"n": 13}], double, ONE, total=2, label="", settings={"by": 2}))


def test_nothing_to_do_starts_nothing():
    assert list(parallel_map([], double, ONE, total=0, label="", settings={})) == []


class Laden:
    """Carries what does not fit into a task's description."""

    def __init__(self, *, ballast):
        self.size = len(ballast)

    def __call__(self, item):
        return item | {"images": 1, "size": self.size}


def test_large_settings_reach_actors_and_ray_says_nothing(cluster, capfd):
    results = list(parallel_map([{"n": 1}], Laden, ONE, total=1, label="", settings={"ballast": bytes(10**6)}))
    assert results[0]["size"] == 10**6
    assert "very large" not in capfd.readouterr().err


def test_a_worker_that_dies_once_is_replaced_and_its_item_done(cluster, tmp_path):
    settings = {"marker": tmp_path / "died", "always": False}
    results = list(parallel_map([{"n": n} for n in range(3)], Crash, ONE, total=3, label="", settings=settings))
    assert sorted(result["n"] for result in results) == [0, 1, 2]


def test_a_worker_that_dies_again_and_again_ends_the_job_with_a_sentence(cluster, tmp_path):
    settings = {"marker": tmp_path / "died", "always": True}
    with pytest.raises(UserError, match="A worker died 3 times"):
        list(parallel_map([{"n": 1}], Crash, ONE, total=1, label="", settings=settings))
