"""Data sets of what masks leave of images, and the cascade from a file to its class."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import HERE
from PIL import Image

from clipcovid.commands.apply_masks import main
from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.data.masked import ApplyMasksConfig, apply_masks, lost_classes, lung_box, mask_image
from clipcovid.data.packed import PackedImages
from clipcovid.data.shards import read_shard, write_shard
from clipcovid.evaluate.segmentation import NO_NEGATIVES_NOTE
from clipcovid.inference.cascade import CascadeConfig, cascade
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.io.files import write_json
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.runs import read_metrics
from clipcovid.training.trainer import train_model
from clipcovid.workflows.image_files import read_images

ROOT = Path(__file__).parents[1]


def quiet(text):
    pass


def masked(data, out, **settings):
    return apply_masks(ApplyMasksConfig(data=data, out=out, **settings), quiet)


def contents(folder):
    """Images and masks of a prepared folder, in the manifest's order."""
    packed = PackedImages(folder)
    rows = range(len(packed))
    return packed.images(rows), packed.masks("lung_mask", rows), packed.masks("infection_mask", rows)


def test_what_is_kept_is_kept_and_the_rest_is_black(phantoms, tmp_path):
    images, lungs, infections = contents(phantoms)
    for keep, masks, inside in (("lungs", lungs, True), ("lungs-black", lungs, False), ("infection", infections, True)):
        made = masked(phantoms, tmp_path / keep, keep=keep)
        found, there, _ = contents(tmp_path / keep)
        for image, mask, left in zip(images, masks, found, strict=True):
            kept = (mask > 0) == inside
            assert (left[kept] == image[kept]).all()
            assert not left[~kept].any()
        assert made.split_hash == read_manifest(phantoms).split_hash
        assert made.info["pack_hash"] != read_manifest(phantoms).info["pack_hash"]
        assert all((one == other).all() for one, other in zip(there, lungs, strict=True))


def test_a_crop_shows_the_lungs_larger_and_their_masks_with_them(phantoms, tmp_path):
    made = masked(phantoms, tmp_path / "crop", keep="crop")
    _, before, _ = contents(phantoms)
    images, after, _ = contents(tmp_path / "crop")
    assert images.shape[1:] == before[0].shape
    assert np.mean([mask.mean() for mask in after]) > 1.3 * np.mean([mask.mean() for mask in before])
    assert set(made.table["lung_mask"]) == {""}


def test_boxes_have_a_margin_and_end_at_the_image():
    mask = np.zeros((100, 80), np.uint8)
    assert lung_box(mask) == (0, 0, 80, 100)
    mask[20:60, 0:40] = 255
    assert lung_box(mask) == (0, 18, 42, 62)


def test_colour_is_masked_in_all_channels():
    pixels, mask = np.full((4, 4, 3), 9, np.uint8), np.eye(4, dtype=np.uint8) * 255
    assert (mask_image(pixels, mask, "lungs") == 9 * np.eye(4, dtype=np.uint8)[..., None]).all()


def with_lung_masks(phantoms, data, change):
    """A prepared folder with the phantoms whose lung masks are `change(image_id, mask)`."""
    (data / "images").mkdir(parents=True)
    for path in (phantoms / "images").glob("*.arrow"):
        rows = pa.Table.from_batches([read_shard(path)]).to_pylist()
        write_shard(
            data / "images" / path.name,
            [row | {"lung_mask": change(row["image_id"], row["lung_mask"])} for row in rows],
        )
    write_manifest(data, read_manifest(phantoms))
    return data


def test_images_without_the_mask_are_left_out_and_named(phantoms, tmp_path):
    table = read_manifest(phantoms).table
    first, second = table["image_id"][:2]
    without = {first: lambda mask: b"", second: lambda mask: bytes(len(mask))}
    data = with_lung_masks(phantoms, tmp_path / "data", lambda name, mask: without.get(name, bytes)(mask))
    made = masked(data, tmp_path / "out")
    assert len(made.table) == len(table) - 2
    bad = pd.read_parquet(tmp_path / "out" / "quarantine.parquet").set_index("path")["reason"]
    assert bad[table["path"][0]] == "no lung mask"
    assert bad[table["path"][1]] == "the lung mask is empty"
    assert lost_classes(read_manifest(data), made) == []


