"""Whether two images show the same picture: the coarse position of one on the other, then the fine detail, block by block."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clipcovid.audit.fingerprints import averaging_weights, equalize
from clipcovid.ray_backend.resources import available_cores

CROPS = (0.0, 0.05, 0.1)  # shares that may be missing at a side
SPANS = tuple((low, 1 - high) for low, high in itertools.product(CROPS, CROPS))
COARSE_SIDE = 24  # pixels of thumbnails that are laid on one another
FINE_SIDE = 128  # pixels of images whose detail is compared
BLOCK, REACH = 32, 8  # side of a block, and how far it may lie from its place, in pixels of the fine side
DETAIL_SIGMA = 1.8  # pixels: what varies more slowly is no detail
MIN_CONTRAST = 0.01  # standard deviation of a block's detail, below which it shows nothing
MIN_BLOCKS = 4  # that show something, of two images that can be compared
MIN_CORRELATION = 0.9  # of thumbnails, below which detail is not compared
MIN_AGREEMENT = 0.65  # of the detail, from which on two images are one picture
PAIRS_PER_BLOCK = 32

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Alignment:
    """How pairs of images lie best on one another, (n,) each."""

    correlation: np.ndarray
    """Correlation of the thumbnails' ranks, float32 -1 to 1."""
    rows: np.ndarray
    """Index into `SPANS`: the part of the cropped image's rows that the other shows."""
    columns: np.ndarray
    """The same of its columns."""
    second_cropped: np.ndarray
    """Whether the second image is the one that is cropped to what the first shows, bool."""
    mirrored: np.ndarray
    """Whether one is the other's mirror image, bool."""
    inverted: np.ndarray
    """Whether one is the other's negative, bool."""


