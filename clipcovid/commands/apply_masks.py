"""Make a data set of what masks leave of another's images.

    clipcovid apply-masks --data data/phantom --keep lungs --out data/phantom-lungs
    clipcovid predict --run outputs/segment --data data/quex --split all --name masks
    clipcovid apply-masks --data data/quex --masks outputs/masks/predictions/all.parquet --out data/quex-lungs

Keeps the lungs only, blacks them out, keeps the infection only, or crops to the lungs. Every other job runs on the set.
What a method scores on blacked-out lungs, it did not learn from the lungs.
"""

from clipcovid.data.manifest import read_manifest
from clipcovid.data.masked import ApplyMasksConfig, apply_masks, lost_classes


def main(config: ApplyMasksConfig) -> None:
    """Write the masked data set, and print its size."""
    masked, source = apply_masks(config), read_manifest(config.data)
    print(f"{masked.dataset}: {len(masked.table)} images in {config.out}.")
    if left_out := len(source.table) - len(masked.table):
        print(f"{left_out} images are left out: {config.out / 'quarantine.parquet'} says why.")
    for sentence in lost_classes(source, masked):
        print(f"warning: {sentence}")
    if config.keep == "infection" and config.masks is None:
        print("note: with true masks, images without an infection are black: their class can be read off that alone.")
