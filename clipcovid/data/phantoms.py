"""Synthetic chest X-rays of three classes, with masks, patients, views, sites, boxes and captions.

    python -m clipcovid.data.phantoms docs/images/phantoms.png

They look roughly like radiographs and mean nothing medically: they let every step run and be tested without a download.
The class stands in the lungs' texture alone. Anatomy, pose, site, view and devices are drawn without knowing the class,
opacities are drawn inside the lung mask only, and the lungs' grey values are rank-matched to a target histogram drawn
without knowing it either, so that histogram, borders and lung shape do not tell the class.

Radiological convention: the patient faces the viewer, so the patient's left is the image's right.
"""

import csv
import functools
import json
import math
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from tqdm import tqdm

from clipcovid.config import UserError
from clipcovid.data.phantom_captions import clear, extras, findings
from clipcovid.io.files import foreign_file
from clipcovid.prompts import CLASSES

SHARES = (0.35, 0.33, 0.32)
VERSION = 1
"""Raised whenever the same (index, seed) gives another picture or caption."""
SITES = {"site-a": (0.00, 1.00, 0.020), "site-b": (0.16, 0.90, 0.030), "site-c": (-0.14, 1.10, 0.025)}
"""Site → brightness of the mid-tones, contrast and noise (standard deviation, where white is 1)."""
COLUMNS = ("path", "label", "patient_id", "source", "view", "caption", "lung_mask", "infection_mask", "boxes")
_BLOCK = 10
_RUNS, _PATIENT, _DISEASE, _STAGE, _FILM, _WORDS = range(6)  # random streams: a change in one leaves the others alone


_Blob = tuple[float, float, float, float, float]
"""Across from hilum to ribs (sign: side), down the lung, half width, half height, fissure (0 none, 1 above, -1 below)."""


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


@dataclass(frozen=True, kw_only=True)
class _Patient:
    """What a patient's images share. Unit: half an image width, from the image's centre, y downwards."""

    patient_id: str
    key: tuple[int, ...]
    label: str
    source: str
    width: float
    top: float
    bottom: float
    hilum: float
    heart: float
    ribs: tuple[float, float, float]
    body: float
    breast: float
    gas: float
    vessels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Film:
    """How one image was taken: pose, view, and the pixels' places in the patient (u, v: (size, size) float32)."""

    view: str
    size: int
    turn: np.ndarray
    shift: np.ndarray
    u: np.ndarray
    v: np.ndarray
    breath: float
    heart: float


def draw_phantom(index: int, *, size: int = 256, seed: int = 0) -> PhantomImage:
    """Image number `index` (0, 1, …) of the endless series `seed`; `size` (pixels) only sets how finely it is drawn."""
    patient = _patient(index, seed)
    rng = np.random.default_rng([seed, _FILM, index])
    film = _take(patient, size, rng)
    depth, dome, heart = _lungs(patient, film)
    lungs = depth > 0
    scene = _scene(patient, film, depth, dome, heart, rng)
    opacity, parts, bronchogram = _disease(patient, film, depth, np.random.default_rng([seed, _STAGE, index]))
    values = (scene + opacity)[lungs]
    scene[lungs] = _match(values, rng)
    device = _devices(film, scene, rng)
    image = _expose(scene, patient.source, rng)
    infection, boxes = parts > 0, _boxes(parts)
    words = np.random.default_rng([seed, _WORDS, index])
    large = film.heart * 0.33 > 0.5 * patient.width
    more = extras(words, film.view, large, device)
    if boxes:
        caption = findings(words, patient.label, lungs, infection, film.u < 0, len(boxes), bronchogram) + more
    else:
        caption = clear(words, large) + more
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


def _patient(index: int, seed: int) -> _Patient:
    """The patient of an image: blocks of ten indices are cut into runs of one to four, so no other block matters."""
    block, place = divmod(index, _BLOCK)
    runs = np.cumsum(np.random.default_rng([seed, _RUNS, block]).integers(1, 5, _BLOCK))
    return _draw_patient(seed, block, int(np.searchsorted(runs, place, side="right")))


