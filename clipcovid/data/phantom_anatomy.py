"""A phantom's patient, pose, healthy chest and exposure: nothing here knows the class of the image."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from clipcovid.data.phantom_drawing import Film, add_ellipse, draw_curves, gaussian_profile, smooth_noise, smoothstep
from clipcovid.prompts import CLASSES

CLASS_SHARES = (0.35, 0.33, 0.32)
SITES = {"site-a": (0.00, 1.00, 0.020), "site-b": (0.16, 0.90, 0.030), "site-c": (-0.14, 1.10, 0.025)}
"""Site → brightness of the mid-tones, contrast and noise (standard deviation, where white is 1)."""
_BLOCK = 10
RUNS, PATIENT, DISEASE, STAGE, FILM, WORDS = range(6)  # random streams: a change in one leaves the others alone


@dataclass(frozen=True, kw_only=True)
class Patient:
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


def sample_patient(index: int, seed: int) -> Patient:
    """The patient of an image: blocks of ten indices are cut into runs of one to four, so no other block matters."""
    block, offset = divmod(index, _BLOCK)
    runs = np.cumsum(np.random.default_rng([seed, RUNS, block]).integers(1, 5, _BLOCK))
    return _draw_patient(seed, block, int(np.searchsorted(runs, offset, side="right")))


@functools.lru_cache(maxsize=16)
def _draw_patient(seed: int, block: int, number: int) -> Patient:
    rng = np.random.default_rng([seed, PATIENT, block, number])
    return Patient(
        patient_id=f"p{block:05d}-{number}",
        key=(seed, DISEASE, block, number),
        label=CLASSES[rng.choice(3, p=CLASS_SHARES)],
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
        vessels=_vessel_trees(rng),
    )


def _vessel_trees(rng: Generator) -> np.ndarray:
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


def sample_film(patient: Patient, size: int, rng: Generator) -> Film:
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
    return Film(view=view, size=size, rotation=turn, shift=shift, u=u, v=v, inspiration=breath, heart=heart)


def lung_depth(patient: Patient, film: Film) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth below the lungs', the diaphragm's and the heart's border (positive: inside), each (size, size) float32."""
    x, v = np.abs(film.u), film.v
    bottom = patient.bottom + film.inspiration + np.where(film.u < 0, np.float32(-0.03), np.float32(0.02))
    t = np.clip((v - patient.top) / (patient.bottom - patient.top), 0, 1)
    medial = patient.hilum * (1 + 0.9 * np.exp(t / -0.06))
    dome = v - (bottom - 0.17 * (1 - np.square((x - 0.36) / 0.42)))
    across, down = film.u - 0.09, v - (0.26 + film.inspiration)
    long, short = 0.84 * across + 0.54 * down, 0.84 * down - 0.54 * across
    heart = (1 - np.sqrt(np.square(long / (0.37 * film.heart)) + np.square(short / (0.27 * film.heart)))) * 0.3
    middle = x - medial
    middle = np.minimum(middle, -heart) - np.square(np.maximum(0.12 - np.abs(middle + heart), 0)) / 0.48  # rounded
    return np.minimum(np.minimum(rib_distance(patient, t) - x, middle), -dome), dome, heart


def rib_distance(patient: Patient, t: np.ndarray) -> np.ndarray:
    """Distance from the midline to the ribs at `t`, 0 at the lungs' top to 1 at their bottom."""
    return patient.width * np.sqrt(1 - (1 - t) * (1 - t) * (1 - t))