def align(first: np.ndarray, second: np.ndarray) -> Alignment:
    """Lay pairs of thumbnails, uint8 (n, 64, 64), on one another: the best crop of either, mirrored or inverted or not."""
    starts = range(0, len(first), PAIRS_PER_BLOCK)
    blocks = [slice(start, start + PAIRS_PER_BLOCK) for start in starts] or [slice(0)]
    parts = _in_threads(lambda block: _align_block(equalize(first[block]), equalize(second[block])), blocks)
    return Alignment(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _align_block(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of `Alignment` of a block of pairs of equalized thumbnails (n, 64, 64)."""
    crops = [_standardized_crops(images) for images in (first, second)]
    wholes = [images[:, 0] for images in crops]
    scores = np.stack(
        [
            np.einsum("ncp,np->nc", cropped, np.ascontiguousarray(whole))
            for cropped, other in ((crops[0], wholes[1]), (crops[1], wholes[0]))
            for whole in (other, other.reshape(-1, COARSE_SIDE, COARSE_SIDE)[:, :, ::-1].reshape(other.shape))
        ],
        axis=1,
    )
    scores = scores.reshape(len(first), 4 * len(SPANS) ** 2)
    best = np.abs(scores).argmax(axis=1)
    score = scores[np.arange(len(first)), best]
    cropped, mirrored, rows, columns = np.unravel_index(best, (2, 2, len(SPANS), len(SPANS)))
    return np.abs(score), rows, columns, cropped == 1, mirrored == 1, score < 0


def _standardized_crops(images: np.ndarray) -> np.ndarray:
    """All crops of images (n, 64, 64) at the coarse side, float32 (n, 81, 1024) of mean 0, norm 1; the first is the whole."""
    weights = np.concatenate([averaging_weights(images.shape[1], COARSE_SIDE, *span) for span in SPANS])
    every = (weights @ images @ weights.T).reshape(len(images), len(SPANS), COARSE_SIDE, len(SPANS), COARSE_SIDE)
    every = every.transpose(0, 1, 3, 2, 4).reshape(len(images), len(SPANS) ** 2, COARSE_SIDE**2)
    every = every - every.mean(axis=2, keepdims=True)
    return every / np.maximum(np.linalg.norm(every, axis=2, keepdims=True), 1e-6)


def compare_detail(first: Sequence[np.ndarray], second: Sequence[np.ndarray], alignment: Alignment) -> np.ndarray:
    """How well the detail of aligned pairs of n gray images, uint8 (h, w) of any size, agrees: float32 (n,) from 0 to 1.

    Each block of one is looked for near its place in the other. Returns the lower quartile over blocks of the best
    correlation: near 1 for copies, whatever was done to contrast, format or size. Pictures of different chests agree in the
    large and along some edges, not everywhere in detail. 0 where fewer than `MIN_BLOCKS` blocks show anything.
    """
    sides = [np.empty((len(first), FINE_SIDE, FINE_SIDE), np.float32) for _ in range(2)]
    for at in range(len(first)):
        rows, columns = SPANS[alignment.rows[at]], SPANS[alignment.columns[at]]
        cropped, whole = (second[at], first[at]) if alignment.second_cropped[at] else (first[at], second[at])
        whole = whole[:, ::-1] if alignment.mirrored[at] else whole
        whole = ~whole if alignment.inverted[at] else whole
        for side, image, spans in ((sides[0], cropped, (rows, columns)), (sides[1], whole, (SPANS[0], SPANS[0]))):
            down, across = (
                averaging_weights(size, FINE_SIDE, *span) for size, span in zip(image.shape, spans, strict=True)
            )
            side[at] = down @ image.astype(np.float32) @ across.T
    return _block_agreement(*(_detail(side) for side in sides))


def _detail(images: np.ndarray) -> np.ndarray:
    """What varies within a few pixels, of grey values' ranks: float32 (n, s, s)."""
    from scipy.ndimage import gaussian_filter

    ranks = equalize(np.rint(images).astype(np.uint8))
    return ranks - gaussian_filter(ranks, (0, DETAIL_SIGMA, DETAIL_SIGMA))


def _block_agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The lower quartile over blocks of `first` of their best correlation near their place in `second`, (n,)."""
    from scipy.fft import irfft2, rfft2

    side, window, lags = first.shape[1], BLOCK + 2 * REACH, 2 * REACH + 1
    starts = np.arange(REACH, side - BLOCK - REACH + 1, BLOCK - REACH)
    blocks = _windows(first, starts, BLOCK)
    blocks = blocks - blocks.mean(axis=(2, 3), keepdims=True)
    product = rfft2(_windows(second, starts - REACH, window), axes=(2, 3))
    product *= np.conj(rfft2(blocks, (window, window), axes=(2, 3)))
    correlation = irfft2(product, (window, window), axes=(2, 3))[:, :, :lags, :lags]
    variance = _windows(_box_sums(second**2) - _box_sums(second) ** 2 / BLOCK**2, starts - REACH, lags)
    norm = np.linalg.norm(blocks, axis=(2, 3))
    visible, floor = norm > MIN_CONTRAST * BLOCK, (MIN_CONTRAST * BLOCK) ** 2
    best = (correlation / np.sqrt(np.maximum(variance, floor))).max(axis=(2, 3)) / np.maximum(norm, 1e-6)
    enough = visible.sum(axis=1) >= MIN_BLOCKS
    agreement = np.zeros(len(first), np.float32)
    agreement[enough] = np.clip(np.nanquantile(np.where(visible, best, np.nan)[enough], 0.25, axis=1), 0, 1)
    return agreement


def _windows(images: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """Squares of images (n, s, s) at all pairs of `starts`: (n, k², size, size)."""
    squares = [images[:, top : top + size, left : left + size] for top in starts for left in starts]
    return np.stack(squares, axis=1)


def _box_sums(images: np.ndarray) -> np.ndarray:
    """Sums over each square of BLOCK pixels a side of images (n, s, s): float64 (n, s - BLOCK + 1, …)."""
    total = np.pad(images, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    rows = total[:, BLOCK:] - total[:, :-BLOCK]
    return rows[:, :, BLOCK:] - rows[:, :, :-BLOCK]


def verify_pairs(
    pairs: np.ndarray, thumbnails: np.ndarray, read_pixels: Callable[[np.ndarray], Sequence[np.ndarray]]
) -> tuple[Alignment, np.ndarray]:
    """The alignment and the agreement of pairs (n, 2) of positions: 0 where their thumbnails are too unlike to be compared.

    `read_pixels` gives gray images uint8 (h, w) of any size at positions (k,), and is called by several threads.
    """
    alignment = align(thumbnails[pairs[:, 0]], thumbnails[pairs[:, 1]])
    scores = np.zeros(len(pairs), np.float32)
    alike = np.flatnonzero(alignment.correlation >= MIN_CORRELATION)

    def compare(rows: np.ndarray) -> None:
        positions, where = np.unique(pairs[rows], return_inverse=True)
        pixels, (first, second) = read_pixels(positions), where.reshape(-1, 2).T
        part = Alignment(*(field[rows] for field in vars(alignment).values()))
        scores[rows] = compare_detail([pixels[at] for at in first], [pixels[at] for at in second], part)

    _in_threads(compare, [alike[start : start + PAIRS_PER_BLOCK] for start in range(0, len(alike), PAIRS_PER_BLOCK)])
    return alignment, scores


def _in_threads(work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
    """The results of all items, worked on by as many threads as there are cores."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(work, items))