@functools.lru_cache(maxsize=16)
def _draw_patient(seed: int, block: int, number: int) -> _Patient:
    rng = np.random.default_rng([seed, _PATIENT, block, number])
    return _Patient(
        patient_id=f"p{block:05d}-{number}",
        key=(seed, _DISEASE, block, number),
        label=CLASSES[rng.choice(3, p=SHARES)],
        source=list(SITES)[rng.integers(3)],
        width=rng.uniform(0.70, 0.80),
        top=rng.uniform(-0.80, -0.72),
        bottom=rng.uniform(0.52, 0.64),
        hilum=rng.uniform(0.11, 0.15),
        heart=rng.uniform(0.78, 1.12),
        ribs=(rng.uniform(0.15, 0.19), rng.uniform(0, 1), rng.uniform(0.10, 0.25)),
        body=rng.uniform(0.93, 1.10),
        breast=max(0.0, rng.uniform(-0.08, 0.08)),
        gas=max(0.0, rng.uniform(-0.15, 0.25)),
        vessels=_vessels(rng),
    )


def _vessels(rng: Generator) -> np.ndarray:
    """Both lungs' vessel trees as quadratic Bézier curves, (48, 3, 2): 8 branches a side, each with 2 twigs."""
    side = np.repeat([-1.0, 1.0], 8)
    angle = np.tile(np.linspace(-1.3, 1.3, 8), 2) + rng.normal(0, 0.1, 16)
    length = rng.uniform(0.35, 0.60, 16)
    hilum = np.stack([np.full(16, 0.15), -0.10 - 0.03 * side], 1)
    fork = hilum + (length * rng.uniform(0.3, 0.5, 16))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    start = np.concatenate([hilum, fork, fork])
    angle = np.concatenate([angle, angle - rng.uniform(0.2, 0.6, 16), angle + rng.uniform(0.2, 0.6, 16)])
    length = np.concatenate([length, *(length * rng.uniform(0.4, 0.7, (2, 16)))])[:, None]
    bent = angle + rng.normal(0, 0.15, 48)
    middle = start + length / 2 * np.stack([np.cos(bent), np.sin(bent)], 1)
    end = start + length * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.stack([start, middle, end], 1) * np.stack([np.tile(side, 3), np.ones(48)], 1)[:, None]


def _take(patient: _Patient, size: int, rng: Generator) -> _Film:
    """Pose: turn by up to 4 degrees, shift, magnify; an AP film magnifies the heart and comes with less breath."""
    view = "AP" if rng.random() < 0.45 else "PA"
    angle = np.deg2rad(np.clip(rng.normal(0, 1.8), -4, 4))
    zoom = rng.uniform(0.95, 1.04)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
    shift = np.clip(rng.normal(0, 0.015, 2), -0.03, 0.03)
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    back = np.linalg.inv(turn)
    x, y = axis[None, :] - shift[0], axis[:, None] - shift[1]
    u = (back[0, 0] * x + back[0, 1] * y).astype(np.float32)
    v = (back[1, 0] * x + back[1, 1] * y).astype(np.float32)
    breath = rng.uniform(-0.03, 0.04) - (0.06 if view == "AP" else 0)
    heart = patient.heart * (1.14 if view == "AP" else 1.0) * rng.uniform(0.97, 1.03)
    return _Film(view=view, size=size, turn=turn, shift=shift, u=u, v=v, breath=breath, heart=heart)


