"""Leaks that are planted, and those that are not there: clipcovid.audit's patients, duplicates and fields."""

import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audit_sets import phantoms_of_patients
from conftest import HERE
from PIL import Image

from clipcovid.audit import planted
from clipcovid.audit.accepted_pairs import PAIR_COLUMNS, read_accepted_pairs, write_pairs
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, hashes_by_name, read_prepared_set
from clipcovid.audit.duplicates import check_duplicates, equal_pairs, near_pairs
from clipcovid.audit.fields import check_fields
from clipcovid.audit.image_pool import ImagePool
from clipcovid.audit.patients import check_patients
from clipcovid.audit.planted import CHANGES
from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.io.files import write_json

COUNT = 40
PLANTED = ("JPEG, quality 50", "5% cropped", "mirrored", "gamma 1.5 or its inverse")


def rows_of(count):
    """A row a phantom: path, label, patient, split; every second patient has two images, all in one split."""
    splits = np.resize(["train", "train", "val", "test"], count)
    return [
        {"path": f"{at}.png", "label": f"class {at % 2}", "patient_id": f"p{at}", "split": splits[at], "source": "A"}
        for at in range(count)
    ]


def prepared(folder, images, rows):
    """A prepared folder of these images, uint8 (n, s, s), and rows."""
    (folder / "files").mkdir(parents=True)
    for image, row in zip(images, rows, strict=True):
        Image.fromarray(image).save(folder / "files" / row["path"])
    pd.DataFrame(rows).to_csv(folder / "files" / "list.csv", index=False)
    config = PrepareConfig(
        source="table",
        root=str(folder / "files" / "list.csv"),
        out=folder / "data",
        images=ImagesConfig(size=160),
        compute=HERE,
    )
    prepare(config, log=lambda text: None)
    return folder / "data"


@pytest.fixture(scope="module")
def phantom_images():
    return list(phantoms_of_patients(COUNT, size=192, seed=9))


@pytest.fixture(scope="module")
def clean(tmp_path_factory, phantom_images):
    return prepared(tmp_path_factory.mktemp("clean"), phantom_images, rows_of(COUNT))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory, phantom_images):
    """20 duplicates of training images in test, 5 of each change, and one of equal pixels; of other patients and classes."""
    rng, rows, images = np.random.default_rng(0), rows_of(COUNT), list(phantom_images)
    trained = [at for at in range(COUNT) if rows[at]["split"] == "train"]
    for number, (at, change) in enumerate(zip(trained, np.repeat(PLANTED, 5), strict=True)):
        images.append(np.ascontiguousarray(CHANGES[change](images[at], rng)))
        label = "class 0" if number == 0 else rows[at]["label"]
        rows.append(rows[at] | {"path": f"copy{number}.png", "patient_id": "", "split": "test", "label": label})
    images.append(images[1])
    rows.append(rows[1] | {"path": "equal.png", "split": "test", "label": "class 0", "patient_id": "p900"})
    return prepared(tmp_path_factory.mktemp("leaking"), images, rows)


def audited(folder, *others, **changes):
    main = read_prepared_set(folder, "main")
    if changes:
        main = dataclasses.replace(main, manifest=main.manifest.with_columns(**changes))
    return AuditData(main=main, others=tuple(read_prepared_set(other, other.parent.name) for other in others))


@pytest.fixture(scope="module")
def leaks(leaking):
    """What the check of duplicates finds in `leaking`, by check."""
    return by_check(check_duplicates(audited(leaking), AuditConfig(data=leaking)))


@pytest.fixture(autouse=True)
def few_planted(monkeypatch):
    """Recall is measured on few images here; test_near_duplicates.py has more of them."""
    monkeypatch.setattr(planted, "PLANTED_IMAGES", 6)


def by_check(findings):
    return {finding.check: finding for finding in findings}


def test_nothing_is_invented_on_a_clean_set(clean):
    data, config = audited(clean), AuditConfig(data=clean)
    findings = [*check_patients(data, config), *check_duplicates(data, config), *check_fields(data, config)]
    assert {finding.severity for finding in findings} == {"info"}
    found = by_check(findings)
    assert found["near duplicates"].numbers == {"pairs": 0}
    assert found["equal pixels"].numbers == {"pairs": 0}
    assert found["patients across splits"].numbers["patients_across_splits"] == 0
    assert "embeddings are left out" in found["search for near duplicates"].summary


