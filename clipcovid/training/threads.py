"""How many threads a training computes with, where it does not have the machine to itself."""

import os
import threading
import time
from pathlib import Path

import torch

CHECK_INTERVAL_S = 2.0  # seconds between looks, or a step, where that takes longer
MAX_WAIT_SHARE = 0.3  # share of the time that a thread waited for a core, above which others want the cores
IDLE_CORES = 0.7  # cores that were idle, above which another thread has room
IDLE_CHECKS = 2  # looks in a row at which it has


class ThreadAdapter:
    """Fewer compute threads while other processes want the cores, and all of them again once cores are idle.

    Inside of a convolution threads wait for one another without giving up their cores. Two trainings with a thread for each
    core so spend most of their time waiting for threads that have no core; with one thread each is half as fast as alone.
    """

    def __init__(self, max_threads: int) -> None:
        self.most = self.count = max_threads
        self.roomy = 0
        self.times = _cpu_times() if max_threads > 1 else None

    def adapt(self) -> None:
        """Look now and then at how long this thread waited for a core, and at how long cores were idle."""
        if self.times is None or time.monotonic() - self.times[0] < CHECK_INTERVAL_S:
            return
        before, self.times = self.times, _cpu_times()
        if self.times is None:
            return
        passed, waited, idle = (now - then for now, then in zip(self.times, before, strict=True))
        self.roomy = self.roomy + 1 if idle > IDLE_CORES * passed else 0
        if waited > MAX_WAIT_SHARE * passed and self.count > 1:
            self._set(self.count // 2)
        elif self.roomy >= IDLE_CHECKS and self.count < self.most:
            self._set(min(self.most, self.count * 2))

    def _set(self, count: int) -> None:
        self.count, self.roomy = count, 0
        torch.set_num_threads(count)


def _cpu_times() -> tuple[float, float, float] | None:
    """Seconds: now, that this thread has waited for a core so far, and that cores were idle; None where no kernel says."""
    try:
        waited = int(
            Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text(encoding="utf-8").split()[1]
        )
        ticks = (
            Path("/proc/stat").read_text(encoding="utf-8").split(maxsplit=6)[4:6]
        )  # idle, and idle while a disk works
    except (OSError, IndexError):
        return None
    return time.monotonic(), waited / 1e9, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
