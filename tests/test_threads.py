import pytest
import torch

from clipcovid.training import threads
from clipcovid.training.threads import ThreadAdapter

ALONE, OTHER_JOBS_FILES, LEFT = (0.1, 0.2), (1.0, 0.0), (0.0, 2.0)  # seconds waited and cores idle, in two


@pytest.fixture
def machine(monkeypatch):
    """Plays two seconds of the machine at each look; gives how many threads the training had in each."""
    clock = {"now": 0.0, "waited": 0.0, "idle": 0.0}
    monkeypatch.setattr(threads, "_cpu_times", lambda: tuple(clock.values()))
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)

    def play(most, seconds):
        training, counts = ThreadAdapter(most), []
        for waited, idle in seconds:
            clock["now"] += threads.CHECK_INTERVAL_S
            clock["waited"] += waited
            clock["idle"] += idle
            training.adapt()
            counts.append(training.count)
        return counts

    return play


def test_alone_a_training_keeps_its_threads(machine):
    assert machine(2, [ALONE] * 50) == [2] * 50


def test_beside_another_it_has_fewer_and_alone_again_all(machine):
    assert machine(2, [OTHER_JOBS_FILES] * 2 + [(0.0, 0.2)] * 5 + [LEFT] * 3) == [1] * 2 + [1] * 5 + [1, 2, 2]


def test_cores_that_are_idle_for_a_moment_are_left_to_others(machine):
    assert machine(2, [OTHER_JOBS_FILES] + [LEFT, ALONE] * 4) == [1] * 9


def test_threads_are_halved_down_to_one(machine):
    assert machine(6, [OTHER_JOBS_FILES] * 8) == [3, 1, 1, 1, 1, 1, 1, 1]


def test_the_kernel_tells_the_times_where_it_can():
    before = threads._cpu_times()
    sum(range(10**6))
    after = threads._cpu_times()
    assert before is None or all(now >= then for now, then in zip(after, before, strict=True))


def test_where_no_kernel_tells_nothing_changes(monkeypatch):
    monkeypatch.setattr(threads, "_cpu_times", lambda: None)
    training = ThreadAdapter(2)
    training.adapt()
    assert training.count == 2