def test_planted_duplicates_across_splits_are_found(leaks):
    near = leaks["near duplicates in several splits"]
    assert near.severity == "high"
    assert near.numbers["pairs"] >= 19
    listed = {(pair["image_1"], pair["image_2"]) for pair in near.numbers["listed"]}
    assert all(second.startswith("copy") or second == "equal.png" for _, second in listed)
    assert len(near.examples) == 12
    assert all(len(sheet.images) == 2 for sheet in near.examples)
    equal = leaks["equal pixels in several splits"]
    assert equal.numbers["pairs"] == 1
    assert {pair["image_2"] for pair in equal.numbers["listed"]} == {"equal.png"}


def test_recall_is_stated_for_every_change(leaks):
    recall = leaks["search for near duplicates"]
    assert set(recall.numbers["recall"]) == set(CHANGES)
    assert all(0.9 <= one["found"] / one["planted"] <= 1 for one in recall.numbers["recall"].values())


def test_contradictions_among_duplicates_are_found(leaks):
    labels = leaks["labels of duplicates"]
    assert {pair.split(" — ")[1] for pair, *_ in labels.tables[0].sections[0]} >= {"equal.png"}
    patients = leaks["patients of duplicates"]
    assert patients.numbers["pairs"] == 1  # unknown patients contradict nobody


def test_duplicates_in_another_set_are_found_and_its_own_are_not_its_business(clean, leaking):
    found = by_check(check_duplicates(audited(clean, leaking), AuditConfig(data=clean)))
    equal = found["equal pixels in several data sets"]
    assert equal.severity == "high"
    assert {pair["set_1"] for pair in equal.numbers["listed"]} == {"main"}
    assert equal.numbers["images"] == 2 * COUNT + 1 == equal.numbers["pairs"] + COUNT
    near = found["near duplicates in several data sets"]
    assert near.numbers["pairs"] >= 19
    assert "near duplicates in several splits" not in found


def test_reviewed_pairs_stay_away_until_the_pixels_change(leaking, leaks, tmp_path):
    near = leaks["near duplicates in several splits"]
    pairs = near_pairs(leaks.values())
    path = tmp_path / "near_duplicates.csv"
    write_pairs(path, pairs)
    assert not pd.read_csv(path, dtype=str)["accepted"].notna().any()
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "accepted"], table.loc[1, "accepted"], table.loc[0, "comment"] = "Yes", "no", "looked, unlike"
    table.to_csv(path, index=False)
    config = AuditConfig(data=leaking, accept=path)
    found = by_check(check_duplicates(audited(leaking), config))
    assert found["near duplicates in several splits"].numbers["pairs"] == near.numbers["pairs"] - 1
    assert found["search for near duplicates"].numbers["accepted_pairs"] == 1
    left = near_pairs(found.values())
    write_pairs(tmp_path / "next.csv", left, path)
    again = pd.read_csv(tmp_path / "next.csv", dtype=str, keep_default_na=False)
    assert sorted(again["accepted"]) == sorted(["yes", "no", *[""] * (len(pairs) - 2)])
    assert again.loc[again["accepted"] == "yes", "comment"].tolist() == ["looked, unlike"]
    write_pairs(tmp_path / "next.csv", left)  # an audit that forgets --accept does not forget the answers
    assert pd.read_csv(tmp_path / "next.csv", dtype=str)["accepted"].value_counts().to_dict() == {"yes": 1, "no": 1}
    changed = table.assign(pixels_1="another hash")
    changed.to_csv(path, index=False)
    found = by_check(check_duplicates(audited(leaking), config))
    assert found["near duplicates in several splits"].numbers["pairs"] == near.numbers["pairs"]
    assert found["search for near duplicates"].numbers["accepted_pairs_gone"] == 1
    assert "1 pair of --accept is of images that are not here any more" in found["search for near duplicates"].summary


def test_a_file_that_says_something_else_is_refused(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="lacks the columns accepted, score"):
        read_accepted_pairs(path)
    path.write_text(",".join(PAIR_COLUMNS) + "\nmaybe,0.9,a,b,c,d,e,f,\n")
    with pytest.raises(UserError, match="row 2: accepted is 'maybe'; write yes, no"):
        read_accepted_pairs(path)
    path.write_text(",".join(PAIR_COLUMNS) + "\nyes,0.9,a,b,,d,e,f,\n")
    with pytest.raises(UserError, match="row 2: pixels_1 or pixels_2 is empty"):
        read_accepted_pairs(path)


def row_of(accepted, first, second, images=("a.png", "b.png")):
    """A row of a file of pairs, by the answer and the hashes of both images."""
    return f"{accepted},0.9,main,{images[0]},{first},main,{images[1]},{second},\n"