def draw_chest(
    patient: Patient, film: Film, depth: np.ndarray, dome: np.ndarray, heart: np.ndarray, rng: Generator
) -> np.ndarray:
    """The healthy chest, (size, size) float32, 0 black to about 1 white: nothing here knows the class."""
    u, v, size = film.u, film.v, film.size
    x = np.abs(u)
    spine = gaussian_profile(x / 0.085) * (0.08 + 0.025 * np.cos(v * (2 * np.pi / 0.14)))
    trachea = gaussian_profile(x / 0.04) * smoothstep(-0.28 - v, 0.1)
    solid = 0.50 + 0.17 * gaussian_profile(x / 0.20) + spine - 0.09 * trachea
    solid += 0.10 * smoothstep(heart + 0.02, 0.10) + 0.20 * smoothstep(dome, 0.05) + 0.05 * smooth_noise(rng, size, 6)
    add_ellipse(film, solid, (0.10, -0.30), (0.13, 0.13), 0.3, 0.08)  # the aortic knob
    add_ellipse(film, solid, (0.42, patient.bottom + 0.08), (0.09, 0.06), 0.6, -patient.gas)  # the stomach's gas bubble
    tissue = 0.24 + 0.04 * v + 0.05 * gaussian_profile((x - 0.17) / 0.1) * gaussian_profile((v + 0.06) / 0.2)
    tissue += 0.035 * smooth_noise(rng, size, 14)
    tissue += draw_curves(film, patient.vessels, np.linspace(0.3, 0.08, size // 4) ** 2, 0.0045)
    inside = smoothstep(depth + 0.012, 0.035)
    scene = solid + inside * (tissue - solid)
    gap, phase, slope = patient.ribs
    chest = (
        smoothstep(0.97 * patient.width + 0.1 - x, 0.06)
        * smoothstep(v - patient.top + 0.06, 0.1)
        * smoothstep(-dome + 0.1, 0.2)
    )
    behind = np.cos((v - slope * x + 0.5 * x * x) * (2 * np.pi / gap) + 6.28 * phase)
    before = np.cos((v + 0.9 * x - 0.9 * x * x) * (2 * np.pi / gap / 1.1) + 3.0 * phase)
    scene += chest * (
        0.055 * smoothstep(behind - 0.15, 0.5) + 0.035 * smoothstep(before - 0.3, 0.5) * smoothstep(x - 0.25, 0.2)
    )
    collar = v - (patient.top + 0.18 - 0.22 * (x - 0.1) + 0.12 * np.sin(6 * x))
    scene += 0.13 * smoothstep(0.035 - np.abs(collar), 0.025) * smoothstep(x - 0.07, 0.05) * smoothstep(0.85 - x, 0.1)
    blade = 0.62 if film.view == "AP" else 0.74  # the shoulder blades lie over the lungs in AP films
    scene += (
        0.06 * smoothstep(0.17 - np.abs(x - blade - 0.25 * (v + 0.5)), 0.05) * smoothstep(0.3 - np.abs(v + 0.45), 0.1)
    )
    _draw_soft_shadows(patient, film, scene, rng)
    shoulders = np.minimum(v + 1.02 - 0.35 * np.maximum(x - 0.22, 0), patient.body - x)
    return scene * (0.08 + 0.92 * smoothstep(shoulders, 0.08))


def _draw_soft_shadows(patient: Patient, film: Film, scene: np.ndarray, rng: Generator) -> None:
    """Breasts, a nipple, a fold of skin or clothing: they mimic opacities, in every class alike."""
    for side in (-1, 1):
        add_ellipse(film, scene, (side * 0.48, 0.38), (0.32, 0.32), 0.25, patient.breast)
        if rng.random() < 0.2:
            center = (side * rng.uniform(0.42, 0.52), rng.uniform(0.28, 0.40))
            add_ellipse(film, scene, center, (0.035, 0.035), 0.6, 0.07)
    if rng.random() < 0.5:
        center, reach = (rng.uniform(-0.6, 0.6), rng.uniform(-0.45, 0.35)), rng.uniform(0.10, 0.22)
        add_ellipse(film, scene, center, (reach, 1.3 * reach), 0.9, rng.uniform(0.03, 0.09))


def randomize_histogram(values: np.ndarray, rng: Generator) -> np.ndarray:
    """Lung values by rank onto a random histogram: without it, more infection would mean brighter lungs."""
    low, span, tail, power = rng.uniform(0.14, 0.24), rng.uniform(0.34, 0.46), rng.uniform(0.3, 0.6), rng.uniform(3, 6)
    levels = np.linspace(0, 1, values.size, dtype=np.float32)
    matched = np.empty_like(values)
    matched[np.argsort(values)] = low + span * ((1 - tail) * levels + tail * levels**power)
    return matched


def draw_devices(film: Film, scene: np.ndarray, rng: Generator) -> str:
    """Draw leads, tubes and the side marker into `scene`, all of them whiter than tissue; returns the device's name."""
    size, device = film.size, ""
    if rng.random() < 0.30:
        device = "ECG leads"
        ends = np.stack([rng.uniform([-0.7, -0.5], [0.7, 0.3]) for _ in range(3)])
        middle = ends * 0.5 + rng.normal(0, 0.15, (3, 2)) + (0, -0.2)
        leads = np.stack([np.tile([rng.uniform(-0.5, 0.5), -1.05], (3, 1)), middle, ends], 1)
        scene += draw_curves(film, leads, np.full(size // 2, 0.15), 0.004)
        for cx, cy in ends.tolist():
            add_ellipse(film, scene, (cx, cy), (0.03, 0.03), 0.4, 0.25)
    elif rng.random() < 0.25:
        device = "An endotracheal tube"
        walls = np.array([[[0, -1.05], [0, -0.7], [0.0, -0.38]]]) + np.array([-0.016, 0.016])[:, None, None] * (1, 0)
        scene += draw_curves(film, walls, np.full(size // 2, 0.14), 0.004)
    if rng.random() < 0.6:  # the marker stands at the patient's left, the image's right
        tall, stroke = round(size * rng.uniform(0.05, 0.07)), max(1, round(size * 0.011))
        top, left = round(size * rng.uniform(0.03, 0.09)), round(size * rng.uniform(0.86, 0.91))
        scene[top : top + tall, left : left + stroke] = 0.98
        scene[top + tall - stroke : top + tall, left : left + tall * 2 // 3] = 0.98
    return device


def expose(scene: np.ndarray, source: str, rng: Generator) -> np.ndarray:
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
