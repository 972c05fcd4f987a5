"""Retrieval both ways: from an image to its caption among all captions, and from a caption to its images among all."""

from collections.abc import Sequence

import numpy as np

RECALL_AT = (1, 5, 10)
CHUNK_SIZE = 1024  # queries whose similarities are held at once


def retrieval_ranks(images: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the best hit of each image among all captions, and of each caption among all images, (n,) int64, best 1.

    `images` and `texts` (n, d) are features of n pairs, `captions` their texts: equal captions, and images of equal
    captions, are hits. A miss that is as similar as the best hit stands before it, so that equal features score nothing;
    a wrong caption that many images have stands there as often as they have it.
    """
    _, keys = np.unique(np.asarray(captions, str), return_inverse=True)
    return _ranks(images, texts, keys), _ranks(texts, images, keys)


def _ranks(queries: np.ndarray, gallery: np.ndarray, keys: np.ndarray) -> np.ndarray:
    best_ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        similar = queries[chunk].astype(np.float32) @ gallery.astype(np.float32).T
        hits = keys[chunk, None] == keys[None]
        best = np.where(hits, similar, -np.inf).max(axis=1, keepdims=True)
        best_ranks[chunk] = 1 + (~hits & ~(similar < best)).sum(axis=1)  # what is no number comes last
    return best_ranks


def nearest(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The row of `gallery` (m, d) most similar to each of `queries` (n, d), (n,) int64."""
    rows = gallery.astype(np.float32)
    parts = [queries[at : at + CHUNK_SIZE].astype(np.float32) @ rows.T for at in range(0, len(queries), CHUNK_SIZE)]
    return np.concatenate([part.argmax(axis=1) for part in parts]) if parts else np.empty(0, np.int64)


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    """recall_1, recall_5, recall_10, median_rank and mrr (the mean reciprocal rank) of ranks (n,)."""
    recalls = {f"recall_{depth}": float((ranks <= depth).mean()) for depth in RECALL_AT}
    return recalls | {"median_rank": float(np.median(ranks)), "mrr": float((1 / ranks).mean())}