def test_two_answers_to_one_pair_are_refused_whichever_image_comes_first(tmp_path):
    path, header = tmp_path / "pairs.csv", ",".join(PAIR_COLUMNS) + "\n"
    for second in (row_of("no", "B", "A", ("b.png", "a.png")), row_of("no", "A", "B")):
        path.write_text(header + row_of("yes", "A", "B") + row_of("yes", "A", "C") + second)
        with pytest.raises(UserError, match="rows 2 and 4: accepted is yes and no for the same two pictures"):
            read_accepted_pairs(path)
    path.write_text(header + row_of("yes", "A", "B") + row_of("yes", "B", "A") + row_of("", "A", "B"))
    assert read_accepted_pairs(path).accepted(pd.Series(["B", "A"]), pd.Series(["A", "C"])).tolist() == [True, False]


def test_an_answer_of_the_next_file_outweighs_that_of_the_former_whichever_image_comes_first(tmp_path):
    header = ",".join(PAIR_COLUMNS) + "\n"
    (tmp_path / "former.csv").write_text(header + row_of("yes", "A", "B"))
    (tmp_path / "next.csv").write_text(header + row_of("no", "B", "A", ("b.png", "a.png")))
    write_pairs(tmp_path / "former.csv", near_pairs([]), tmp_path / "next.csv")
    assert read_accepted_pairs(tmp_path / "former.csv").table.empty


def test_hashes_of_other_images_than_those_named_are_refused(leaking, leaks, tmp_path):
    path, pairs = tmp_path / "pairs.csv", near_pairs(leaks.values())
    table = pairs.head(2).assign(accepted="yes", comment="")[list(PAIR_COLUMNS)]
    hashes = hashes_by_name({"main": read_manifest(leaking)})
    table.to_csv(path, index=False)
    assert len(read_accepted_pairs(path, hashes).table) == 2
    for side in (1, 2):  # as a column that was sorted by itself
        table.assign(**{f"image_{side}": table[f"image_{side}"].tolist()[::-1]}).to_csv(path, index=False)
        with pytest.raises(UserError, match=rf"row 2: image_{side} .* is not the image with these pixels, which is "):
            check_duplicates(audited(leaking), AuditConfig(data=leaking, accept=path))
    table.assign(image_1="gone.png").to_csv(path, index=False)
    assert len(read_accepted_pairs(path, hashes).table) == 2
    table.assign(pixels_1="another hash").to_csv(path, index=False)
    assert len(read_accepted_pairs(path, hashes).table) == 2


def test_equal_pairs_tie_all_groups_together():
    table = pd.DataFrame(
        {
            "set": [0, 0, 0, 0, 1, 0],
            "split": ["train", "train", "test", "val", "test", "val"],
            "sha256": [*"aaaab", ""],
        }
    )
    pairs = set(map(tuple, equal_pairs(table).to_numpy().tolist()))
    assert pairs == {(0, 1), (0, 2), (0, 3), (2, 3)}
    assert equal_pairs(table[4:].reset_index(drop=True)).empty


def test_patients_across_splits_are_counted_and_unknown_ones_too(clean):
    ids = audited(clean).main.table["patient_id"].to_numpy().copy()
    splits = audited(clean).main.table["split"].to_numpy()
    for number in range(5):  # a training patient's image in test, each
        ids[np.flatnonzero(splits == "test")[number]] = ids[np.flatnonzero(splits == "train")[number]]
    ids[np.flatnonzero(splits == "val")[:3]] = ""
    found = by_check(check_patients(audited(clean, patient_id=ids), AuditConfig(data=clean)))
    leak = found["patients across splits"]
    assert leak.severity == "high"
    assert leak.numbers == {
        "patients": COUNT - 8,
        "images_of_known_patients": COUNT - 3,
        "patients_across_splits": 5,
        "held_out_images_of_training_patients": 5,
    }
    assert len(leak.tables[0].sections[0]) == 5
    assert found["unknown patients"].numbers == {"images_without_patient": 3, "images": COUNT}
    assert found["unknown patients"].severity == "low"  # all in val


def test_a_set_without_patients_is_not_passed(clean):
    found = by_check(check_patients(audited(clean, patient_id=""), AuditConfig(data=clean)))
    assert set(found) == {"unknown patients"}
    assert found["unknown patients"].severity == "medium"


def test_patients_of_several_classes_and_of_both_sets(clean, leaking):
    ids = np.resize(["p1", "p2", "p2"], COUNT)
    data = audited(clean, leaking, patient_id=ids)
    found = by_check(check_patients(data, AuditConfig(data=clean)))
    assert found["patients of several classes"].numbers["patients_of_several_classes"] == 2
    shared = found[f"patients shared with {data.others[0].name}"]
    assert shared.severity == "high"
    assert shared.numbers["patients"] == 2
    assert shared.numbers["images"] == COUNT
    assert re.search(r"images without a patient id: (0 and 20|20 and 0)\)", shared.summary)


