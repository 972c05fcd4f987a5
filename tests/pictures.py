"""Small images on disk, and what a source lists of them."""

import numpy as np
from PIL import Image

from clipcovid.data.sources import ColumnsConfig, PhantomConfig, list_source


def picture(path, seed=0, size=(40, 40), **how):
    """A random gray image of its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return path


def pictures(root, *names, **how):
    """Images of these names below `root`, each with pixels of its own."""
    for seed, name in enumerate(names):
        picture(root / name, seed, **how)


def mask(path, lit=20, size=(40, 40)):
    """A mask whose first `lit` rows are foreground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[:lit] = 255
    Image.fromarray(pixels).save(path)
    return path


def listed(source, root, images="", version="", **columns):
    return list_source(source, str(root), ColumnsConfig(**columns), PhantomConfig(), None, str(images), version)


def cells(listing, *columns):
    return sorted(map(tuple, listing.table[list(columns)].to_numpy().tolist()))
