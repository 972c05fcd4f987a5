"""Train an image classifier of timm: a CNN or a vision transformer.

    python jobs/cnn.py --data data/phantom --arch resnet18 --weights none
    python jobs/cnn.py --data data/quex --arch vit_base_patch16_224 --weights vit.safetensors --compute.workers 2

Killed and run again, it goes on after the last epoch that it finished.
"""

from clipcovid.config import run_job
from clipcovid.methods.registry import CnnConfig
from clipcovid.workflows.train import train


def main(config: CnnConfig) -> None:
    """Train, then show the run."""
    train(config)


if __name__ == "__main__":
    run_job(CnnConfig, main, __doc__)
