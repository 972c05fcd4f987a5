import numpy as np
import pytest
from audit_sets import phantoms_of_patients

from clipcovid.audit import candidates, near_duplicates
from clipcovid.audit.alignment import MIN_AGREEMENT
from clipcovid.audit.fingerprints import averaging_weights, equalize, make_thumbnails, perceptual_hashes
from clipcovid.audit.near_duplicates import find_near_duplicates
from clipcovid.audit.planted import CHANGES, measure_recall

COUNT = 40  # of one patient each: two films of one patient are much alike


@pytest.fixture(scope="module")
def images():
    return phantoms_of_patients(COUNT, size=224, seed=5)


def search(images, searches=None, **options):
    every = np.arange(len(images))
    thumbnails = make_thumbnails(images) if len(images) else np.empty((0, 64, 64), np.uint8)
    return find_near_duplicates(thumbnails, lambda rows: images[rows], searches or [(every, every)], **options)


def pairs(found):
    return list(map(tuple, found.pairs[["first", "second"]].to_numpy().tolist()))


def test_weights_average_what_each_pixel_covers():
    line = np.arange(12.0)
    assert averaging_weights(12, 4) @ line == pytest.approx([1, 4, 7, 10])
    assert averaging_weights(12, 2, 0.25, 0.75) @ line == pytest.approx([4, 7])
    assert averaging_weights(5, 3).sum(axis=1) == pytest.approx(np.ones(3))
    assert averaging_weights(5, 3)[0] @ np.arange(5) == pytest.approx((0 + 2 / 3) / (5 / 3))


def test_ranks_are_those_of_a_naive_count_and_ignore_contrast(images):
    image = images[0, :8, :8]
    naive = [((image < value).sum() + (image == value).sum() / 2) / image.size - 0.5 for value in image.ravel()]
    assert equalize(image[None]).ravel() == pytest.approx(naive, abs=1e-6)
    stretched = np.cumsum(np.arange(256) % 2)[images[:4] // 2 * 2].astype(np.uint8)
    assert np.array_equal(equalize(stretched), equalize(images[:4] // 2 * 2))


def test_hashes_are_those_of_a_naive_transform_whatever_the_brightness(images):
    thumbnails = make_thumbnails(images[:3])
    at = np.arange(32)
    waves = np.cos(np.pi * np.outer(np.arange(16), 2 * at + 1) / 64)
    small = thumbnails[0].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    frequencies = (waves @ small @ waves.T).ravel()
    assert np.array_equal(np.unpackbits(perceptual_hashes(thumbnails)[0]), frequencies > np.median(frequencies))
    assert np.array_equal(perceptual_hashes(thumbnails // 2), perceptual_hashes(thumbnails // 2 + 60))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_none_are_found_among_none_one_and_two_images(images, count):
    found = search(images[:count])
    assert found.pairs.empty
    assert found.saturated_images == 0


def test_exactly_two_equal_files_are_one_pair(images):
    found = search(images[[0, 0]])
    assert pairs(found) == [(0, 1)]
    assert found.pairs["score"].iloc[0] == pytest.approx(1, abs=0.01)


def test_none_are_invented_on_different_images(images, monkeypatch):
    monkeypatch.setattr(candidates, "MIN_SIMILARITY", -1.0)
    found = search(images)
    assert found.pairs.empty
    assert found.verified >= COUNT  # it looked


@pytest.mark.parametrize("name", CHANGES)
def test_each_planted_change_is_found_and_named(images, name):
    rng = np.random.default_rng(0)
    originals = np.arange(20)
    copies = np.stack([CHANGES[name](images[at], rng) for at in originals])
    queries = np.arange(COUNT, COUNT + 20), np.arange(COUNT)
    found = search(np.concatenate([images, copies]), [queries, queries[::-1]])
    expected = {(at, COUNT + at) for at in originals.tolist()}
    assert set(pairs(found)) <= expected
    assert len(found.pairs) >= 19
    assert found.pairs["mirrored"].all() == (name == "mirrored")
    assert found.pairs["inverted"].all() == (name == "inverted")


def test_pairs_do_not_depend_on_the_order_of_the_images(images):
    rng = np.random.default_rng(1)
    every = np.concatenate([images[:20], np.stack([CHANGES["5% cropped"](image, rng) for image in images[:10]])])
    order = rng.permutation(len(every))
    moved = {tuple(sorted((order[first], order[second]))) for first, second in pairs(search(every[order]))}
    assert moved == set(pairs(search(every)))


def test_a_chain_of_changes_is_pairs_and_no_cluster(images):
    """What is in two pairs is in two pairs: nothing is concluded of the two others."""
    half = np.concatenate([images[0][:, :112], images[1][:, 112:]], axis=1)
    found = pairs(search(np.stack([images[0], half, images[1]])))
    assert (0, 2) not in found


def test_a_duplicate_in_train_is_found_behind_many_in_test(images):
    """Each image's nearest are looked at in each group by itself."""
    rng = np.random.default_rng(2)
    copies = np.stack([CHANGES["JPEG, quality 50"](images[0] // 8 * 8, rng)] * 30)
    copies[:, 0, 0] = np.arange(30)
    every = np.concatenate([images[:20], copies])
    train, test = np.arange(20), np.arange(20, 50)
    found = search(every, [(np.arange(50), train), (np.arange(50), test)])
    assert {(0, at) for at in test.tolist()} <= set(pairs(found))
    assert found.saturated_images > 0


def test_embeddings_propose_what_thumbnails_do_not(images):
    turned = np.stack([images[3], np.rot90(images[3], axes=(0, 1)).copy()])
    every = np.concatenate([images[:20], turned])
    vectors = np.eye(22, dtype=np.float32)
    vectors[20] = vectors[3]
    found = search(every, embeddings=vectors)
    assert (3, 20) in pairs(found)
    assert (3, 21) not in pairs(found)  # whoever proposes it, pixels decide
    assert (found.pairs["score"] >= MIN_AGREEMENT).all()


def test_the_most_alike_are_verified_where_a_stage_proposes_too_many(images, monkeypatch):
    rng = np.random.default_rng(3)
    every = np.concatenate([images, np.stack([CHANGES["JPEG, quality 50"](image, rng) for image in images[:5]])])
    monkeypatch.setattr(candidates, "MIN_SIMILARITY", -1.0)
    monkeypatch.setattr(near_duplicates, "MAX_VERIFIED", 10)
    found = search(every)
    assert set(pairs(found)) == {(at, COUNT + at) for at in range(5)}
    assert set(found.min_similarities) == {"thumbnail"}
    assert found.verified <= 20


def test_recall_counts_each_change_and_falls_where_nothing_is_verified(images):
    thumbnails = make_thumbnails(images)
    recall = measure_recall(thumbnails, lambda rows: images[rows], seed=0)
    assert set(recall) == set(CHANGES)
    assert all(one.planted == COUNT and one.found >= 0.95 * COUNT for one in recall.values())
    none = measure_recall(thumbnails, lambda rows: images[rows], seed=0, floors={"hash": 2.0, "thumbnail": 2.0})
    assert all(one.found == 0 for one in none.values())
