"""Segmentation, from the network to the run folder and to predictions of other data."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import HERE, shown_below
from PIL import Image
from safetensors.torch import save_file

from clipcovid.config import AugmentConfig, ImagesConfig, OptimConfig, UserError
from clipcovid.data.augment import Augment
from clipcovid.data.images import fit_mask, resize_geometry
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.rle import decode_rle
from clipcovid.data.sources import PhantomConfig
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.evaluate.segmentation import per_image_metrics
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.segment.task import (
    THRESHOLD_BINS,
    _histograms,
    boundary_loss,
    box_loss,
    keep_largest_components,
    segmentation_loss,
)
from clipcovid.methods.task import make_task
from clipcovid.models.normalization import undo_fit
from clipcovid.models.unet import build_segmenter
from clipcovid.training.trainer import train_model
from clipcovid.workflows.crossval import cross_validate

LOSSES = ("dice-bce", "dice-focal", "tversky", "dice-boundary")


def quiet(text):
    pass


def segment(data, out, **settings):
    optim = OptimConfig(epochs=2, batch_size=12, lr=2e-3)
    given = {"target": "both", "weights": "none", "optim": optim, "compute": HERE, "image_size": 32} | settings
    return SegmentConfig(data=data, out=out, **given)


def build(arch="unet", encoder="resnet18", weights="none", channels=1, size=48):
    return build_segmenter(arch, encoder, weights, regions=2, channels=channels, size=size, seed=0)


@pytest.mark.parametrize("arch", ["unet", "unetplusplus", "deeplabv3plus", "segformer"])
@torch.no_grad()
def test_architectures_segment_images_of_any_size(arch):
    maps = build(arch, size=50).eval()(torch.randint(0, 256, (2, 37, 61), dtype=torch.uint8))
    assert maps.shape == (2, 2, 50, 50)
    assert maps.isfinite().all()


def test_an_encoders_file_is_loaded_and_its_stem_summed_for_gray(tmp_path):
    made = timm.create_model("resnet18").state_dict()
    theirs = {key: value + 0.01 if value.is_floating_point() else value for key, value in made.items()}
    save_file(theirs, tmp_path / "resnet18.safetensors")
    own = build(weights=str(tmp_path / "resnet18.safetensors")).body.encoder.state_dict()
    assert torch.allclose(own["conv1.weight"], theirs["conv1.weight"].sum(dim=1, keepdim=True), atol=1e-6)
    for key, value in own.items():
        assert key == "conv1.weight" or value.equal(theirs[key]), key
    colour = build(weights=str(tmp_path / "resnet18.safetensors"), channels=3).body.encoder.state_dict()
    assert colour["conv1.weight"].equal(theirs["conv1.weight"])


@pytest.mark.parametrize(
    ("arch", "prefix", "channels"),
    [("tf_efficientnet_lite0", "model.", 1), ("convnext_atto", "", 3), ("regnety_002", "module.encoder.model.", 1)],
)
def test_timms_encoders_take_the_files_that_timm_takes(tmp_path, arch, prefix, channels):
    """Against timm's own loading of the same file; its extractors call some tensors otherwise than its classifiers."""
    torch.manual_seed(3)
    plain = {name: torch.randn_like(value.float()) for name, value in timm.create_model(arch).state_dict().items()}
    save_file(plain, tmp_path / "plain.safetensors")
    file = {"file": str(tmp_path / "plain.safetensors")}
    theirs = timm.create_model(
        arch, pretrained=True, features_only=True, in_chans=channels, pretrained_cfg_overlay=file
    ).state_dict()
    save_file({prefix + name: value for name, value in plain.items()}, tmp_path / "given.safetensors")
    body = build(encoder=f"tu-{arch}", weights=str(tmp_path / "given.safetensors"), channels=channels).body
    own = body.encoder.model.state_dict()
    assert own.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(own[name].float(), value.float(), atol=1e-5), name


@torch.no_grad()
def test_real_weights_see_the_same_in_a_segmenter_as_in_timm(real_weights):
    path = real_weights / "tf_efficientnet_lite0.safetensors"
    theirs = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(path)}
    ).eval()
    ours = build(encoder="tu-tf_efficientnet_lite0", weights=str(path), channels=3).body.encoder.eval()
    values = torch.randn(1, 3, 64, 64)
    for own, expected in zip(ours(values)[1:], theirs(values), strict=True):
        assert torch.allclose(own, expected, atol=1e-4)


