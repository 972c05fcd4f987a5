"""Search among a data set's images or captions, by words or by an image: over the stored embeddings, with faiss.

exact compares with every vector, kept as float16. ivf and hnsw look at a part of them (inverted lists, Jégou et al. 2011;
navigable graphs, Malkov and Yashunin 2018): for millions of rows. They are built once and kept beside the embeddings.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import ClipConfig, ComputeConfig, EmbeddingsConfig, ImagesConfig, UserError
from clipcovid.data.captions import TEMPLATE, make_captions
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.images import BadImage, fit_image, open_image, pixel_hash
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.identity import digest, search_identity
from clipcovid.inference.embed import EmbedConfig, embed, embeddings_identity
from clipcovid.io.files import atomic_write, write_json
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import Clip, default_device

MIN_RECALL = 0.95  # of the ten nearest, that an index which looks at a part of the vectors must find
TIE_TOLERANCE = 1e-3  # what float16 may change of a similarity
CALIBRATION_QUERIES = 200  # vectors that it is tried with
SEARCH_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GRAPH_NEIGHBOURS = 32  # of each node of a graph
IndexKind = Literal["exact", "ivf", "hnsw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(EmbeddingsConfig):
    """What to search for, and where."""

    data: Path
    """A prepared folder."""
    run: Path | None = None
    """A finished run of clipcovid caption or clipcovid finetune whose encoders to use. Default: --clip."""
    clip: ClipConfig = ClipConfig()
    """The encoders, without --run."""
    text: tuple[str, ...] = ()
    """Words to search by."""
    image: tuple[str, ...] = ()
    """Image files or URIs to search by."""
    find: Literal["images", "captions"] = "images"
    """What to find."""
    top: int = 10
    """How many."""
    where: tuple[str, ...] = ()
    """Only images with these values of the manifest's columns, e.g. split=train label=COVID-19; one of those of a column."""
    captions: str = "dataset"
    """The captions to find. dataset: its own. template: its fields in the caption template. both, or a table's."""
    caption_template: str = TEMPLATE
    """Each {field} stands for a column of the manifest."""
    index: IndexKind = "exact"
    """exact: every vector. ivf, hnsw: a part of them, for millions of rows; they miss more by words than by images."""
    input: Literal["packed", "raw"] = "packed"
    """packed: embeddings of the prepared pixels. raw: of the original files at the encoder's own size."""
    seed: int = 0
    """Seed of random weights."""
    out: Path = Path("outputs")
    """Where run folders are: the table of what was found and the contact sheets go into one of their own."""
    name: str = ""
    """The run folder's name. Default: search and a hash of what was searched for, and where."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster, where images are not embedded yet."""

    def __post_init__(self) -> None:
        if not self.text and not self.image:
            raise UserError("Say what to search for, with --text or --image.")
        if self.top < 1:
            raise UserError(f"--top {self.top} must be at least 1.")
        if self.index != "exact" and (self.where or self.find == "captions"):
            raise UserError(f"--index {self.index} searches all images: leave it out with --where and --find captions.")

    @property
    def encoder(self) -> ClipConfig:
        """The run's, or `clip`."""
        return dataclasses.replace(self.clip, pretrained=str(self.run)) if self.run else self.clip


def _faiss() -> Any:
    import faiss

    return faiss  # its stubs know half of it


