"""Prepared data sets made on the spot for the tests of the audit, and the faults planted in them."""

import dataclasses

import numpy as np
import pandas as pd

from clipcovid.audit.data import PreparedSet, read_prepared_set
from clipcovid.data.images import pixel_hash
from clipcovid.data.manifest import Manifest, normalize_columns, write_manifest
from clipcovid.data.phantoms import draw_phantom
from clipcovid.data.shards import write_shard

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def write_set(folder, images, rows, masks=None):
    """A prepared folder of images uint8 (n, s, s), the manifest's columns of `rows`, and lung masks where there are any."""
    n, size = len(images), images.shape[1]
    table = pd.DataFrame({"image_id": [f"{i}.png" for i in range(n)], "path": [f"{i}.png" for i in range(n)]} | rows)
    table["sha256"] = [pixel_hash(image) for image in images]
    table["width"], table["height"] = rows.get("width", size), rows.get("height", size)
    if masks is not None:
        table["lung_mask"] = ["mask.png" if mask is not None else "" for mask in masks]
    packed = [
        {"image_id": name, "image": image.tobytes(), "width": size, "height": size, "sha256": "", "bad": "{}"}
        | ({"lung_mask": masks[i].tobytes()} if masks is not None and masks[i] is not None else {})
        for i, (name, image) in enumerate(zip(table["image_id"], images, strict=True))
    ]
    write_shard(folder / "images" / "00000.arrow", packed)
    table["split"] = rows.get("split", "train")
    info = {"images": {"size": size, "mode": "gray", "fit": "squash"}, "pack_hash": "p"}
    classes = tuple(label for label in dict.fromkeys(table["label"]) if label)
    write_manifest(folder, Manifest(table=normalize_columns(table), classes=classes, dataset="made", info=info))
    return folder


def noise_set(folder, n=240, size=64, seed=0, images_a_patient=2, **columns):
    """A prepared set of smooth noise that knows nothing of its class; two images a patient."""
    rng = np.random.default_rng(seed)
    images = noise(rng, n, size)
    patients = [f"p{i // images_a_patient}" for i in range(n)]
    labels = [CLASSES[(i // images_a_patient) % 3] for i in range(n)]
    return images, {"label": labels, "patient_id": patients} | columns


def noise(rng, n, size):
    """Images uint8 (n, size, size) of smooth noise."""
    coarse = rng.normal(size=(n, size // 4, size // 4)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(128 + 30 * coarse + 10 * rng.normal(size=(n, size, size)), 0, 255).astype(np.uint8)


def phantoms_of_patients(count, *, size, seed):
    """Phantoms uint8 (count, size, size) of a patient each: two films of one patient are much alike."""
    images, at = {}, 0
    while len(images) < count:
        phantom = draw_phantom(at, size=size, seed=seed)
        images[phantom.patient_id] = phantom.image
        at += 1
    return np.stack(list(images.values()))


def open_set(folder) -> PreparedSet:
    """A prepared folder as an audit sees it."""
    return read_prepared_set(folder, folder.name)


def with_table(prepared, **columns):
    """A prepared set with other values in some columns."""
    return dataclasses.replace(prepared, manifest=prepared.manifest.with_columns(**columns))