def test_weights_of_another_encoder_or_none_at_all_are_refused(tmp_path):
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "other.safetensors")
    short = timm.create_model("resnet18").state_dict()
    del short["layer3.0.conv1.weight"]
    save_file(short, tmp_path / "short.safetensors")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match=r"layer3\.0\.conv1\.weight"):
        build(weights=str(tmp_path / "short.safetensors"))
    with pytest.raises(UserError, match=r"does not fit --encoder resnet50: .* looks like a resnet34"):
        build(encoder="resnet50", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=r"text\.pt is text"):
        build(weights=str(tmp_path / "text.pt"))
    with pytest.raises(UserError, match="no such file"):
        build(weights="nowhere.pt")
    with pytest.raises(UserError, match="resnet18"):
        build(encoder="resnet99")


def test_published_weights_that_can_not_be_downloaded_are_no_random_ones(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"resnet18 can't be had.*hf download smp-hub/resnet18.imagenet"):
        build(weights="imagenet")


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_means_over_images_and_least_at_the_truth(kind):
    torch.manual_seed(0)
    logits, truth = torch.randn(4, 2, 24, 24), (torch.rand(4, 2, 24, 24) > 0.6).float()
    together = segmentation_loss(logits, truth, kind)
    apart = [segmentation_loss(logits[at : at + 1], truth[at : at + 1], kind) for at in range(4)]
    assert together.item() == pytest.approx(sum(apart).item() / 4, abs=1e-5)
    right, wrong = (truth * 2 - 1) * 8, (truth * 2 - 1) * -8
    assert segmentation_loss(right, truth, kind) < 0.05 < together < segmentation_loss(wrong, truth, kind)
    empty = segmentation_loss(torch.full((1, 1, 8, 8), -9.0), torch.zeros(1, 1, 8, 8), kind)
    assert 0 <= empty < 0.1


def test_the_boundary_loss_asks_for_edges_within_reach():
    square = torch.zeros(1, 1, 32, 32)
    square[..., 8:24, 8:24] = 1
    near, far = square.roll(2, dims=3), square.roll(7, dims=3)
    assert boundary_loss(square, square) < 1e-3
    assert boundary_loss(near, square) < 0.05
    assert boundary_loss(far, square) > 0.3


def test_what_fills_its_boxes_and_nothing_else_has_no_box_loss():
    boxes = torch.zeros(2, 3, 32, 32)
    boxes[0, 0, 4:12, 6:20], boxes[0, 1, 18:30, 2:9], boxes[1, 0, 10:20, 10:20] = 1, 1, 1
    union = boxes.amax(dim=1, keepdim=True)
    full = box_loss((union * 2 - 1) * 12, boxes, 0.6)
    assert full < 1e-3
    leaking, missing = union.clone(), union.clone()
    leaking[1, 0, :, 25:] = 1
    missing[0, 0, 18:30, 2:9] = 0
    thin = torch.zeros_like(union)
    thin[..., torch.arange(32), torch.arange(32)] = 1
    thin = thin * union
    for wrong in (leaking, missing, thin):
        assert box_loss((wrong * 2 - 1) * 12, boxes, 0.6) > full + 0.1
    assert box_loss(torch.full((1, 1, 8, 8), -12.0), torch.zeros(1, 1, 8, 8), 0.6) < 1e-3  # no box, and nothing found


@pytest.mark.parametrize("supervision", ["boxes", "mask-boxes"])
def test_boxes_are_those_around_the_masks(phantoms, supervision):
    config = segment(phantoms, Path("unused"), target="infection", supervision=supervision, augment=NO_AUGMENT)
    manifest = read_manifest(phantoms)
    task = make_task(config, manifest.classes, ImagesConfig(**manifest.info["images"]))
    examples = task.examples(phantoms, manifest, "train", None, training=True)
    boxes = examples.read(np.arange(len(examples)))["masks"]
    masks = task.reader(PackedImages(phantoms, manifest), examples.rows, None)(np.arange(len(examples)))["masks"]
    inside = (boxes > 0).any(axis=1)
    assert (inside | (masks[:, 0] == 0)).mean() > 0.999  # all that is infected is in a box
    assert 1.1 < inside.sum() / (masks > 0).sum() < 2.5
    assert not inside[(masks == 0).all(axis=(1, 2, 3))].any()
    assert task.setup(phantoms, manifest).maps.shape == masks.shape[1:]


def test_boxes_teach_where_to_look(phantoms, tmp_path):
    optim = OptimConfig(epochs=2, batch_size=12, lr=2e-3)
    config = segment(phantoms, tmp_path, target="lung", supervision="mask-boxes", augment=NO_AUGMENT, optim=optim)
    trained = train_model(config, log=quiet)
    assert trained.scores.metrics["lung/iou"] > 0.3
    for settings in ({"target": "both"}, {"target": "lung", "augment": AugmentConfig()}):
        with pytest.raises(UserError, match=r"--augment\.rotate 0"):
            segment(phantoms, tmp_path, supervision="boxes", **({"augment": NO_AUGMENT} | settings))


