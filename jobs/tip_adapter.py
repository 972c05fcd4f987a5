"""Add a memory of training images to zero-shot CLIP (Tip-Adapter), as it is and trained (Tip-Adapter-F).

    python jobs/tip_adapter.py --data data/phantom --clip.model tiny --clip.pretrained none
    python jobs/tip_adapter.py --data data/quex --clip.pretrained openai --prompts ensemble --shots 1 2 4 8 16

The memory holds the embeddings of the training images: a few shots a class, or all of them. How much it weighs, and how
near an image has to be, is chosen on the validation split. Several numbers of shots draw a curve.
"""

from clipcovid.config import run_job
from clipcovid.methods.registry import TipAdapterConfig
from clipcovid.workflows.train import train_or_curve


def main(config: TipAdapterConfig) -> None:
    """Train one, or a curve of them."""
    train_or_curve(config)


if __name__ == "__main__":
    run_job(TipAdapterConfig, main, __doc__)
