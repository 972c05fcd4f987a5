"""Synthetic chest X-rays of three classes, with masks, patients, views, sites, boxes and captions.

    python -m clipcovid.data.phantoms docs/images/phantoms.png

They look roughly like radiographs and mean nothing medically: they let every step run and be tested without a download.
The class stands in the lungs' texture alone. Anatomy, pose, site, view and devices are drawn without knowing the class,
opacities are drawn inside the lung mask only, and the lungs' grey values are rank-matched to a target histogram drawn
without knowing it either, so that histogram, borders and lung shape do not tell the class.

Radiological convention: the patient faces the viewer, so the patient's left is the image's right.
"""

import csv
import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from clipcovid.config import UserError
from clipcovid.data.phantom_anatomy import (
    FILM,
    STAGE,
    WORDS,
    draw_chest,
    draw_devices,
    expose,
    lung_depth,
    randomize_histogram,
    sample_film,
    sample_patient,
)
from clipcovid.data.phantom_captions import clear_lungs_sentence, device_sentences, findings_sentences
from clipcovid.data.phantom_disease import draw_disease, part_boxes
from clipcovid.io.files import unknown_file
from clipcovid.prompts import CLASSES

PHANTOM_VERSION = 1
"""Raised whenever the same (index, seed) gives another picture or caption."""
METADATA_COLUMNS = ("path", "label", "patient_id", "source", "view", "caption", "lung_mask", "infection_mask", "boxes")


@dataclass(frozen=True, kw_only=True)
class PhantomImage:
    """One synthetic radiograph and everything known about it."""

    image: np.ndarray
    """(size, size) uint8, 0 black (air) to 255 white (bone)."""
    lung_mask: np.ndarray
    """(size, size) uint8, 255 inside the lungs (heart and diaphragm left out), else 0."""
    infection_mask: np.ndarray
    """(size, size) uint8, 255 where there is an opacity, else 0; inside the lung mask; blank for Normal."""
    label: str
    """One of CLASSES, the same for all images of a patient."""
    patient_id: str
    source: str
    """One of SITES, the same for all images of a patient."""
    view: str
    """PA or AP."""
    caption: str
    """A short report of what was drawn; left and right are the patient's."""
    boxes: list[dict[str, str | int]]
    """{"label": "infection", "x", "y", "width", "height"} in pixels, one a part (8-connected) of infection_mask."""


def draw_phantom(index: int, *, size: int = 256, seed: int = 0) -> PhantomImage:
    """Image number `index` (0, 1, …) of the endless series `seed`; `size` (pixels) only sets how finely it is drawn."""
    patient = sample_patient(index, seed)
    rng = np.random.default_rng([seed, FILM, index])
    film = sample_film(patient, size, rng)
    depth, dome, heart = lung_depth(patient, film)
    lungs = depth > 0
    scene = draw_chest(patient, film, depth, dome, heart, rng)
    opacity, parts, bronchogram = draw_disease(patient, film, depth, np.random.default_rng([seed, STAGE, index]))
    values = (scene + opacity)[lungs]
    scene[lungs] = randomize_histogram(values, rng)
    device = draw_devices(film, scene, rng)
    image = expose(scene, patient.source, rng)
    infection, boxes = parts > 0, part_boxes(parts)
    words = np.random.default_rng([seed, WORDS, index])
    large = film.heart * 0.33 > 0.5 * patient.width
    more = device_sentences(words, film.view, large, device)
    if boxes:
        caption = findings_sentences(words, patient.label, lungs, infection, film.u < 0, len(boxes), bronchogram) + more
    else:
        caption = clear_lungs_sentence(words, large) + more
    return PhantomImage(
        image=image,
        lung_mask=lungs.astype(np.uint8) * 255,
        infection_mask=infection.astype(np.uint8) * 255,
        label=patient.label,
        patient_id=patient.patient_id,
        source=patient.source,
        view=film.view,
        caption=caption,
        boxes=boxes,
    )


def write_phantoms(root: Path, *, images: int = 600, size: int = 256, seed: int = 0) -> Path:
    """Write a data set: images/, lung_masks/, infection_masks/ and, last, metadata.csv (paths relative to `root`).

    Done already with the same parameters: nothing happens. With others: it is written anew. Returns `root`.
    """
    parameters_file, table = root / "phantom.json", root / "metadata.csv"
    parameters = {"images": images, "size": size, "seed": seed, "version": PHANTOM_VERSION}
    previous = json.loads(parameters_file.read_bytes()) if parameters_file.exists() else None
    if previous is None and (path := unknown_file(root)):
        raise UserError(f"{root} holds {path.relative_to(root)} that is not a phantom set's; choose another folder.")
    if table.exists() and previous == parameters:
        return root
    table.unlink(missing_ok=True)
    folders = [root / name for name in ("images", "lung_masks", "infection_masks")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(images, previous["images"] if previous else 0):
            (folder / f"{index:05d}.png").unlink(missing_ok=True)
    parameters_file.write_text(json.dumps(parameters) + "\n", encoding="utf-8")

    def write(index: int) -> tuple[str, ...]:
        phantom = draw_phantom(index, size=size, seed=seed)
        paths = [f"{folder.name}/{index:05d}.png" for folder in folders]
        for path, pixels in zip(paths, (phantom.image, phantom.lung_mask, phantom.infection_mask), strict=True):
            Image.fromarray(pixels).save(root / path, compress_level=1)
        metadata = (phantom.label, phantom.patient_id, phantom.source, phantom.view, phantom.caption)
        return paths[0], *metadata, *paths[1:], json.dumps(phantom.boxes)

    unfinished = root / "metadata.csv.tmp"
    with unfinished.open("w", newline="", encoding="utf-8") as file, ThreadPoolExecutor(2) as pool:
        rows = csv.writer(file)
        rows.writerow(METADATA_COLUMNS)
        drawn = pool.map(write, range(images))  # threads, since NumPy and PNG coding let go of the lock
        rows.writerows(tqdm(drawn, total=images, desc="Drawing phantoms", unit="img"))
    unfinished.replace(table)
    return root


def contact_sheet(path: Path, *, columns: int = 5, size: int = 256, seed: int = 0) -> None:
    """Draw one row a class, each image beside itself with the outlines of its lungs (cyan) and its infection (red)."""
    import matplotlib  # here, because only the sheet needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows: dict[str, list[PhantomImage]] = {name: [] for name in CLASSES}
    index = 0
    while any(len(row) < columns for row in rows.values()):
        phantom = draw_phantom(index, size=size, seed=seed)
        row = rows[phantom.label]
        if len(row) < columns and phantom.patient_id not in {other.patient_id for other in row}:
            row.append(phantom)
        index += 1
    figure, axes = plt.subplots(2 * len(rows), columns, figsize=(2.6 * columns, 17.5), layout="constrained")
    for number, (name, row) in enumerate(rows.items()):
        for column, phantom in enumerate(row):
            for axis in (plain := axes[2 * number, column], marked := axes[2 * number + 1, column]):
                axis.imshow(phantom.image, cmap="gray", vmin=0, vmax=255)
                axis.set(xticks=[], yticks=[])
            marked.contour(phantom.lung_mask, [127], colors="cyan", linewidths=0.6)
            if phantom.boxes:
                marked.contour(phantom.infection_mask, [127], colors="red", linewidths=1.0)
            plain.set_title(f"{name} · {phantom.view} · {phantom.source}", fontsize=8)
            marked.set_xlabel(textwrap.fill(phantom.caption, 38), fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    contact_sheet(Path(sys.argv[1]))