class VectorIndex:
    """Unit vectors (n, d) by position, searched by their inner product with a query."""

    def __init__(self, index: Any, kind: IndexKind, depth: int = 0) -> None:
        """`index`: faiss's. `depth`: how much of it a search looks at, for ivf and hnsw."""
        self.index, self.kind, self.depth = index, kind, depth

    def search(self, queries: np.ndarray, top: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best (m, top) positions, -1 where there are no more, and their similarities, of queries (m, d).

        `allowed`: the only positions (k,) to look at, which an index of a part of the vectors may find few of.
        """
        faiss = _faiss()
        selection: dict[str, Any] = {}
        if allowed is not None:
            selection["sel"] = faiss.IDSelectorBatch(np.ascontiguousarray(allowed, np.int64))
        depth = self.depth * math.ceil(top / 10)  # `depth` is for ten
        if self.kind == "ivf":
            parameters: Any = faiss.SearchParametersIVF(nprobe=depth, **selection)
        elif self.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(depth, top), **selection)
        else:
            parameters = faiss.SearchParameters(**selection)
        similarities, positions = self.index.search(np.ascontiguousarray(queries, np.float32), top, params=parameters)
        return positions, similarities


def build_index(blocks: Callable[[], Iterator[np.ndarray]], dim: int, count: int, kind: IndexKind) -> VectorIndex:
    """An index of `count` vectors that come in blocks (k, dim) of any float type, held one at a time.

    An index that looks at a part of them is tried with some of them, jittered, and looks deep enough to find `MIN_RECALL` of
    the ten nearest; where no depth does, it is a `UserError`.
    """
    faiss = _faiss()
    if kind == "ivf":
        lists = max(1, min(int(4 * math.sqrt(count)), count // 40))
        index = faiss.index_factory(dim, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.train(_sample(blocks(), count, 40 * lists))
    elif kind == "hnsw":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, GRAPH_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, dim), np.float32))
    else:
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, dim), np.float32))
    for block in blocks():
        index.add(np.ascontiguousarray(block, np.float32))
    built = VectorIndex(index, kind)
    if kind != "exact":
        built.depth = _calibrate_probes(built, blocks, dim, count)
    return built


def _sample(blocks: Iterator[np.ndarray], count: int, size: int) -> np.ndarray:
    """About `size` of the `count` vectors, evenly spaced, as float32."""
    step, seen_vectors, parts = max(1, count // size), 0, []
    for block in blocks:
        parts.append(block[(-seen_vectors) % step :: step].astype(np.float32))
        seen_vectors += len(block)
    return np.concatenate(parts)


def _calibrate_probes(index: VectorIndex, blocks: Callable[[], Iterator[np.ndarray]], dim: int, count: int) -> int:
    queries = _sample(blocks(), count, CALIBRATION_QUERIES)[:CALIBRATION_QUERIES]
    noise = np.random.default_rng(0).normal(size=queries.shape).astype(np.float32)
    queries = queries + 0.1 * noise / math.sqrt(dim)
    top = min(10, count)
    best = np.empty((len(queries), 0), np.float32)
    for block in blocks():
        similarities = np.hstack([best, queries @ block.astype(np.float32).T])
        best = -np.partition(-similarities, min(top, similarities.shape[1]) - 1, axis=1)[:, :top]
    recall, tenth = 0.0, best.min(axis=1, keepdims=True)
    for depth in SEARCH_DEPTHS:
        index.depth = depth
        _, similarities = index.search(queries, top)
        recall = float((similarities >= tenth - TIE_TOLERANCE).mean())  # of vectors that are the same any is right
        if recall >= MIN_RECALL:
            return depth
    raise UserError(
        f"--index {index.kind} finds at most {recall:.0%} of the nearest neighbours in this data: use exact."
    )


def iter_vector_blocks(store: Embeddings) -> Callable[[], Iterator[np.ndarray]]:
    """The vectors of a store, shard by shard, (k, d) float16, in the manifest's order."""

    def read() -> Iterator[np.ndarray]:
        for path in sorted(store.folder.glob("[0-9]*.parquet")):
            column = pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
            yield column.flatten().to_numpy().reshape(len(column), -1)

    return read


def open_index(embeddings: Embeddings, manifest: Manifest, kind: IndexKind) -> VectorIndex:
    """The index of a store: exact ones are made at once, the others read, or built and kept beside the embeddings."""
    faiss = _faiss()
    path, metadata_path = embeddings.derived_path(f"_{kind}.faiss"), embeddings.derived_path(f"_{kind}.json")
    if kind != "exact" and metadata_path.is_file() and path.is_file():
        return VectorIndex(faiss.read_index(str(path)), kind, json.loads(metadata_path.read_bytes())["depth"])
    start = 0
    for shard in sorted(embeddings.folder.glob("[0-9]*.parquet")):
        ids = pq.read_table(shard, columns=["image_id"])["image_id"].to_pylist()
        if ids != manifest.table["image_id"].iloc[start : start + len(ids)].tolist():
            raise UserError(f"{shard} is not in the manifest's order: delete {embeddings.folder} and embed again.")
        start += len(ids)
    blocks = iter_vector_blocks(embeddings)
    dim = next(blocks()).shape[1]
    built = build_index(blocks, dim, len(manifest.table), kind)
    if kind != "exact":
        with atomic_write(path) as partial:
            faiss.write_index(built.index, str(partial))
        write_json(metadata_path, {"depth": built.depth, "recall_at_10": MIN_RECALL})
    return built


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The hits of one query."""

    query: str
    table: pd.DataFrame
    """rank, score (the cosine), image_id, label, caption: of an image, or of the first image with the caption."""


def make_search_identity(config: SearchConfig, manifest: Manifest | None = None) -> dict[str, Any]:
    """The search's identity; an image to search by that can't be used is a `UserError`.

    `manifest`: the data's, where it has been read already.
    """
    manifest = manifest or read_manifest(config.data)
    images = [_read(path, ImagesConfig.max_pixels) for path in config.image]
    encoder = embeddings_identity(EmbedConfig.from_config(config, clip=config.encoder), manifest)
    return search_identity(config, encoder, [pixel_hash(image) for image in images])


def search(config: SearchConfig, manifest: Manifest | None = None) -> tuple[list[SearchResult], Manifest]:
    """The hits of each query, and the data set. Unknown columns or values, and files that can't be read: `UserError`.

    `manifest`: the data's, where it has been read already.
    """
    manifest = manifest or read_manifest(config.data)
    captions = make_captions(manifest.table, config.captions, config.caption_template)
    among = filter_rows(manifest, config.where)
    store = embed(EmbedConfig.from_config(config, clip=config.encoder), manifest=manifest)
    precision = store.encoder["precision"]
    clip = load_clip(config.encoder, seed=config.seed, device=default_device(), precision=precision)
    images_config = ImagesConfig(**manifest.info["images"])
    if config.input == "raw":
        images_config = dataclasses.replace(images_config, size=clip.image_size)
    queries = np.concatenate([_texts(clip, config.text), _images(clip, config.image, images_config)])
    if config.find == "images":
        index = open_index(store, manifest, config.index)
        positions, similarities = index.search(queries, config.top, among if config.where else None)
    else:
        known = captions[captions != ""]
        known = known[known.index.isin(among)]
        if known.empty:
            raise UserError(f"None of these images of {manifest.dataset} has a caption: see --captions and --where.")
        unique = known.drop_duplicates()
        vectors = text_embeddings(store, clip, unique.tolist())
        built = build_index(lambda: iter([vectors]), vectors.shape[1], len(vectors), "exact")
        texts, similarities = built.search(queries, config.top)
        positions = np.where(texts >= 0, unique.index.to_numpy()[texts], -1)
    table = manifest.table.assign(caption=captions)
    results = [
        _result(query, table, rows, scores)
        for query, rows, scores in zip([*config.text, *config.image], positions, similarities, strict=True)
    ]
    return results, manifest


def _result(query: str, table: pd.DataFrame, rows: np.ndarray, scores: np.ndarray) -> SearchResult:
    table_rows = table.iloc[rows[rows >= 0]][["image_id", "label", "caption"]].reset_index(drop=True)
    table_rows.insert(0, "score", scores[rows >= 0])
    table_rows.insert(0, "rank", np.arange(1, len(table_rows) + 1))
    return SearchResult(query=query, table=table_rows)


def filter_rows(manifest: Manifest, where: Sequence[str]) -> np.ndarray:
    """Positions (k,) in the manifest of the rows that have these `column=value`s; none is a `UserError`."""
    values_by_column: dict[str, list[str]] = {}
    for entry in where:
        column, equals, value = entry.partition("=")
        if not equals or column not in manifest.table:
            raise UserError(
                f"--where {entry!r} must be COLUMN=VALUE, with one of the columns {', '.join(manifest.table.columns)}."
            )
        values_by_column.setdefault(column, []).append(value)
    mask = np.ones(len(manifest.table), bool)
    for column, values in values_by_column.items():
        mask &= manifest.table[column].astype(str).isin(values).to_numpy()
    if not mask.any():
        raise UserError(f"No image of {manifest.dataset} has {' '.join(where)}.")
    return np.flatnonzero(mask)


def _texts(clip: Clip, texts: Sequence[str]) -> np.ndarray:
    width = int(clip.model_cfg["embed_dim"])
    if truncated := clip.count_truncated(texts)["tokens"] if texts else 0:
        print(f"--text is longer than the model's context: {truncated} tokens are cut off.")
    return clip.encode_texts(texts).numpy() if texts else np.empty((0, width), np.float32)


def _images(clip: Clip, paths: Sequence[str], images_config: ImagesConfig) -> np.ndarray:
    """Features of image files, prepared as the data set's images were for the stored ones."""
    features = [np.empty((0, int(clip.model_cfg["embed_dim"])), np.float32)]
    for path in paths:
        pixels = fit_image(_read(path, images_config.max_pixels), images_config)
        features.append(clip.encode_images(pixels[None]).cpu().numpy())
    return np.concatenate(features)


def _read(path: str, max_pixels: int) -> np.ndarray:
    """An image's pixels, uint8 (h, w) or (h, w, 3); one that can't be used is a `UserError`."""
    try:
        return open_image(path, max_pixels=max_pixels)
    except BadImage as error:
        raise UserError(f"--image {path} can't be used: {error}.") from None


def text_embeddings(store: Embeddings, clip: Clip, texts: list[str]) -> np.ndarray:
    """Features (n, d) float16 of texts, made once and kept beside the images'."""
    path = store.derived_path(f"_texts/{digest(texts)}.parquet")
    if path.is_file():
        column = pq.read_table(path)["embedding"].combine_chunks()
        return np.asarray(column.flatten().to_numpy()).reshape(len(column), -1)
    vectors = clip.encode_texts(texts).numpy().astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    with atomic_write(path) as partial:
        pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "embedding": column}), partial)
    return vectors