def test_masks_move_with_their_images():
    rng = np.random.default_rng(0)
    points = torch.from_numpy((rng.random((3, 40, 40)) > 0.5).repeat(8, 1).repeat(8, 2)[:, :64, :64] * np.uint8(255))
    augment = Augment(AugmentConfig(rotate=20, shift=0.1, scale=0.2, flip=True, intensity=0, noise=0), seed=3)
    images = augment(points, 5, [0, 1, 2])
    masks = augment.transform_masks(points.unsqueeze(1), 5, [0, 1, 2])
    assert masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 255}
    assert ((images > 127.5) == (masks[:, 0] > 0)).all()
    assert (masks[:, 0] != points).any()
    still = Augment(NO_AUGMENT, seed=3)
    assert still.transform_masks(points.unsqueeze(1), 5, [0, 1, 2]).equal(points.unsqueeze(1))


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(120, 90), (64, 200), (75, 75)])
def test_maps_go_back_to_where_their_images_came_from(fit, shape):
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 3 : shape[0] // 2 + 6, shape[1] // 2 - 9 : shape[1] // 2 + 11] = 255
    how = ImagesConfig(size=96, fit=fit)
    back = (
        undo_fit(fit_mask(mask, shape, how).astype(np.float32)[None] / 255, shape, resize_geometry(shape, 96, fit))[0]
        > 0.5
    )
    assert back.shape == shape
    true = mask > 0
    assert (back & true).sum() / (back | true).sum() > 0.85


def test_histograms_hold_the_counts_of_every_threshold():
    torch.manual_seed(1)
    maps, masks = torch.rand(2, 2, 16, 16), (torch.rand(2, 2, 16, 16) > 0.5).to(torch.uint8) * 255
    counts = _histograms(maps, masks)
    for at in (1, 7, THRESHOLD_BINS - 1):
        found = maps >= at / THRESHOLD_BINS
        assert counts[:, :, 1, at:].sum(dim=-1).equal((found & (masks > 0)).sum(dim=(2, 3)).float())
        assert counts[:, :, 0, at:].sum(dim=-1).equal((found & (masks == 0)).sum(dim=(2, 3)).float())


def test_the_threshold_is_the_one_that_validates_best():
    task = make_task(segment(Path("unused"), Path("unused"), target="lung"), ("a", "b"), ImagesConfig(size=16))
    masks = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
    masks[:2, :, 4:12, 4:12] = 255  # the third has none, and counts in no mean
    maps = torch.where(masks > 0, 0.32, 0.27) + torch.zeros(3, 1, 16, 16)
    scores = task.validation_scores(None, _histograms(maps, masks).numpy())
    assert scores["lung_threshold"] == 0.3
    assert scores["iou"] == scores["lung_iou"] == 1
    with pytest.raises(UserError, match="No image of a split has any lung"):
        task.validation_scores(None, _histograms(maps, masks * 0).numpy())


def test_the_largest_parts_are_kept():
    mask = np.zeros((20, 20), bool)
    mask[1:4, 1:4], mask[8:13, 8:13], mask[15:19, 2:6] = True, True, True
    assert keep_largest_components(mask, 0).sum() == mask.sum()
    assert keep_largest_components(mask, 1).sum() == 25
    assert keep_largest_components(mask, 2).sum() == 41
    assert keep_largest_components(mask, 9).sum() == mask.sum()
    assert not keep_largest_components(np.zeros((5, 5), bool), 2).any()


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    config = segment(phantoms, tmp_path_factory.mktemp("segment"), components=2, within_lungs=True, tta=True)
    return config, train_model(config, log=quiet)


