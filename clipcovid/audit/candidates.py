"""Which pairs of images may be near duplicates: nearest neighbours by hash, by thumbnail and by embedding.

Nothing here decides: whatever is proposed is verified on pixels. So a search may look at a part of the vectors only.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipcovid.audit.fingerprints import HASH_BYTES, ROWS_PER_BLOCK, averaging_weights, equalize, perceptual_hashes

NEIGHBOURS = 8  # of an image in each group that are looked at
MAX_HASH_DISTANCE = 40  # bits of 256
HASHES_PER_BLOCK = 512  # that are searched at once: all images may be alike
CROP = 0.08  # share of a side that may be missing
CROPS = tuple(itertools.product((0.0, CROP), repeat=4))  # of top, bottom, left and right
NO_CROP = CROPS[0]
MIN_SIMILARITY = 0.5  # of vectors of thumbnails: the directions that images share are taken out of them
SIDE, DIMENSIONS = 16, 128  # of a thumbnail that is searched by, and of the vector that is made of it
MAX_FIT_THUMBNAILS = 8192  # thumbnails that the vectors' directions are found from
FLAT_ROWS = 4096  # vectors up to which all are looked at
VECTORS_PER_LIST = 96  # on average, of those that are searched in part
LISTS_SEARCHED = 8

Proposals = tuple[np.ndarray, np.ndarray]
"""Positions (m, 2) int64 of a query and of its neighbour, and their similarity (m,) float32, the higher the more alike."""


def propose_by_hash(thumbnails: np.ndarray, queries: np.ndarray, others: np.ndarray) -> Iterator[Proposals]:
    """Nearest of `others` to each of `queries` (positions) within `MAX_HASH_DISTANCE` bits, by thumbnails uint8 (n, s, s)."""
    import faiss

    index, hashes = faiss.IndexBinaryFlat(8 * HASH_BYTES), perceptual_hashes(thumbnails[queries])
    index.add(perceptual_hashes(thumbnails[others]))
    for start in range(0, len(queries), HASHES_PER_BLOCK):
        block = slice(start, start + HASHES_PER_BLOCK)
        limits, distances, found = index.range_search(hashes[block], MAX_HASH_DISTANCE + 1)
        ends = limits.astype(np.int64)
        pairs = np.stack([np.repeat(queries[block], ends[1:] - ends[:-1]), others[found]], axis=1)
        other = pairs[:, 0] != pairs[:, 1]
        yield _nearest(pairs[other], (1 - distances[other] / (8 * HASH_BYTES)).astype(np.float32))


def propose_by_vector(vectors: np.ndarray, queries: np.ndarray, others: np.ndarray) -> Proposals:
    """The nearest of `others` to each of `queries` (positions of unit vectors, float32 (n, d)) by their inner product."""
    similarities, found = build_index(vectors[others]).search(vectors[queries], min(NEIGHBOURS + 1, len(others)))
    return _proposals(queries, others, found, similarities)


def center_vectors(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (n, d) float32 without what they have in common: embeddings of similar pictures lie in a narrow cone."""
    vectors = vectors.astype(np.float32)
    return _unit(vectors - vectors.sum(axis=0) / (len(vectors) + DIMENSIONS))


def _proposals(queries: np.ndarray, others: np.ndarray, found: np.ndarray, similarities: np.ndarray) -> Proposals:
    """Neighbours as pairs of positions, without those that are not there (-1) and those of an image with itself."""
    first = np.repeat(queries, found.shape[1])
    second = np.where(found.ravel() >= 0, others[found.ravel()], first)
    real = first != second
    return np.stack([first, second], axis=1)[real], similarities.ravel()[real].astype(np.float32)


def build_index(vectors: np.ndarray) -> Any:
    """An index of unit vectors float32 (n, d) by inner product; of many, a search looks at those in the nearest lists."""
    import faiss

    if len(vectors) <= FLAT_ROWS:
        index: Any = faiss.IndexFlatIP(vectors.shape[1])
    else:
        lists = len(vectors) // VECTORS_PER_LIST
        index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.nprobe = LISTS_SEARCHED
    index.add(vectors)
    return index