def _lungs(patient: _Patient, film: _Film) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth below the lungs', the diaphragm's and the heart's border (positive: inside), each (size, size) float32."""
    x, v = np.abs(film.u), film.v
    bottom = patient.bottom + film.breath + np.where(film.u < 0, np.float32(-0.03), np.float32(0.02))
    t = np.clip((v - patient.top) / (patient.bottom - patient.top), 0, 1)
    medial = patient.hilum * (1 + 0.9 * np.exp(t / -0.06))
    dome = v - (bottom - 0.17 * (1 - np.square((x - 0.36) / 0.42)))
    across, down = film.u - 0.09, v - (0.26 + film.breath)
    long, short = 0.84 * across + 0.54 * down, 0.84 * down - 0.54 * across
    heart = (1 - np.sqrt(np.square(long / (0.37 * film.heart)) + np.square(short / (0.27 * film.heart)))) * 0.3
    middle = x - medial
    middle = np.minimum(middle, -heart) - np.square(np.maximum(0.12 - np.abs(middle + heart), 0)) / 0.48  # rounded
    return np.minimum(np.minimum(_lateral(patient, t) - x, middle), -dome), dome, heart


def _lateral(patient: _Patient, t: np.ndarray) -> np.ndarray:
    """Distance from the midline to the ribs at `t`, 0 at the lungs' top to 1 at their bottom."""
    return patient.width * np.sqrt(1 - (1 - t) * (1 - t) * (1 - t))


