"""Radiology-like sentences that follow from what was drawn on a phantom."""

import numpy as np
from numpy.random import Generator

ZONES = ("upper", "middle", "lower")


def clear_lungs_sentence(rng: Generator, large: bool) -> str:
    """A normal report: many are the same few words, as in hospitals."""
    short = ("No acute cardiopulmonary abnormality.", "The lungs are clear.", "No focal consolidation or effusion.")
    whole = ("Normal chest radiograph.", "Clear lungs and normal heart size.", "Normal study.")
    return str(rng.choice(short if large else short + whole))


def device_sentences(rng: Generator, view: str, large: bool, device: str) -> str:
    """What any report may add: view, heart size, devices."""
    parts = []
    if large and rng.random() < 0.6:
        apparent = "The heart appears enlarged on this AP view."
        parts.append(apparent if view == "AP" else str(rng.choice(["The heart is enlarged.", "Cardiomegaly."])))
    elif not large and rng.random() < 0.25:
        parts.append(str(rng.choice(["Heart size is normal.", "The cardiac silhouette is not enlarged."])))
    if device and rng.random() < 0.6:
        parts.append(f"{device} overlie the chest." if device == "ECG leads" else f"{device} is in place.")
    if rng.random() < 0.3:
        parts.append(str(rng.choice([f"{view} view.", f"{view} chest radiograph."])))
    return "".join(f" {part}" for part in parts)


def findings_sentences(
    rng: Generator,
    label: str,
    lungs: np.ndarray,
    infection: np.ndarray,
    right: np.ndarray,
    count: int,
    bronchogram: bool,
) -> str:
    """Side, zones, extent and number as measured on the masks; `right` is the patient's right half."""
    zones = {name: _zones(lungs & half, infection & half) for name, half in (("right", right), ("left", ~right))}
    sides = [name for name in zones if zones[name]]
    extent = infection.sum() / lungs.sum()
    severity = "mild" if extent < 0.06 else "moderate" if extent < 0.16 else "extensive"
    number = {1: "a single focus of", 2: "two areas of", 3: "three areas of"}.get(count, "multiple areas of")
    if label == "COVID-19":
        pattern = str(rng.choice(["ground-glass opacity", "ground-glass opacification", "hazy peripheral opacity"]))
        named = ["Suspicious for COVID-19 pneumonia.", "Typical of COVID-19.", "Viral pneumonia is likely."]
    else:
        pattern = str(rng.choice(["consolidation", "airspace consolidation", "dense airspace opacity"]))
        named = ["Suspicious for bacterial pneumonia.", "In keeping with pneumonia.", "Not typical of COVID-19."]
    where = " and ".join(f"the {name} {zones[name]}" for name in sides)
    short, adjective = where.removeprefix("the ").removesuffix("s"), "unilateral"
    if len(sides) == 2:
        short, adjective = "bilateral", "bilateral"
        if zones["left"] == zones["right"]:
            where, short = f"the {zones['left']} of both lungs", f"bilateral {zones['left']}".removesuffix("s")
    forms = [
        f"{pattern} in {where}.",
        f"{severity} {pattern} in {where}.",
        f"there is {severity} {adjective} {pattern}, located in {where}.",
        f"{number} {pattern} in {where}.",
        f"{short} {pattern}.",
        f"{pattern} involving {where}, about {max(5, round(20 * extent) * 5)}% of the lung area.",
    ]
    text = str(rng.choice(forms))
    text = text[0].upper() + text[1:]
    if bronchogram and rng.random() < 0.6:
        text += " Air bronchograms are visible."
    return text + (f" {rng.choice(named)}" if rng.random() < 0.25 else "")


def _zones(lung: np.ndarray, infection: np.ndarray) -> str:
    """The thirds of one lung's height that hold over a fifth of its infection: "middle and lower zones", "" if none."""
    if not infection.any():
        return ""
    thirds = np.array_split(np.flatnonzero(lung.any(1)), 3)
    names = [zone for zone, rows in zip(ZONES, thirds, strict=True) if infection[rows].sum() > 0.2 * infection.sum()]
    return {1: "{} zone", 2: "{} and {} zones", 3: "{}, {} and {} zones"}[len(names)].format(*names)
