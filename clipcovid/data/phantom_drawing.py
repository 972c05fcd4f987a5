"""Shapes of a phantom: ellipses, curves and noise, in a patient's coordinates on the film's pixels."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True, kw_only=True)
class Film:
    """How one image was taken: pose, view, and the pixels' places in the patient (u, v: (size, size) float32)."""

    view: str
    size: int
    rotation: np.ndarray
    shift: np.ndarray
    u: np.ndarray
    v: np.ndarray
    inspiration: float
    heart: float


def smoothstep(distance: np.ndarray, soft: float) -> np.ndarray:
    """0 to 1 across an edge of width `soft` at distance 0."""
    return np.clip(distance * np.float32(1 / soft) + np.float32(0.5), 0, 1)


def gaussian_profile(distance: np.ndarray) -> np.ndarray:
    """A Gaussian's profile, flat from 5 on: smaller floats are denormal, and ten times as slow to compute with."""
    return np.exp(-np.square(np.clip(distance, -5, 5)))


def pixel_window(film: Film, center: tuple[float, float], reach: float) -> tuple[slice, slice]:
    """The rows and columns within `reach` of a place in the patient: what is small is drawn there only, to save time."""
    x, y = (film.rotation @ center + film.shift + 1) * film.size / 2
    far = reach * 1.05 * film.size / 2 + 1
    return slice(max(0, int(y - far)), max(0, int(y + far) + 1)), slice(max(0, int(x - far)), max(0, int(x + far) + 1))


def add_ellipse(
    film: Film,
    canvas: np.ndarray,
    center: tuple[float, float],
    radii: tuple[float, float],
    edge_width: float,
    height: float,
) -> None:
    """Add an ellipse to `canvas`; `edge_width` is its edge's width as a share of the radius."""
    region = pixel_window(film, center, max(radii) * (1 + edge_width / 2))
    a, b = (film.u[region] - center[0]) / radii[0], (film.v[region] - center[1]) / radii[1]
    canvas[region] += height * smoothstep(1 - np.sqrt(a * a + b * b), edge_width)


@functools.cache
def _bumps(size: int, cells: int) -> np.ndarray:
    centres = np.linspace(-1, 1, cells + 1)
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    basis = gaussian_profile((axis[:, None] - centres) * (cells / 2))
    return (basis / np.sqrt(np.square(basis).sum(1, keepdims=True))).astype(np.float32)


def smooth_noise(rng: Generator, size: int, cells: int) -> np.ndarray:
    """Noise of mean 0 and standard deviation 1 with about `cells` bumps a side; the same at any size."""
    basis = _bumps(size, cells)
    half = basis @ rng.standard_normal((cells + 1, cells + 1), np.float32)
    # In strips: a larger product wakes BLAS's threads, whose waiting costs more than the product.
    return np.concatenate([strip @ basis.T for strip in np.array_split(half, max(1, size // 16))])


def draw_curves(film: Film, curves: np.ndarray, heights: np.ndarray, thickness: float) -> np.ndarray:
    """Bézier curves (n, 3, 2) drawn `thickness` (a share of the image) with `heights` sampled along each; they add up."""
    t = np.linspace(0, 1, len(heights))[:, None]
    points = (1 - t) ** 2 * curves[:, None, 0] + 2 * t * (1 - t) * curves[:, None, 1] + t**2 * curves[:, None, 2]
    length = np.linalg.norm(np.diff(points, axis=1), axis=2).sum(1) * film.size / 2
    sigma = thickness * film.size
    weights = heights[None] * (length / len(heights) * np.sqrt(2 * np.pi) * sigma)[:, None]
    pixels = ((points @ film.rotation.T + film.shift + 1) * film.size / 2).astype(int).reshape(-1, 2)
    visible = ((pixels >= 0) & (pixels < film.size)).all(1)
    flat = pixels[visible, 1] * film.size + pixels[visible, 0]
    canvas = np.bincount(flat, weights.reshape(-1)[visible], film.size**2).astype(np.float32)
    canvas = canvas.reshape(film.size, film.size)
    for _ in range(max(1, round(2 * sigma * sigma))):  # (1, 2, 1) repeated nears a Gaussian, at a fifth of its time
        canvas[1:-1] = 0.5 * canvas[1:-1] + 0.25 * (canvas[:-2] + canvas[2:])
        canvas[:, 1:-1] = 0.5 * canvas[:, 1:-1] + 0.25 * (canvas[:, :-2] + canvas[:, 2:])
    return canvas
