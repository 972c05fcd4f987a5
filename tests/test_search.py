"""Search by words and images."""

import numpy as np
import pandas as pd
import pytest
from conftest import HERE

from clipcovid.config import ClipConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.inference.search import SearchConfig, build_index, filter_rows, iter_vector_blocks, open_index, search
from clipcovid.models.clip import load_clip

TINY = ClipConfig(model="tiny", pretrained="none")


def query(data, **settings):
    return SearchConfig(data=data, clip=TINY, compute=HERE, **settings)


def clusters(count=3000, dim=24, seed=0):
    middles = np.random.default_rng(9).normal(size=(60, dim))
    rng = np.random.default_rng(seed)
    found = middles[rng.integers(0, 60, count)] + 0.4 * rng.normal(size=(count, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def blocks(vectors, size=700):
    return lambda: iter(vectors[start : start + size] for start in range(0, len(vectors), size))


def naive(vectors, asked, top):
    return np.argsort(-(asked @ vectors.astype(np.float32).T), axis=1, kind="stable")[:, :top]


def test_the_exact_index_is_a_naive_search():
    vectors = clusters()
    asked = clusters(20, seed=1).astype(np.float32)
    at, similar = build_index(blocks(vectors), 24, len(vectors), "exact").search(asked, 10)
    best = naive(vectors, asked, 10)
    assert np.allclose(similar, np.take_along_axis(asked @ vectors.astype(np.float32).T, best, 1), atol=1e-3)
    assert (at == best).mean() > 0.99  # but for ties


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_indexes_of_a_part_find_nearly_all(kind):
    vectors, asked = clusters(), clusters(100, seed=1).astype(np.float32)
    at, _ = build_index(blocks(vectors), 24, len(vectors), kind).search(asked, 10)
    best = naive(vectors, asked, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(at, best, strict=True)]) >= 0.9


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_filters_look_at_what_they_let_through(kind):
    vectors, asked = clusters(), clusters(5, seed=1).astype(np.float32)
    among = np.arange(1, 3000, 7)
    at, _ = build_index(blocks(vectors), 24, len(vectors), kind).search(asked, 8, among)
    assert set(at.ravel()) - {-1} <= set(among.tolist())
    if kind == "exact":
        assert (at == among[naive(vectors[among], asked, 8)]).mean() > 0.95


def test_an_image_finds_itself_first(phantoms, tmp_path):
    row = read_manifest(phantoms).rows("test").iloc[3]
    (found,), _ = search(query(phantoms, image=(row["path"],), top=5))
    assert found.table["image_id"][0] == row["image_id"]
    assert found.table["score"][0] > 0.99
    assert found.table["score"].is_monotonic_decreasing
    assert found.table["rank"].tolist() == [1, 2, 3, 4, 5]


def test_words_find_what_their_features_are_nearest_to(phantoms):
    words = ("a chest X-ray of pneumonia", "normal lungs")
    found, manifest = search(query(phantoms, text=words, top=7, where=("split=test", "label=Normal", "label=COVID-19")))
    among = manifest.table[(manifest.table["split"] == "test") & manifest.table["label"].isin(["Normal", "COVID-19"])]
    store = embed(EmbedConfig(data=phantoms, clip=TINY, compute=HERE))
    features = store.load(among["image_id"]).astype(np.float32)
    texts = load_clip(TINY).encode_texts(words).numpy()
    for one, text in zip(found, texts, strict=True):
        best = among["image_id"].to_numpy()[np.argsort(-(features @ text))[:7]]
        assert one.table["image_id"].tolist() == best.tolist()


def test_captions_are_found_each_once(phantoms):
    manifest = read_manifest(phantoms)
    wanted = manifest.rows("val")["caption"].iloc[0]
    (found,), _ = search(query(phantoms, text=(wanted,), find="captions", top=6))
    assert found.table["caption"][0] == wanted
    assert found.table["score"][0] == pytest.approx(1, abs=1e-3)
    assert found.table["caption"].is_unique
    (again,), _ = search(query(phantoms, text=(wanted,), find="captions", top=6))  # from the vectors that were kept
    pd.testing.assert_frame_equal(found.table, again.table)


def test_an_index_is_built_once_and_the_store_still_read(phantoms):
    store, manifest = embed(EmbedConfig(data=phantoms, clip=TINY, compute=HERE)), read_manifest(phantoms)
    first = open_index(store, manifest, "hnsw")
    time = (store.folder / "_hnsw.faiss").stat().st_mtime_ns
    again = open_index(store, manifest, "hnsw")
    assert (store.folder / "_hnsw.faiss").stat().st_mtime_ns == time
    asked = next(iter_vector_blocks(store)())[:4].astype(np.float32)
    assert (first.search(asked, 3)[0] == again.search(asked, 3)[0]).all()
    assert len(store.load(manifest.table["image_id"])) == 90


def test_what_can_not_be_searched_is_a_sentence(phantoms, tmp_path):
    with pytest.raises(UserError, match="--text or --image"):
        query(phantoms)
    manifest = read_manifest(phantoms)
    with pytest.raises(UserError, match="COLUMN=VALUE"):
        filter_rows(manifest, ("planet=Mars",))
    with pytest.raises(UserError, match="No image of"):
        filter_rows(manifest, ("label=Fracture",))
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"torn\.png"):
        search(query(phantoms, image=(str(tmp_path / "torn.png"),)))