def test_a_run_folder_has_masks_scores_and_overlays(finished, phantoms):
    _, trained = finished
    table, about = read_predictions(trained.run.folder / "predictions" / "test.parquet")
    manifest = read_manifest(phantoms)
    assert about["task"] == "segmentation"
    assert set(table["image_id"]) == set(manifest.rows("test")["image_id"])
    assert sorted(set(table["region"])) == ["infection", "lung"]
    lungs, infections = (table[table["region"] == region].set_index("image_id") for region in ("lung", "infection"))
    for image, row in infections.iterrows():
        true = np.array(Image.open(manifest.table.set_index("image_id").loc[image, "infection_mask"])) > 0
        found = decode_rle(row["mask"])
        assert found.shape == true.shape == (96, 96)  # the file's size, not the packed or the model's
        assert (row["tp"], row["fn"]) == ((found & true).sum(), (~found & true).sum())
        assert not (found & ~decode_rle(lungs.loc[image, "mask"])).any()
    figures = {path.stem for path in (trained.run.folder / "figures").glob("*.png")}
    assert figures >= {"curves", "test_overlays_lung", "test_overlays_infection"}
    assert trained.scores.metrics["lung/iou"] == pytest.approx(per_image_metrics(lungs)["iou"].mean())
    assert trained.run.metrics()["test-atlas"]["metrics"]["lung/iou"] > 0.5  # phantoms' lungs are much alike


def test_predictions_of_a_run_are_its_own_again(finished, phantoms, tmp_path):
    _, trained = finished
    again = predict_split(PredictConfig(run=trained.run.folder, data=phantoms, out=tmp_path, compute=HERE), log=quiet)
    ours, _ = read_predictions(again.run.folder / "predictions" / "test.parquet")
    theirs, _ = read_predictions(trained.run.folder / "predictions" / "test.parquet")
    assert ours["mask"].tolist() == theirs["mask"].tolist()
    assert again.scores.metrics == pytest.approx(trained.scores.metrics)


def test_images_without_masks_are_predicted_and_not_scored(finished, tmp_path):
    data = tmp_path / "bare"
    prepare(PrepareConfig(out=data, phantom=PhantomConfig(images=20, size=80, seed=4), compute=HERE), log=quiet)
    manifest = read_manifest(data)
    bare = manifest.table.assign(lung_mask="", infection_mask="", label="")
    write_manifest(data, dataclasses.replace(manifest, table=bare))
    config = PredictConfig(run=finished[1].run.folder, data=data, out=tmp_path, split="all", compute=HERE)
    predicted = predict_split(config, log=quiet)
    assert predicted.scores is None
    table, _ = read_predictions(predicted.run.folder / "predictions" / "all.parquet")
    assert len(table) == 40
    assert table["tp"].isna().all()
    assert decode_rle(table["mask"][0]).shape == (80, 80)


def test_only_images_with_the_masks_are_used_and_the_others_counted(phantoms, tmp_path):
    manifest = read_manifest(phantoms)
    gone = manifest.rows("train")["image_id"][:5].tolist() + manifest.rows("test")["image_id"][:2].tolist()
    table = manifest.table
    table.loc[table["image_id"].isin(gone), "infection_mask"] = ""
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(phantoms / "images")
    write_manifest(data, dataclasses.replace(manifest, table=table))
    said = []
    optim = OptimConfig(epochs=1, batch_size=12)
    trained = train_model(segment(data, tmp_path, target="infection", optim=optim), log=said.append)
    assert "5 training images without an infection mask are left out." in said
    assert "2 images without an infection mask are left out." in trained.scores.notes
    assert not set(gone) & set(read_predictions(trained.run.folder / "predictions" / "test.parquet")[0]["image_id"])
    table["infection_mask"] = ""
    write_manifest(data, dataclasses.replace(manifest, table=table))
    with pytest.raises(UserError, match=r"No image of the train split .* has an infection mask"):
        train_model(segment(data, tmp_path, target="infection", name="none"), log=quiet)


def test_folds_pool_every_image_once(phantoms, tmp_path, monkeypatch):
    config = segment(phantoms, tmp_path, target="lung", optim=OptimConfig(epochs=1, batch_size=12))
    run = cross_validate(config, 2)
    table, _ = read_predictions(run.folder / "predictions" / "crossval.parquet")
    assert sorted(table["image_id"]) == sorted(read_manifest(phantoms).table["image_id"])
    assert len(run.metrics()["crossval"]["folds"]) == 2
    assert shown_below(tmp_path) == {run.name: ["fold-1", "fold-2"]}
    monkeypatch.setattr(SegmentConfig, "check_initial_weights", lambda config: pytest.fail("weights were looked for"))
    assert cross_validate(config, 2).metrics() == run.metrics()  # finished: nothing is trained again


