"""A phantom's opacities, drawn inside the lungs: what tells its class."""

import math

import numpy as np
from numpy.random import Generator

from clipcovid.data.phantom_anatomy import Patient, rib_distance
from clipcovid.data.phantom_drawing import Film, draw_curves, pixel_window, smooth_noise, smoothstep

Opacity = tuple[float, float, float, float, float]
"""Across from hilum to ribs (sign: side), down the lung, half width, half height, fissure (0 none, 1 above, -1 below)."""


def draw_disease(
    patient: Patient, film: Film, depth: np.ndarray, rng: Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Added density, numbered parts of the infection (both (size, size)), and whether air bronchograms were drawn.

    Where the opacities lie is the patient's, how far the disease has come is the image's.
    """
    opacity: np.ndarray = np.zeros((film.size, film.size), np.float32)
    if patient.label == "Normal":
        return opacity, np.zeros(opacity.shape, int), False
    fixed = np.random.default_rng(patient.key)
    blobs, density, bronchogram = (
        _covid_opacities(fixed) if patient.label == "COVID-19" else _pneumonia_opacities(fixed)
    )
    stage = rng.uniform(0.88, 1.10)
    ragged = np.clip(0.22 * smooth_noise(rng, film.size, 14), -0.6, 0.6)
    shape = np.zeros_like(opacity)
    for fx, fy, wide, high, fissure in blobs:
        cy = patient.top + fy * (patient.bottom + film.inspiration - 0.03 - patient.top)
        ribs = float(rib_distance(patient, np.array((cy - patient.top) / (patient.bottom - patient.top))))
        cx = math.copysign(patient.hilum + abs(fx) * (ribs - patient.hilum), fx)
        region = pixel_window(film, (cx, cy), 2 * stage * max(wide, high))
        a, b = (film.u[region] - cx) / (wide * stage), (film.v[region] - cy) / (high * stage)
        blob = smoothstep(1 - np.sqrt(a * a + b * b) + ragged[region], 0.7)
        if fissure:  # a lobe ends sharply at its fissure
            blob *= smoothstep(fissure * b + 0.25, 0.12)
        blob *= film.u[region] * fx > 0
        shape[region] = np.maximum(shape[region], blob)
    shape *= smoothstep(depth, 0.01)
    parts = _parts((shape > 0.4) & (depth > 0))
    grain = 1 + 0.25 * smooth_noise(rng, film.size, 20)
    opacity = density * stage * shape * grain
    if bronchogram:
        opacity *= 1 - np.clip(draw_curves(film, patient.vessels, np.full(film.size // 4, 0.9), 0.0045), 0, 0.8)
    return opacity, parts, bronchogram


def _covid_opacities(rng: Generator) -> tuple[list[Opacity], float, bool]:
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


def _pneumonia_opacities(rng: Generator) -> tuple[list[Opacity], float, bool]:
    """As `_covid_opacities`, but one dense lobe or focus on one side, in a minority both hila."""
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


def _parts(mask: np.ndarray) -> np.ndarray:
    """The mask's 8-connected parts, numbered from 1; specks are left out."""
    from scipy import ndimage  # here, because every job reads this file and only drawing needs it

    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(parts.ravel()) >= mask.size * 4e-4
    return parts * large[parts]


def part_boxes(parts: np.ndarray) -> list[dict[str, str | int]]:
    """The boxes around numbered parts (size, size), as `PhantomImage.boxes` has them."""
    from scipy import ndimage

    extents = [slices for slices in ndimage.find_objects(parts) if slices]
    return [
        {"label": "infection", "x": x.start, "y": y.start, "width": x.stop - x.start, "height": y.stop - y.start}
        for y, x in extents
    ]