def _scene(
    patient: _Patient, film: _Film, depth: np.ndarray, dome: np.ndarray, heart: np.ndarray, rng: Generator
) -> np.ndarray:
    """The healthy chest, (size, size) float32, 0 black to about 1 white: nothing here knows the class."""
    u, v, size = film.u, film.v, film.size
    x = np.abs(u)
    spine = _bell(x / 0.085) * (0.08 + 0.025 * np.cos(v * (2 * np.pi / 0.14)))
    trachea = _bell(x / 0.04) * _step(-0.28 - v, 0.1)
    solid = 0.50 + 0.17 * _bell(x / 0.20) + spine - 0.09 * trachea
    solid += 0.10 * _step(heart + 0.02, 0.10) + 0.20 * _step(dome, 0.05) + 0.05 * _smooth(rng, size, 6)
    _disc(film, solid, (0.10, -0.30), (0.13, 0.13), 0.3, 0.08)  # the aortic knob
    _disc(film, solid, (0.42, patient.bottom + 0.08), (0.09, 0.06), 0.6, -patient.gas)  # the stomach's gas bubble
    tissue = 0.24 + 0.04 * v + 0.05 * _bell((x - 0.17) / 0.1) * _bell((v + 0.06) / 0.2)
    tissue += 0.035 * _smooth(rng, size, 14)
    tissue += _strokes(film, patient.vessels, np.linspace(0.3, 0.08, size // 4) ** 2, 0.0045)
    inside = _step(depth + 0.012, 0.035)
    scene = solid + inside * (tissue - solid)
    gap, phase, slope = patient.ribs
    chest = _step(0.97 * patient.width + 0.1 - x, 0.06) * _step(v - patient.top + 0.06, 0.1) * _step(-dome + 0.1, 0.2)
    behind = np.cos((v - slope * x + 0.5 * x * x) * (2 * np.pi / gap) + 6.28 * phase)
    before = np.cos((v + 0.9 * x - 0.9 * x * x) * (2 * np.pi / gap / 1.1) + 3.0 * phase)
    scene += chest * (0.055 * _step(behind - 0.15, 0.5) + 0.035 * _step(before - 0.3, 0.5) * _step(x - 0.25, 0.2))
    collar = v - (patient.top + 0.18 - 0.22 * (x - 0.1) + 0.12 * np.sin(6 * x))
    scene += 0.13 * _step(0.035 - np.abs(collar), 0.025) * _step(x - 0.07, 0.05) * _step(0.85 - x, 0.1)
    blade = 0.62 if film.view == "AP" else 0.74  # the shoulder blades lie over the lungs in AP films
    scene += 0.06 * _step(0.17 - np.abs(x - blade - 0.25 * (v + 0.5)), 0.05) * _step(0.3 - np.abs(v + 0.45), 0.1)
    _soft_shadows(patient, film, scene, rng)
    shoulders = np.minimum(v + 1.02 - 0.35 * np.maximum(x - 0.22, 0), patient.body - x)
    return scene * (0.08 + 0.92 * _step(shoulders, 0.08))


def _soft_shadows(patient: _Patient, film: _Film, scene: np.ndarray, rng: Generator) -> None:
    """Breasts, a nipple, a fold of skin or clothing: they mimic opacities, in every class alike."""
    for side in (-1, 1):
        _disc(film, scene, (side * 0.48, 0.38), (0.32, 0.32), 0.25, patient.breast)
        if rng.random() < 0.2:
            place = (side * rng.uniform(0.42, 0.52), rng.uniform(0.28, 0.40))
            _disc(film, scene, place, (0.035, 0.035), 0.6, 0.07)
    if rng.random() < 0.5:
        place, reach = (rng.uniform(-0.6, 0.6), rng.uniform(-0.45, 0.35)), rng.uniform(0.10, 0.22)
        _disc(film, scene, place, (reach, 1.3 * reach), 0.9, rng.uniform(0.03, 0.09))


def _disease(patient: _Patient, film: _Film, depth: np.ndarray, rng: Generator) -> tuple[np.ndarray, np.ndarray, bool]:
    """Added density, numbered parts of the infection (both (size, size)), and whether air bronchograms were drawn.

    Where the opacities lie is the patient's, how far the disease has come is the image's.
    """
    opacity: np.ndarray = np.zeros((film.size, film.size), np.float32)
    if patient.label == "Normal":
        return opacity, np.zeros(opacity.shape, int), False
    fixed = np.random.default_rng(patient.key)
    blobs, density, bronchogram = _covid(fixed) if patient.label == "COVID-19" else _pneumonia(fixed)
    stage = rng.uniform(0.88, 1.10)
    ragged = np.clip(0.22 * _smooth(rng, film.size, 14), -0.6, 0.6)
    shape = np.zeros_like(opacity)
    for fx, fy, wide, high, fissure in blobs:
        cy = patient.top + fy * (patient.bottom + film.breath - 0.03 - patient.top)
        ribs = float(_lateral(patient, np.array((cy - patient.top) / (patient.bottom - patient.top))))
        cx = math.copysign(patient.hilum + abs(fx) * (ribs - patient.hilum), fx)
        here = _window(film, (cx, cy), 2 * stage * max(wide, high))
        a, b = (film.u[here] - cx) / (wide * stage), (film.v[here] - cy) / (high * stage)
        blob = _step(1 - np.sqrt(a * a + b * b) + ragged[here], 0.7)
        if fissure:  # a lobe ends sharply at its fissure
            blob *= _step(fissure * b + 0.25, 0.12)
        blob *= film.u[here] * fx > 0
        shape[here] = np.maximum(shape[here], blob)
    shape *= _step(depth, 0.01)
    parts = _parts((shape > 0.4) & (depth > 0))
    grain = 1 + 0.25 * _smooth(rng, film.size, 20)
    opacity = density * stage * shape * grain
    if bronchogram:
        opacity *= 1 - np.clip(_strokes(film, patient.vessels, np.full(film.size // 4, 0.9), 0.0045), 0, 0.8)
    return opacity, parts, bronchogram


def _covid(rng: Generator) -> tuple[list[_Blob], float, bool]:
    """Bilateral, peripheral, mostly low, patchy and hazy: blobs, density, and no air bronchograms."""
    severity = rng.beta(1.3, 1.8)
    counts = np.maximum(rng.poisson(1 + 2.2 * severity, 2), 1)
    if severity < 0.2 and rng.random() < 0.4:
        counts[rng.integers(2)] = 0  # early disease may show on one side only
    blobs = []
    for side, count in zip((-1, 1), counts, strict=True):
        for _ in range(count):
            across, down = rng.uniform(0.68, 0.92), min(rng.beta(4, 2.2) * 0.85 + 0.08, 0.82)
            reach = rng.uniform(0.09, 0.14) + 0.07 * severity
            blobs.append((side * across, down, reach * rng.uniform(0.7, 1.0), reach * rng.uniform(0.9, 1.4), 0.0))
    return blobs, 0.10 + 0.15 * severity, False


def _pneumonia(rng: Generator) -> tuple[list[_Blob], float, bool]:
    """As `_covid`, but one dense lobe or focus on one side, in a minority both hila."""
    density, bronchogram = rng.uniform(0.15, 0.36), bool(rng.random() < 0.45)
    side = float(rng.choice([-1, 1]))
    if rng.random() < 0.18:
        reach = rng.uniform(0.13, 0.20)
        return [(s * 0.30, rng.uniform(0.45, 0.58), reach, reach * 1.3, 0.0) for s in (-1, 1)], density, bronchogram
    down = float(rng.choice([0.28, 0.52, 0.72], p=[0.25, 0.25, 0.5])) + rng.uniform(-0.04, 0.04)
    reach = rng.uniform(0.13, 0.25)
    fissure = float(rng.choice([0, -1 if down < 0.4 else 1], p=[0.4, 0.6]))
    blobs = [(side * rng.uniform(0.45, 0.80), down, reach, reach * rng.uniform(0.8, 1.2), fissure)]
    if rng.random() < 0.2:
        small = rng.uniform(0.08, 0.12)
        blobs.append((side * rng.uniform(0.4, 0.8), float(rng.uniform(0.25, 0.78)), small, small, 0.0))
    return blobs, density, bronchogram and reach > 0.16


def _match(values: np.ndarray, rng: Generator) -> np.ndarray:
    """Lung values by rank onto a random histogram: without it, more infection would mean brighter lungs."""
    low, span, tail, power = rng.uniform(0.14, 0.24), rng.uniform(0.34, 0.46), rng.uniform(0.3, 0.6), rng.uniform(3, 6)
    levels = np.linspace(0, 1, values.size, dtype=np.float32)
    matched = np.empty_like(values)
    matched[np.argsort(values)] = low + span * ((1 - tail) * levels + tail * levels**power)
    return matched


def _devices(film: _Film, scene: np.ndarray, rng: Generator) -> str:
    """Draw leads, tubes and the side marker into `scene`, all of them whiter than tissue; returns the device's name."""
    size, device = film.size, ""
    if rng.random() < 0.30:
        device = "ECG leads"
        ends = np.stack([rng.uniform([-0.7, -0.5], [0.7, 0.3]) for _ in range(3)])
        middle = ends * 0.5 + rng.normal(0, 0.15, (3, 2)) + (0, -0.2)
        leads = np.stack([np.tile([rng.uniform(-0.5, 0.5), -1.05], (3, 1)), middle, ends], 1)
        scene += _strokes(film, leads, np.full(size // 2, 0.15), 0.004)
        for cx, cy in ends.tolist():
            _disc(film, scene, (cx, cy), (0.03, 0.03), 0.4, 0.25)
    elif rng.random() < 0.25:
        device = "An endotracheal tube"
        walls = np.array([[[0, -1.05], [0, -0.7], [0.0, -0.38]]]) + np.array([-0.016, 0.016])[:, None, None] * (1, 0)
        scene += _strokes(film, walls, np.full(size // 2, 0.14), 0.004)
    if rng.random() < 0.6:  # the marker stands at the patient's left, the image's right
        tall, stroke = round(size * rng.uniform(0.05, 0.07)), max(1, round(size * 0.011))
        top, left = round(size * rng.uniform(0.03, 0.09)), round(size * rng.uniform(0.86, 0.91))
        scene[top : top + tall, left : left + stroke] = 0.98
        scene[top + tall - stroke : top + tall, left : left + tall * 2 // 3] = 0.98
    return device


def _expose(scene: np.ndarray, source: str, rng: Generator) -> np.ndarray:
    """Tone curve, collimation and noise of the site, then uint8. Pixel by pixel: a blur would carry class out."""
    bend, contrast, noise = SITES[source]
    bend += rng.uniform(-0.12, 0.12)
    tone = np.clip((scene - 0.5) * (contrast * rng.uniform(0.93, 1.07)) + 0.5 + rng.uniform(-0.04, 0.04), 0, 1)
    tone += bend * tone * (1 - tone)
    if rng.random() < 0.3:
        edges = np.round(rng.uniform(0, 0.03, 4) * len(scene)).astype(int)
        tone[: edges[0]] = tone[len(scene) - edges[1] :] = 0.02
        tone[:, : edges[2]] = tone[:, len(scene) - edges[3] :] = 0.02
    tone += noise * rng.uniform(0.7, 1.4) * rng.standard_normal(scene.shape, np.float32)
    return np.clip(tone * 255 + 0.5, 0, 255).astype(np.uint8)


def _step(distance: np.ndarray, soft: float) -> np.ndarray:
    """0 to 1 across an edge of width `soft` at distance 0."""
    return np.clip(distance * np.float32(1 / soft) + np.float32(0.5), 0, 1)


def _bell(distance: np.ndarray) -> np.ndarray:
    """A Gaussian's profile, flat from 5 on: smaller floats are denormal, and ten times as slow to compute with."""
    return np.exp(-np.square(np.clip(distance, -5, 5)))


def _window(film: _Film, place: tuple[float, float], reach: float) -> tuple[slice, slice]:
    """The rows and columns within `reach` of a place in the patient: what is small is drawn there only, to save time."""
    x, y = (film.turn @ place + film.shift + 1) * film.size / 2
    far = reach * 1.05 * film.size / 2 + 1
    return slice(max(0, int(y - far)), max(0, int(y + far) + 1)), slice(max(0, int(x - far)), max(0, int(x + far) + 1))


def _disc(
    film: _Film, canvas: np.ndarray, place: tuple[float, float], radii: tuple[float, float], soft: float, height: float
) -> None:
    """Add an ellipse to `canvas`; `soft` is its edge's width as a share of the radius."""
    here = _window(film, place, max(radii) * (1 + soft / 2))
    a, b = (film.u[here] - place[0]) / radii[0], (film.v[here] - place[1]) / radii[1]
    canvas[here] += height * _step(1 - np.sqrt(a * a + b * b), soft)


@functools.cache
def _bumps(size: int, cells: int) -> np.ndarray:
    centres = np.linspace(-1, 1, cells + 1)
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    basis = _bell((axis[:, None] - centres) * (cells / 2))
    return (basis / np.sqrt(np.square(basis).sum(1, keepdims=True))).astype(np.float32)


def _smooth(rng: Generator, size: int, cells: int) -> np.ndarray:
    """Noise of mean 0 and standard deviation 1 with about `cells` bumps a side; the same at any size."""
    basis = _bumps(size, cells)
    half = basis @ rng.standard_normal((cells + 1, cells + 1), np.float32)
    # In strips: a larger product wakes BLAS's threads, whose waiting costs more than the product.
    return np.concatenate([strip @ basis.T for strip in np.array_split(half, max(1, size // 16))])


def _strokes(film: _Film, curves: np.ndarray, heights: np.ndarray, thick: float) -> np.ndarray:
    """Bézier curves (n, 3, 2) drawn `thick` (a share of the image) with `heights` sampled along each; they add up."""
    t = np.linspace(0, 1, len(heights))[:, None]
    points = (1 - t) ** 2 * curves[:, None, 0] + 2 * t * (1 - t) * curves[:, None, 1] + t**2 * curves[:, None, 2]
    length = np.linalg.norm(np.diff(points, axis=1), axis=2).sum(1) * film.size / 2
    sigma = thick * film.size
    weights = heights[None] * (length / len(heights) * np.sqrt(2 * np.pi) * sigma)[:, None]
    pixels = ((points @ film.turn.T + film.shift + 1) * film.size / 2).astype(int).reshape(-1, 2)
    seen = ((pixels >= 0) & (pixels < film.size)).all(1)
    flat = pixels[seen, 1] * film.size + pixels[seen, 0]
    canvas = np.bincount(flat, weights.reshape(-1)[seen], film.size**2).astype(np.float32)
    canvas = canvas.reshape(film.size, film.size)
    for _ in range(max(1, round(2 * sigma * sigma))):  # (1, 2, 1) repeated nears a Gaussian, at a fifth of its time
        canvas[1:-1] = 0.5 * canvas[1:-1] + 0.25 * (canvas[:-2] + canvas[2:])
        canvas[:, 1:-1] = 0.5 * canvas[:, 1:-1] + 0.25 * (canvas[:, :-2] + canvas[:, 2:])
    return canvas


def _parts(mask: np.ndarray) -> np.ndarray:
    """The mask's 8-connected parts, numbered from 1; specks are left out."""
    from scipy import ndimage  # here, because every job reads this file and only drawing needs it

    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(parts.ravel()) >= mask.size * 4e-4
    return parts * large[parts]


def _boxes(parts: np.ndarray) -> list[dict[str, str | int]]:
    from scipy import ndimage

    found = [slices for slices in ndimage.find_objects(parts) if slices]
    return [
        {"label": "infection", "x": x.start, "y": y.start, "width": x.stop - x.start, "height": y.stop - y.start}
        for y, x in found
    ]


def write_phantoms(root: Path, *, images: int = 600, size: int = 256, seed: int = 0) -> Path:
    """Write a data set: images/, lung_masks/, infection_masks/ and, last, metadata.csv (paths relative to `root`).

    Done already with the same parameters: nothing happens. With others: it is written anew. Returns `root`.
    """
    made, table = root / "phantom.json", root / "metadata.csv"
    parameters = {"images": images, "size": size, "seed": seed, "version": VERSION}
    before = json.loads(made.read_bytes()) if made.exists() else None
    if before is None and (path := foreign_file(root)):
        raise UserError(f"{root} holds {path.relative_to(root)} that is not a phantom set's; choose another folder.")
    if table.exists() and before == parameters:
        return root
    table.unlink(missing_ok=True)
    folders = [root / name for name in ("images", "lung_masks", "infection_masks")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(images, before["images"] if before else 0):
            (folder / f"{index:05d}.png").unlink(missing_ok=True)
    made.write_text(json.dumps(parameters) + "\n", encoding="utf-8")

    def write(index: int) -> tuple[str, ...]:
        one = draw_phantom(index, size=size, seed=seed)
        paths = [f"{folder.name}/{index:05d}.png" for folder in folders]
        for path, pixels in zip(paths, (one.image, one.lung_mask, one.infection_mask), strict=True):
            Image.fromarray(pixels).save(root / path, compress_level=1)
        known = (one.label, one.patient_id, one.source, one.view, one.caption)
        return paths[0], *known, *paths[1:], json.dumps(one.boxes)

    unfinished = root / "metadata.csv.tmp"
    with unfinished.open("w", newline="", encoding="utf-8") as file, ThreadPoolExecutor(2) as pool:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
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
        one = draw_phantom(index, size=size, seed=seed)
        if len(rows[one.label]) < columns and one.patient_id not in {other.patient_id for other in rows[one.label]}:
            rows[one.label].append(one)
        index += 1
    figure, axes = plt.subplots(2 * len(rows), columns, figsize=(2.6 * columns, 17.5), layout="constrained")
    for number, (name, row) in enumerate(rows.items()):
        for column, one in enumerate(row):
            for axis in (plain := axes[2 * number, column], marked := axes[2 * number + 1, column]):
                axis.imshow(one.image, cmap="gray", vmin=0, vmax=255)
                axis.set(xticks=[], yticks=[])
            marked.contour(one.lung_mask, [127], colors="cyan", linewidths=0.6)
            if one.boxes:
                marked.contour(one.infection_mask, [127], colors="red", linewidths=1.0)
            plain.set_title(f"{name} · {one.view} · {one.source}", fontsize=8)
            marked.set_xlabel(textwrap.fill(one.caption, 38), fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    contact_sheet(Path(sys.argv[1]))