def test_masks_of_any_make_are_scored_alike(tmp_path):
    """Of 0/1, of 0/255, in colour, of another size, blank, with two objects: right, or quarantined with a reason."""
    truth = np.zeros((60, 80), np.uint8)
    truth[10:30, 10:40], truth[40:50, 50:70] = 1, 1
    twice = truth.repeat(2, axis=0).repeat(2, axis=1)
    masks = {
        "ones": truth,
        "white": truth * 255,
        "colour": np.stack([truth * 255] * 3, axis=2),
        "twice": twice * 255,
        "blank": truth * 0,
        "torn": None,
    }
    rows = ["path,label,infection_mask"]
    for name, mask in masks.items():
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (60, 80), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
        if mask is None:
            (tmp_path / f"{name}-mask.png").write_bytes(b"no image")
        else:
            Image.fromarray(mask).save(tmp_path / f"{name}-mask.png")
        rows.append(f"{name}.png,a,{name}-mask.png")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    prepare(
        PrepareConfig(
            source="table",
            root=str(tmp_path / "table.csv"),
            out=tmp_path / "d",
            max_bad=0.5,
            compute=HERE,
            images=ImagesConfig(size=48),
        ),
        log=quiet,
    )
    manifest = read_manifest(tmp_path / "d")
    quarantined = pd.read_parquet(tmp_path / "d" / "quarantine.parquet")
    assert quarantined["path"].str.contains("torn-mask").any()
    task = make_task(segment(Path("unused"), Path("unused"), target="infection"), ("a",), ImagesConfig(size=48))
    known = manifest.table[manifest.table["infection_mask"] != ""].reset_index(drop=True)
    batch = task.reader(PackedImages(tmp_path / "d", manifest), known, None)(np.arange(len(known)))
    found = {}
    for row, packed in zip(batch["metadata"], batch["masks"], strict=True):
        assert set(np.unique(packed)) <= {0, 255}
        found[Path(row["path"]).stem] = task.score_image(packed / np.float32(255), row, (0.5,))[0]
    assert set(found) == {"ones", "white", "colour", "twice", "blank"}
    counts = [tuple(found[name][key] for key in ("tp", "fp", "fn", "tn")) for name in ("ones", "white", "colour")]
    assert counts[0] == counts[1] == counts[2]
    tp, fp, fn, _ = counts[0]
    assert tp / (tp + fp + fn) > 0.9
    tp, fp, fn, tn = (found["twice"][key] for key in ("tp", "fp", "fn", "tn"))
    assert tp / (tp + fp + fn) > 0.9
    assert tp + fp + fn + tn == 120 * 160  # counted at the mask's own size
    assert (found["blank"]["tp"], found["blank"]["fp"], found["blank"]["fn"]) == (0, 0, 0)
    assert per_image_metrics(pd.DataFrame([found["blank"]]))["iou"].isna().all()


def test_masks_are_scored_as_their_own_data_set_was_prepared(tmp_path):
    """A model of a set that was squashed, on one that was cropped and whose masks have several values."""
    truth = np.zeros((60, 120), np.uint8)
    truth[10:50, 40:80], truth[:10, :30] = 2, 1
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(truth).save(tmp_path / "a-mask.png")
    (tmp_path / "table.csv").write_text("path,label,lung_mask\na.png,a,a-mask.png")
    images = ImagesConfig(size=60, fit="crop", mask_value=("2",))
    out, table = tmp_path / "d", str(tmp_path / "table.csv")
    prepare(PrepareConfig(source="table", root=table, out=out, compute=HERE, images=images), log=quiet)
    manifest = read_manifest(out)
    task = make_task(segment(Path("unused"), Path("unused"), target="lung"), ("a",), ImagesConfig(size=60))
    batch = task.reader(PackedImages(out, manifest), manifest.table, None)(np.array([0]))
    row = task.score_image(batch["masks"][0] / np.float32(255), batch["metadata"][0], (0.5,))[0]
    assert (row["tp"], row["fp"], row["fn"]) == (1600, 0, 0)


def test_infections_lie_in_the_lungs_that_are_kept():
    config = segment(Path("unused"), Path("unused"), within_lungs=True, components=1)
    maps = np.zeros((2, 40, 40), np.float32)  # a large part of the lungs and a small one, an infection in each
    maps[0, 5:30, 5:15], maps[0, 5:10, 30:35], maps[1, 6:8, 6:8], maps[1, 5:10, 30:35] = 1, 1, 1, 1
    found = make_task(config, ("a",), ImagesConfig(size=40)).masks(maps, (0.5, 0.5), (40, 40), "squash")
    assert found["lung"].sum() == 250
    assert np.array_equal(np.argwhere(found["infection"]), np.argwhere(maps[1] * maps[0, :, :] * (np.arange(40) < 20)))


def test_settings_that_can_not_be_are_refused():
    with pytest.raises(UserError, match="--target both"):
        SegmentConfig(data="unused", within_lungs=True)
    with pytest.raises(UserError, match="--components"):
        SegmentConfig(data="unused", components=-1)
