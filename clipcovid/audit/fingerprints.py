"""Fingerprints of images, by which near duplicates are looked for: thumbnails, their ranks, and perceptual hashes."""

import functools

import numpy as np

THUMBNAIL_SIDE = 64  # pixels of a thumbnail's side
HASH_BYTES = 32
DCT_SIDE, HASH_SIDE = 32, 16  # pixels that are transformed, and frequencies a side that are kept
ROWS_PER_BLOCK = 2048  # thumbnails that are worked on at once


@functools.lru_cache(maxsize=1024)
def averaging_weights(size: int, side: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Weights float32 (side, size) that average a line of `size` pixels, from the share `low` to `high`, to `side` pixels.

    Each row sums to 1: a pixel of the outcome is the mean of what it covers, part pixels by their part.
    """
    edges = np.linspace(low * size, high * size, side + 1)
    start = np.maximum(edges[:-1, None], np.arange(size))
    stop = np.minimum(edges[1:, None], np.arange(1, size + 1))
    covered = np.clip(stop - start, 0, None)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Images (n, h, w) of any numbers averaged to float32 (n, side, side)."""
    rows, columns = averaging_weights(images.shape[1], side), averaging_weights(images.shape[2], side)
    return rows @ (images.astype(np.float32) @ columns.T)


def make_thumbnails(images: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 (n, 64, 64) of images uint8 (n, h, w), or (n, h, w, 3) whose channels are averaged."""
    gray = images if images.ndim == 3 else images.mean(axis=-1)
    return np.rint(shrink(gray, THUMBNAIL_SIDE)).astype(np.uint8)


def equalize(images: np.ndarray) -> np.ndarray:
    """Ranks of the grey values within each image, float32 (n, h, w) from -0.5 to 0.5, equal values their middle rank.

    What exposure, gamma or a window change of an image, they do not change of its ranks. `images`: uint8 (n, h, w).
    """
    count, pixels = len(images), images.shape[1] * images.shape[2]
    flat = images.reshape(count, pixels) + 256 * np.arange(count)[:, None]
    histograms = np.bincount(flat.ravel(), minlength=256 * count).reshape(count, 256)
    below = np.cumsum(histograms, axis=1) - histograms
    ranks = ((below + histograms / 2) / pixels - 0.5).astype(np.float32)
    return ranks.ravel()[flat].reshape(images.shape)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Perceptual hashes of 256 bits, uint8 (n, 32), of thumbnails uint8 (n, s, s).

    A bit says whether one of the 16 × 16 lowest frequencies of the cosine transform is above their median (Zauner 2010,
    Implementation and Benchmarking of Perceptual Image Hash Functions).
    """
    from scipy.fft import dctn

    hashes = np.empty((len(thumbnails), HASH_BYTES), np.uint8)
    for start in range(0, len(thumbnails), ROWS_PER_BLOCK):
        small = shrink(thumbnails[start : start + ROWS_PER_BLOCK], DCT_SIDE)
        frequencies = dctn(small, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(len(small), -1)
        above = frequencies > np.median(frequencies, axis=1, keepdims=True)
        hashes[start : start + len(small)] = np.packbits(above, axis=1)
    return hashes