def test_names_that_are_nearly_alike_are_named(clean, leaking):
    sources = np.resize(["St Mary", "st_mary", "B"], COUNT)
    found = by_check(check_fields(audited(clean, source=sources), AuditConfig(data=clean)))
    finding = found["names of the source that are nearly alike"]
    assert finding.severity == "low"
    assert "'St Mary'" in finding.summary
    assert "'B'" not in finding.summary
    renamed = audited(leaking).main
    table = renamed.manifest.table
    labels = table["label"].str.upper()
    other = dataclasses.replace(
        renamed, name="other", manifest=renamed.manifest.with_columns(classes=sorted(set(labels)), label=labels)
    )
    data = dataclasses.replace(audited(clean), others=(other,))
    found = by_check(check_fields(data, AuditConfig(data=clean)))
    assert found["names of the label that are nearly alike"].severity == "medium"


def test_missing_fields_are_counted(clean):
    views = np.where(np.arange(COUNT) < 10, "PA", "")
    finding = by_check(check_fields(audited(clean, view=views), AuditConfig(data=clean)))["missing fields"]
    assert finding.numbers["missing"]["view"] == COUNT - 10
    assert finding.numbers["missing"]["caption"] == COUNT
    assert finding.numbers["missing"]["label"] == 0
    assert finding.severity == "low"
    assert f"view ({COUNT - 10})" in finding.summary


def embedded(folder, copy, vectors, **encoder):
    """A copy of a prepared folder with stored embeddings (n, d) of its images."""
    shutil.copytree(folder, copy)
    manifest = read_manifest(copy)
    store = copy / "embeddings" / "0123"
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    store.mkdir(parents=True)
    pq.write_table(
        pa.table({"image_id": manifest.table["image_id"].tolist(), "embedding": column}), store / "00000.parquet"
    )
    identity = {"model": "an encoder", "weights": "w", "manifest": manifest.content_hash, "shard": len(vectors)}
    write_json(store / "_encoder.json", identity | encoder)
    (store / "_SUCCESS").touch()
    return copy


def test_stored_embeddings_of_one_encoder_take_part(clean, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8))
    first, second = (embedded(clean, tmp_path / name, vectors + at) for at, name in enumerate(("a", "b")))
    pool = ImagePool.from_data(audited(first))
    found, encoder = pool.embeddings()
    assert encoder == "an encoder"
    assert found == pytest.approx(vectors.astype(np.float16))
    both = AuditData(main=audited(first).main, others=(read_prepared_set(second, "b"),))
    found, _ = ImagePool.from_data(both).embeddings()
    assert found[COUNT:] == pytest.approx((vectors + 1).astype(np.float16))
    search = by_check(check_duplicates(audited(first), AuditConfig(data=first)))["search for near duplicates"]
    assert "embeddings are of an encoder" in search.summary


@pytest.mark.parametrize("other", [{"weights": "others"}, {"manifest": "of an earlier preparation"}])
def test_embeddings_that_do_not_belong_together_are_left_out(clean, tmp_path, other):
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8))
    first = embedded(clean, tmp_path / "a", vectors)
    second = embedded(clean, tmp_path / "b", vectors, **other)
    both = AuditData(main=audited(first).main, others=(read_prepared_set(second, "b"),))
    assert ImagePool.from_data(both).embeddings() == (None, "")


def test_images_are_read_by_their_position_in_all_sets(clean, leaking):
    data = audited(clean, leaking)
    pool = ImagePool.from_data(data)
    positions = np.array([3, COUNT + 2, COUNT, 0])
    expected = [data.main.packed, data.others[0].packed, data.others[0].packed, data.main.packed]
    for image, packed, row in zip(pool.read(positions), expected, (3, 2, 0, 0), strict=True):
        assert np.array_equal(image, packed.images([row])[0])
    assert pool.example(COUNT + 2) == data.others[0].example(2)


def test_equal_pixels_of_a_group_are_searched_once_and_other_sets_not_among_themselves(clean, leaking):
    pool = ImagePool.from_data(audited(clean, leaking))
    searches = pool.searches()
    assert len(searches) == 4  # three splits, and the other set
    assert sum(len(others) for _, others in searches) == len(pool) - 1  # `equal.png`
    queries, others = searches[-1]
    assert (queries < COUNT).all()
    assert (others >= COUNT).all()
    pool.table.loc[pool.table.index[1:3], "sha256"] = pool.table["sha256"].iloc[0]
    splits = pool.table["split"].iloc[:3].nunique()
    assert sum(len(others) for _, others in pool.searches()) == len(pool) - 4 + splits
