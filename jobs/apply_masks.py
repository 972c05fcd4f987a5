"""Make a prepared data set of what masks leave of another's images: lungs only, lungs black, infection only, cropped.

    python jobs/apply_masks.py --data data/phantom --keep lungs --out data/phantom-lungs
    python jobs/predict.py --run outputs/segment --data data/quex --split all --name masks
    python jobs/apply_masks.py --data data/quex --masks outputs/masks/predictions/all.parquet --out data/quex-lungs

Every other job runs on it. What a method scores on blacked-out lungs, it did not learn from the lungs.
"""

from clipcovid.config import run_job
from clipcovid.data.manifest import read_manifest
from clipcovid.data.masked import MaskedConfig, apply_masks


def main(config: MaskedConfig) -> None:
    """Write the set, and say what is in it."""
    made, source = apply_masks(config), read_manifest(config.data)
    print(f"{made.dataset}: {len(made.table)} images in {config.out}.")
    if left_out := len(source.table) - len(made.table):
        print(f"{left_out} images are left out: {config.out / 'quarantine.parquet'} says why.")
    if config.keep == "infection" and config.masks is None:
        print("note: with true masks, images without an infection are black: their class can be read off that alone.")


if __name__ == "__main__":
    run_job(MaskedConfig, main, __doc__)
