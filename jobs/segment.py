"""Train a segmentation network for lungs, infections or both.

    python jobs/segment.py --data data/phantom --target both --weights none
    python jobs/segment.py --data data/quex --target infection --arch unetplusplus --encoder efficientnet-b0
    python jobs/crossval.py segment --data data/seg100 --target lung --weights none

Only images that have the masks are used. Killed and run again, it goes on after the last epoch that it finished.
"""

from clipcovid.config import run_job
from clipcovid.methods.registry import SegmentConfig
from clipcovid.workflows.train import train


def main(config: SegmentConfig) -> None:
    """Train, then show the run."""
    train(config)


if __name__ == "__main__":
    run_job(SegmentConfig, main, __doc__)
