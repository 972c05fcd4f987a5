"""Seeds of random streams, each from the counters that it stands for, so that any part of a run can be drawn anew."""

import hashlib


def stream_seed(stream: str, *counters: int) -> int:
    """A seed from 0 to 2**63 − 1 that follows from a stream's name and its counters (seed, epoch, rank, row …) alone.

    The same in every process and on every machine, which Python's `hash` is not (`hash(-1) == hash(-2)`), and other
    streams are independent of it even where their counters agree.
    """
    text = repr((stream, *map(int, counters)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