class ThumbnailVectors:
    """Unit vectors of thumbnails, cropped or mirrored, in which what all images of a set have in common weighs little."""

    def __init__(self, thumbnails: np.ndarray) -> None:
        """Find the directions in which these thumbnails, uint8 (n, s, s), differ."""
        self.thumbnails = thumbnails
        step = math.ceil(max(len(thumbnails), 1) / MAX_FIT_THUMBNAILS)
        sample = _flat(equalize(thumbnails[::step]), NO_CROP)
        self.polarity = sample.sum(axis=0)
        sample = sample * self._signs(sample)
        self.mean = sample.sum(axis=0) / (len(sample) + DIMENSIONS)  # drawn towards none where images are few
        covariance = (sample - self.mean).T @ (sample - self.mean) / max(len(sample), 1)
        scales, directions = np.linalg.eigh(covariance)
        scales, directions = scales[::-1][:DIMENSIONS], directions[:, ::-1][:, :DIMENSIONS]
        self.weights = directions / np.sqrt(np.maximum(scales, 0) + 4e-3 * scales.sum() + 1e-9)

    def uncropped(self, positions: np.ndarray) -> np.ndarray:
        """Vectors float32 (k, 128) of the thumbnails at these positions."""
        parts = [np.empty((0, DIMENSIONS), np.float32)]
        for start in range(0, len(positions), ROWS_PER_BLOCK):
            ranks = equalize(self.thumbnails[positions[start : start + ROWS_PER_BLOCK]])
            parts.append(self._vectors(ranks, NO_CROP))
        return np.concatenate(parts)

    def variants(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """The same of each crop, and of each crop of the mirror images."""
        ranks = equalize(self.thumbnails[positions])
        for turned in (ranks, np.ascontiguousarray(ranks[:, :, ::-1])):
            for crop in CROPS:
                yield self._vectors(turned, crop)

    def _vectors(self, ranks: np.ndarray, crop: tuple[float, ...]) -> np.ndarray:
        flat = _flat(ranks, crop)
        return _unit((flat * self._signs(flat) - self.mean) @ self.weights)

    def _signs(self, flat: np.ndarray) -> np.ndarray:
        """-1 for a negative, by its correlation with the mean image, else 1: (n, 1)."""
        return np.where(flat @ self.polarity < 0, -1, 1).astype(np.float32)[:, None]


def propose_by_thumbnail(space: ThumbnailVectors, queries: np.ndarray, others: np.ndarray) -> Iterator[Proposals]:
    """The nearest of `others` to each of `queries`, at the best of its crops and mirrored crops, in blocks of queries."""
    index = build_index(space.uncropped(others))
    for start in range(0, len(queries), ROWS_PER_BLOCK):
        block = queries[start : start + ROWS_PER_BLOCK]
        found = [index.search(vectors, min(NEIGHBOURS + 1, len(others))) for vectors in space.variants(block)]
        similarities, neighbours = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        near = np.where(similarities >= MIN_SIMILARITY, neighbours, -1)
        yield _nearest(*_proposals(block, others, near, similarities))


def _nearest(pairs: np.ndarray, similarities: np.ndarray) -> Proposals:
    """Each pair once, at its best, and the `NEIGHBOURS` best of each query."""
    order = np.lexsort((-similarities, pairs[:, 1], pairs[:, 0]))
    pairs, similarities = pairs[order], similarities[order]
    single = np.ones(len(pairs), bool)
    single[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    pairs, similarities = pairs[single], similarities[single]
    order = np.lexsort((-similarities, pairs[:, 0]))
    pairs, similarities = pairs[order], similarities[order]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
    return pairs[rank < NEIGHBOURS], similarities[rank < NEIGHBOURS]


def _flat(ranks: np.ndarray, crop: tuple[float, ...]) -> np.ndarray:
    """A part of equalized thumbnails (n, s, s) as vectors (n, 256) of mean 0 and norm 1."""
    top, bottom, left, right = crop
    rows = averaging_weights(ranks.shape[1], SIDE, top, 1 - bottom)
    columns = averaging_weights(ranks.shape[2], SIDE, left, 1 - right)
    flat = (rows @ (ranks @ columns.T)).reshape(len(ranks), SIDE**2)
    return _unit(flat - flat.mean(axis=1, keepdims=True))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)
