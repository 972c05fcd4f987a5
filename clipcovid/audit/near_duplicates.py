"""Near duplicates: pairs of images that show one picture, though their pixels differ.

Three stages propose pairs (perceptual hashes, thumbnails over crops and mirror images, embeddings where there are any), and
each proposed pair is verified on its pixels. Pairs are reported, never chains of them: what is like a duplicate of a
duplicate may be unlike the first.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from clipcovid.audit.alignment import MIN_AGREEMENT, verify_pairs
from clipcovid.audit.candidates import (
    NEIGHBOURS,
    Proposals,
    ThumbnailVectors,
    center_vectors,
    propose_by_hash,
    propose_by_thumbnail,
    propose_by_vector,
)

MAX_VERIFIED = 20_000  # pairs of a stage that are verified, the most alike ones: minutes on two cores

ReadPixels = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Gray images uint8 (h, w) at positions (k,)."""
Search = tuple[np.ndarray, np.ndarray]
"""Positions of the images whose duplicates are looked for, and of those among which."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """What a search for near duplicates found."""

    pairs: pd.DataFrame
    """`first`, `second` (positions, first < second), `score` (agreement of detail, 0 to 1), `correlation` (of thumbnails),
    `mirrored`, `inverted` (bool), `found_by` (the first stage that proposed the pair); the most alike first."""
    verified: int
    """Pairs that were proposed and verified on pixels."""
    min_similarities: dict[str, float]
    """The least similarity of a pair that was verified, of each stage that proposed more than `MAX_VERIFIED` pairs."""
    saturated_images: int
    """Images with as many duplicates as neighbours are looked at: they may have more."""

    def __post_init__(self) -> None:
        assert len(self.pairs) <= self.verified
        assert (self.pairs["first"] < self.pairs["second"]).all()
        assert not self.pairs.duplicated(["first", "second"]).any()


def find_near_duplicates(
    thumbnails: np.ndarray,
    read_pixels: ReadPixels,
    searches: Sequence[Search],
    *,
    embeddings: np.ndarray | None = None,
) -> NearDuplicates:
    """Near duplicates among images, of which `thumbnails` are uint8 (n, 64, 64).

    `searches`: what to look for among what; of each image the `NEIGHBOURS` nearest in each search are looked at. So a
    duplicate in the training split is found however many others there are in the test split. `embeddings`: unit vectors
    (n, d), if there are any.
    """
    pairs, floors = propose_pairs(thumbnails, searches, embeddings=embeddings)
    found = keep_duplicates(pairs, thumbnails, read_pixels)
    return NearDuplicates(
        pairs=found, verified=len(pairs), min_similarities=floors, saturated_images=_count_full(found)
    )


def propose_pairs(
    thumbnails: np.ndarray,
    searches: Sequence[Search],
    *,
    embeddings: np.ndarray | None = None,
    floors: Mapping[str, float] | None = None,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Pairs to be verified, `first`, `second`, `found_by`, each once; and `NearDuplicates.min_similarities`.

    Other arguments as of `find_near_duplicates`. `min_similarities`: the least similarity of a pair that a stage proposes.
    """
    searches = [(queries, others) for queries, others in searches if len(queries) and len(others)]
    space = ThumbnailVectors(thumbnails)
    proposers: dict[str, Callable[[Search], Iterable[Proposals]]] = {
        "hash": lambda search: propose_by_hash(thumbnails, *search),
        "thumbnail": lambda search: propose_by_thumbnail(space, *search),
    }
    if embeddings is not None:
        centred = center_vectors(embeddings)
        proposers["embedding"] = lambda search: [propose_by_vector(centred, *search)]
    tables, cut = list[pd.DataFrame](), dict[str, float]()
    for stage, propose in proposers.items():
        floor = (floors or {}).get(stage, -np.inf)
        proposals = (_most_alike(proposal, floor) for search in searches for proposal in propose(search))
        table = _unique_pairs(proposals).assign(found_by=stage)
        if len(table) > MAX_VERIFIED:
            table = table.head(MAX_VERIFIED)
            cut[stage] = float(table["similarity"].iloc[-1])
        tables.append(table.drop(columns="similarity"))
    return pd.concat(tables, ignore_index=True).drop_duplicates(["first", "second"], ignore_index=True), cut


def keep_duplicates(pairs: pd.DataFrame, thumbnails: np.ndarray, read_pixels: ReadPixels) -> pd.DataFrame:
    """The proposed pairs whose pixels agree, as `NearDuplicates.pairs` has them."""
    alignment, scores = verify_pairs(pairs[["first", "second"]].to_numpy(), thumbnails, read_pixels)
    columns = {name: getattr(alignment, name) for name in ("correlation", "mirrored", "inverted")}
    pairs = pairs.assign(score=scores, **columns)
    alike = pairs[pairs["score"] >= MIN_AGREEMENT]
    return alike.sort_values(["score", "first", "second"], ascending=[False, True, True], ignore_index=True)


def _most_alike(proposals: Proposals, floor: float) -> Proposals:
    """Those above the floor; at most twice `MAX_VERIFIED`, for a pair may be proposed from both of its images."""
    pairs, similarities = proposals
    pairs, similarities = pairs[similarities >= floor], similarities[similarities >= floor]
    if len(pairs) > 2 * MAX_VERIFIED:
        best = np.argpartition(-similarities, 2 * MAX_VERIFIED)[: 2 * MAX_VERIFIED]
        pairs, similarities = pairs[best], similarities[best]
    return pairs, similarities


def _unique_pairs(proposals: Iterable[Proposals]) -> pd.DataFrame:
    """`first`, `second`, `similarity`: each pair once, at its best, the most alike first."""
    collected = [(np.empty((0, 2), np.int64), np.empty(0, np.float32)), *proposals]
    pairs = np.sort(np.concatenate([pairs for pairs, _ in collected]), axis=1)
    similarities = np.concatenate([similarities for _, similarities in collected])
    table = pd.DataFrame({"first": pairs[:, 0], "second": pairs[:, 1], "similarity": similarities})
    table = table.sort_values(["similarity", "first", "second"], ascending=[False, True, True])
    return table.drop_duplicates(["first", "second"], ignore_index=True)


def _count_full(pairs: pd.DataFrame) -> int:
    """How many images have at least `NEIGHBOURS` duplicates."""
    return int((pd.concat([pairs["first"], pairs["second"]]).value_counts() >= NEIGHBOURS).sum())