def test_classes_that_lose_nearly_all_images_are_said(phantoms, tmp_path, capsys):
    table = read_manifest(phantoms).table
    ids = {
        label: table.loc[table["label"] == label, "image_id"].tolist() for label in ("COVID-19", "Normal", "Non-COVID")
    }
    lost = {*ids["COVID-19"], *ids["Normal"][1:], *ids["Non-COVID"][: len(ids["Non-COVID"]) // 2]}
    data = with_lung_masks(phantoms, tmp_path / "data", lambda name, mask: b"" if name in lost else mask)
    main(ApplyMasksConfig(data=data, out=tmp_path / "out"))
    covid, normal = len(ids["COVID-19"]), len(ids["Normal"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == [
        f"warning: {covid} of the {covid} images of COVID-19 are left out (left: 0).",
        f"warning: {normal - 1} of the {normal} images of Normal are left out (left: 1).",
    ]


@pytest.mark.parametrize("mask", [b"", bytes(64 * 64)])
def test_a_set_without_masks_is_refused_before_anything_is_written_or_removed(phantoms, tmp_path, mask):
    data = with_lung_masks(phantoms, tmp_path / "data", lambda name, old: mask)
    with pytest.raises(UserError, match=r"No image of .*data has a usable lung mask: --keep lungs needs one"):
        masked(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    masked(phantoms, tmp_path / "out")
    with pytest.raises(UserError, match="No image of"):
        masked(data, tmp_path / "out", overwrite=True)
    assert len(read_manifest(tmp_path / "out").table) == 90


def test_it_is_not_done_twice_nor_written_over_another(phantoms, tmp_path):
    out, said = tmp_path / "out", []
    masked(phantoms, out)
    apply_masks(ApplyMasksConfig(data=phantoms, out=out), said.append)
    assert "nothing was left to do" in said[0]
    for settings, match in (
        ({"data": phantoms, "out": out, "keep": "crop"}, "another data set"),
        ({"data": out, "out": tmp_path / "twice"}, "masked set itself"),
        ({"data": phantoms, "out": phantoms}, "folder of its own"),
    ):
        with pytest.raises(UserError, match=match):
            apply_masks(ApplyMasksConfig(**settings), quiet)
    masked(phantoms, out, keep="crop", overwrite=True)
    clip = ClipConfig(model="tiny", pretrained="none")
    with pytest.raises(UserError, match="--input packed"):
        embed(EmbedConfig(data=out, clip=clip, input="raw", compute=HERE), quiet)


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """A segmenter of both regions, its predictions of all images, and a classifier of what they leave."""
    out = tmp_path_factory.mktemp("runs")
    common = {"out": out, "compute": HERE, "optim": OptimConfig(epochs=3, batch_size=12, lr=3e-3, precision="fp32")}
    segmenter = train_model(
        SegmentConfig(data=phantoms, target="both", weights="none", image_size=64, **common), log=quiet
    ).run
    predicted = predict_split(
        PredictConfig(run=segmenter.folder, data=phantoms, split="all", out=out, compute=HERE), quiet
    )
    masks = predicted.run.folder / "predictions" / "all.parquet"
    masked(phantoms, out / "lungs", masks=masks)
    classifier = train_model(CnnConfig(data=out / "lungs", weights="none", image_size=32, **common), log=quiet).run
    return segmenter.folder, masks, classifier.folder, out


def test_predicted_masks_leave_what_was_predicted(phantoms, runs):
    _, masks, _, out = runs
    table = pd.read_parquet(masks).query("region == 'lung'").set_index("image_id")
    made, image = read_manifest(out / "lungs"), PackedImages(out / "lungs").images([0])[0]
    row = table.loc[made.table["image_id"][0]]
    assert (image > 0).mean() == pytest.approx((row["tp"] + row["fp"]) / (96 * 96), abs=0.03)


def test_masks_of_another_set_or_kind_are_refused(phantoms, runs, tmp_path):
    _, masks, classifier, _ = runs
    with pytest.raises(UserError, match="predicts no lung"):
        masked(phantoms, tmp_path / "a", masks=classifier / "predictions" / "test.parquet")
    manifest = read_manifest(phantoms)
    other = tmp_path / "other"
    other.mkdir()
    write_manifest(other, dataclasses.replace(manifest, table=manifest.table.iloc[:50]))
    with pytest.raises(UserError, match="another data set"):
        masked(other, tmp_path / "b", masks=masks)


def test_the_cascade_does_what_its_parts_do(phantoms, runs):
    segmenter, masks, classifier, out = runs
    table = read_manifest(out / "lungs").rows("test")[:5]
    config = CascadeConfig(images=tuple(table["path"]), segment=(segmenter,), classify=classifier)
    seen = cascade(config, read_images(config.images)[0])
    expected = pd.read_parquet(classifier / "predictions" / "test.parquet").set_index("image_id").loc[table["image_id"]]
    found = np.array([list(one.probabilities.values()) for one in seen])
    np.testing.assert_allclose(found, expected.filter(like="prob_").to_numpy(), atol=1e-4)
    counted = pd.read_parquet(masks).set_index(["image_id", "region"])
    for image, one in zip(table["image_id"], seen, strict=True):
        assert one.masks["lung"].sum() == counted.loc[(image, "lung"), ["tp", "fp"]].sum()
        assert one.masks["lung"].shape == (96, 96)
        assert 0 <= one.infected_share <= 1


def test_the_cascade_refuses_runs_that_do_not_fit(runs):
    segmenter, _, classifier, _ = runs
    image = {"a": np.zeros((50, 40), np.uint8)}
    for config, match in (
        (CascadeConfig(images=("a",), segment=(classifier,), classify=classifier), "wants one of segmentation"),
        (CascadeConfig(images=("a",), segment=(segmenter,), classify=segmenter), "wants one of classification"),
    ):
        with pytest.raises(UserError, match=match):
            cascade(config, image)


def test_the_cascade_job_draws_every_image_and_names_what_it_can_not_read(phantoms, runs, tmp_path):
    segmenter, _, classifier, _ = runs
    good = read_manifest(phantoms).table["path"][0]
    (tmp_path / "page.png").write_text("<html>")
    command = [sys.executable, ROOT / "jobs" / "cascade.py", good, tmp_path / "page.png", "--json"]
    command += ["--segment", segmenter, "--classify", classifier, "--out", tmp_path / "drawn"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "page.png: is an HTML page" in done.stderr
    (found,) = json.loads(done.stdout)
    assert found["label"] == max(found["probabilities"], key=found["probabilities"].get)
    assert Image.open(found["overlay"]).size[0] > 300
    assert NO_NEGATIVES_NOTE not in done.stderr


def test_the_cascade_says_where_healthy_lungs_were_never_tested(phantoms, runs, tmp_path, capsys):
    from clipcovid.commands.cascade import main

    segmenter, _, classifier, _ = runs
    infected = shutil.copytree(segmenter, tmp_path / "infected")
    body = read_metrics(infected)
    assert NO_NEGATIVES_NOTE not in body["test"]["notes"]  # a third of the phantoms is healthy
    body["test"]["notes"].append(NO_NEGATIVES_NOTE)
    write_json(infected / "metrics.json", body)
    image = read_manifest(phantoms).table["path"][0]
    main(CascadeConfig(images=(image,), segment=(infected,), classify=classifier, out=tmp_path / "drawn"))
    told = capsys.readouterr()
    assert f"{infected}. On its test images: {NO_NEGATIVES_NOTE}" in told.err
    assert Path(image).name in told.out
    assert str(tmp_path / "drawn") in told.out.replace("\n", "")
