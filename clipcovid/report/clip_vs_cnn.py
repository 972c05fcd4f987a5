"""CLIP against CNN, in sentences made from numbers: what each of them can do, how well, and where it wins and fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from clipcovid.errors import quote_names
from clipcovid.evaluate.bootstrap import percentile_interval
from clipcovid.evaluate.draws import Draws
from clipcovid.evaluate.external_gap import internal_external_gaps
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.evaluate.metrics import encode_labels
from clipcovid.evaluate.number_format import format_p_value, format_short, format_with_interval
from clipcovid.evaluate.probabilities import class_probabilities
from clipcovid.evaluate.significance import mcnemar
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import ExampleSheet, Finding

IMAGES_PER_SHEET = 8  # images of a sheet of examples
MIN_IMAGES = 10  # of a new class, below which its AUROC says nothing


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A method of one of the two families."""

    name: str
    family: Literal["CLIP", "CNN"]
    table: pd.DataFrame
    """Its predictions, of the same images in the same order as the others'."""
    training: pd.DataFrame | None = None
    """Its predictions of the train split, where it can make them."""
    zero_shot: bool = False
    """Whether it learned from no image of the data set."""


@dataclass(frozen=True, kw_only=True)
class Paraphrases:
    """What a zero-shot method predicts with other words for the same classes."""

    method: str
    varied_noun: str
    """What differs between them, in the plural."""
    texts: tuple[str, ...]
    """What each of them says, p of them."""
    predicted: np.ndarray
    """Indices of classes (p, n), of the images of the method's table in its order."""


@dataclass(frozen=True, kw_only=True)
class NewClass:
    """A class that no method learned, told by its name alone."""

    name: str
    data: str
    """The prepared folder that has it."""
    is_class: np.ndarray
    """Which of its labelled images are of it, bool (n,)."""
    scores: np.ndarray
    """The probability (n,) of it among the classes of that data set."""
    patients: tuple[str, ...]


def compare_families(
    rivals: Sequence[Rival],
    classes: Sequence[str],
    data: str,
    *,
    paraphrases: Sequence[Paraphrases] = (),
    new_classes: Sequence[NewClass] = (),
) -> list[Finding]:
    """What can be said of the families; what nothing is known of is left out. `data`: the images' prepared folder.

    The best of each family is that of the highest macro F1 on these very images, which flatters it.
    """
    clip, cnn = ([rival for rival in rivals if rival.family == family] for family in ("CLIP", "CNN"))
    zero_shot = [rival for rival in clip if rival.zero_shot]
    findings = [_new_classes(rival, cnn, classes, new_classes) for rival in zero_shot[:1]]
    findings += [_phrasing(entry, rivals, classes, data) for entry in paraphrases]
    findings += [_trained_classes(cnn, zero_shot, classes)] if cnn else []
    findings += [_over_fitting(rivals, classes)] if any(rival.training is not None for rival in rivals) else []
    if clip and cnn:
        findings.append(_duel(_best(clip, classes), _best(cnn, classes), classes, data))
    return findings


def _best(rivals: Sequence[Rival], classes: Sequence[str]) -> Rival:
    draws = KIND.draws([rival.table for rival in rivals], classes, samples=1)[0]
    return rivals[int(np.argmax(draws.values["macro_f1"]))]


def _new_classes(rival: Rival, cnns: Sequence[Rival], classes: Sequence[str], new: Sequence[NewClass]) -> Finding:
    """Classes that are told without a training image, and what CNNs can do about them."""
    few = [f"{entry.name} ({int(entry.is_class.sum())})" for entry in new if entry.is_class.sum() < MIN_IMAGES]
    new = [entry for entry in new if entry.is_class.sum() >= MIN_IMAGES]
    draws = KIND.draws([rival.table], classes)[0]
    present = [name for name in classes if not np.isnan(draws.values[f"auroc/{name}"][0])]
    measured = {(name, "here"): (draws, f"auroc/{name}") for name in present}
    measured |= {
        (entry.name, f"{entry.data}, {int(entry.is_class.sum()):,} images"): (_one_against_rest(entry), "auroc/class")
        for entry in new
    }
    numbers: list[dict[str, Any]] = [
        {"class": name, "where": where, "auroc": _value(*of), "interval": _bounds(*of)}
        for (name, where), of in measured.items()
    ]
    cells = [format_with_interval(entry["auroc"], entry["interval"]) for entry in numbers]
    rows = [(*key, cell) for key, cell in zip(measured, cells, strict=True)]
    told = ", ".join(f"{name} {cell}" for name, _, cell in rows)
    unlearned = f" No method learned {quote_names([entry.name for entry in new])}." if new else ""
    unlearned += f" Too few images to say it of {', '.join(few)}." if few else ""
    fixed = "A CNN has only the classes that it was trained on"
    if cnns:
        fixed = f"{' and '.join(entry.name for entry in cnns)} can answer {quote_names(list(classes))} and nothing else"
    return Finding(
        check="New classes",
        severity="info",
        summary=(
            f"{rival.name} learned from no image of this data set and tells classes by words alone, with AUROCs of {told} "
            f"(chance: .500).{unlearned} {fixed}: one more class takes labelled images and another training."
        ),
        advice="Where a class has no labelled images, ask by words, and expect no more than these AUROCs.",
        numbers={"method": rival.name, "classes": numbers, "fixed_classes": list(classes) if cnns else []},
        tables=(TextTable(headers=("Class", "of", "AUROC by its name"), sections=[rows], wrap_cells=True),),
    )


def _one_against_rest(entry: NewClass) -> Draws:
    table = pd.DataFrame({"image_id": [str(at) for at in range(len(entry.scores))], "patient_id": list(entry.patients)})
    table["label"] = np.where(entry.is_class, "class", "rest")
    table["prob_class"], table["prob_rest"] = entry.scores, 1 - entry.scores
    return KIND.draws([table], ["class", "rest"])[0]


def _phrasing(entry: Paraphrases, rivals: Sequence[Rival], classes: Sequence[str], data: str) -> Finding:
    """How much the accuracy, and the class of each image, depend on the words."""
    table = next(rival.table for rival in rivals if rival.name == entry.method)
    truth = encode_labels(table["label"].tolist(), classes)
    accuracy = (entry.predicted == truth).mean(axis=1)
    order = np.argsort(accuracy, kind="stable")
    own = float((class_probabilities(table, classes).argmax(axis=1) == truth).mean())
    counts = np.stack([(entry.predicted == at).sum(axis=0) for at in range(len(classes))])
    agreement = counts.max(axis=0) / len(entry.texts)
    names = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
    spread = {name: float(np.percentile(accuracy, at)) for name, at in names.items()}
    shown = {name: format_short(value, 3) for name, value in spread.items()}
    rows = [(entry.texts[at], format_short(float(accuracy[at]), 3)) for at in order[[0, (len(order) - 1) // 2, -1]]]
    return Finding(
        check=f"Robustness to phrasing: {entry.varied_noun}",
        severity="low" if spread["max"] - spread["min"] > 0.05 else "info",
        summary=(
            f"Over {len(entry.texts):,} {entry.varied_noun}, the accuracy of {entry.method} runs from {shown['min']} to "
            f"{shown['max']} (median {shown['median']}; the middle 90 %: {shown['p5']} to {shown['p95']}); its own prompts "
            f"reach {format_short(own, 3)}. {(agreement == 1).mean():.0%} of the images keep their class whatever the words; "
            f"on average, {agreement.mean():.0%} of the wordings agree on an image. A CNN reads no words."
        ),
        advice=(
            "Report the spread beside the score, and choose words on the validation split (clipcovid tune-prompts), not by "
            "these numbers, which are of the compared images."
        ),
        numbers={
            "method": entry.method,
            "varied": entry.varied_noun,
            "paraphrases": len(entry.texts),
            "accuracy": spread | {"own": own, "standard_deviation": float(accuracy.std())},
            "mean_agreement": float(agreement.mean()),
            "images_of_one_class": float((agreement == 1).mean()),
        },
        tables=(TextTable(headers=("the worst, median and best", "accuracy"), sections=[rows], wrap_cells=True),),
        examples=(
            _sheet(
                "Images whose class depends on the words most",
                data,
                table["image_id"],
                np.argsort(agreement, kind="stable"),
            ),
        ),
    )


def _trained_classes(cnns: Sequence[Rival], zero_shot: Sequence[Rival], classes: Sequence[str]) -> Finding:
    """The CNNs' accuracy on the classes that they were trained on, beside what words alone reach."""
    shown, metrics = [*cnns, *zero_shot], ("accuracy", "macro_f1", "macro_auroc")
    draws = KIND.draws([rival.table for rival in shown], classes)[0]
    numbers: dict[str, dict[str, dict[str, Any]]] = {
        rival.name: {name: {"value": _value(draws, name, at), "interval": _bounds(draws, name, at)} for name in metrics}
        for at, rival in enumerate(shown)
    }
    cells = {
        name: [format_with_interval(entry["value"], entry["interval"]) for entry in values.values()]
        for name, values in numbers.items()
    }
    best = _best(cnns, classes)
    beside = f"; words alone ({zero_shot[0].name}) in {cells[zero_shot[0].name][0]}" if zero_shot else ""
    return Finding(
        check="Trained classes",
        severity="info",
        summary=(
            f"On the {len(classes)} classes that it was trained on, {best.name} is right in {cells[best.name][0]} of the "
            f"images{beside}."
        ),
        advice="Where labelled images of just these classes are at hand, judge by this accuracy and its interval.",
        numbers=numbers,
        tables=(
            TextTable(
                headers=("Method", "Acc", "F1 (macro)", "AUROC (macro)"),
                sections=[[(name, *of) for name, of in cells.items()]],
            ),
        ),
    )


def _over_fitting(rivals: Sequence[Rival], classes: Sequence[str]) -> Finding:
    """How much better each method is on what it learned from; one without training shows what the splits differ by."""
    numbers: dict[str, dict[str, Any]] = {}
    rows = []
    for rival in rivals:
        if rival.training is None:
            continue
        gap = internal_external_gaps(KIND, [rival.training], [rival.table], classes)[0]["accuracy"]
        bounds = (-gap["high"], -gap["low"]) if "low" in gap else None
        own: dict[str, Any] = {
            "train": gap["internal"],
            "here": gap["external"],
            "gap": -gap["value"],
            "interval": bounds,
        }
        cells = (format_short(gap["internal"], 3), format_short(gap["external"], 3))
        rows.append(
            (rival.name, "none" if rival.zero_shot else rival.family, *cells, format_with_interval(own["gap"], bounds))
        )
        numbers[rival.name] = own
    worst = max(numbers, key=lambda name: numbers[name]["gap"])
    own = numbers[worst]
    sure = own["interval"] is not None and own["interval"][0] > 0
    cnns = [rival.name for rival in rivals if rival.family == "CNN" and rival.name in numbers and rival.name != worst]
    others = "".join(f", {name} {format_short(numbers[name]['gap'], 3)}" for name in cnns)
    return Finding(
        check="Over-fitting",
        severity="medium" if sure and own["gap"] > 0.1 else "info",
        summary=(
            f"{worst} loses most between the train split ({format_short(own['train'], 3)} right) and these images "
            f"({format_short(own['here'], 3)}): {format_with_interval(own['gap'], own['interval'])}{others}. A method "
            "without training shows what the splits differ by in themselves."
        ),
        advice="Where the gap is far above that of a method without training: more data, augmentation, or fewer epochs.",
        numbers=numbers,
        tables=(TextTable(headers=("Method", "trained as", "train", "here", "gap in accuracy"), sections=[rows]),),
    )


def _duel(clip: Rival, cnn: Rival, classes: Sequence[str], data: str) -> Finding:
    """Where the best of each family is right and the other is wrong: by class, with images."""
    draws = KIND.draws([clip.table, cnn.table], classes)[0]
    probabilities = [class_probabilities(rival.table, classes) for rival in (clip, cnn)]
    truth = encode_labels(clip.table["label"].tolist(), classes)
    right = [matrix.argmax(axis=1) == truth for matrix in probabilities]
    rows, by_class = [], dict[str, dict[str, Any]]()
    for at in np.unique(truth):
        name, counts = classes[at], _outcomes(*(of[truth == at] for of in right))
        values, samples = draws.values[f"recall/{name}"], draws.samples[f"recall/{name}"]
        difference, bounds = float(values[0] - values[1]), percentile_interval(samples[0] - samples[1])
        by_class[name] = counts | {"recall_difference": difference, "interval": bounds}
        recalls = (format_short(float(value), 3) for value in values)
        rows.append((name, *map(str, counts.values()), *recalls, format_with_interval(difference, bounds)))
    ahead = [
        f"{(clip if entry['recall_difference'] > 0 else cnn).name} on {name}"
        for name, entry in by_class.items()
        if entry["interval"] and np.prod(entry["interval"]) > 0
    ]
    counts = _outcomes(*right)
    p_value = mcnemar(counts["only_clip"], counts["only_cnn"])
    heads = (
        "Class",
        "both right",
        "only CLIP",
        "only CNN",
        "both wrong",
        "CLIP's recall",
        "CNN's recall",
        "difference",
    )
    return Finding(
        check="Where each wins",
        severity="info",
        summary=(
            f"Of {len(truth):,} images, {clip.name} and {cnn.name}, the best of their families on these very images, are "
            f"both right on {counts['both_right']:,}, only {clip.name} on {counts['only_clip']:,}, only {cnn.name} on "
            f"{counts['only_cnn']:,}, and neither on {counts['both_wrong']:,} (McNemar's p {format_p_value(p_value)}). In "
            "recall, " + (f"{', '.join(ahead)} is surely ahead." if ahead else "neither is surely ahead on any class.")
        ),
        advice="Look at the images: what one sees and the other misses says more than a mean, and an ensemble may use it.",
        numbers={"clip": clip.name, "cnn": cnn.name, **counts, "p": p_value, "by_class": by_class},
        tables=(TextTable(headers=heads, sections=[rows], wrap_cells=True),),
        examples=_duel_sheets(clip, cnn, probabilities, truth, right, data),
    )


def _duel_sheets(
    clip: Rival,
    cnn: Rival,
    probabilities: Sequence[np.ndarray],
    truth: np.ndarray,
    right: Sequence[np.ndarray],
    data: str,
) -> tuple[ExampleSheet, ...]:
    """The images that one has right and the other wrong, the plainest first, and those that both have most wrong."""
    one, other = (matrix[np.arange(len(truth)), truth] for matrix in probabilities)  # the probability of the true class
    found = {
        f"Only {clip.name} is right": (right[0] & ~right[1], one - other),
        f"Only {cnn.name} is right": (right[1] & ~right[0], other - one),
        "Both are wrong": (~right[0] & ~right[1], -one - other),
    }
    orders = {
        name: np.flatnonzero(of)[np.argsort(-strength[of], kind="stable")] for name, (of, strength) in found.items()
    }
    return tuple(
        _sheet(f"{name} ({len(order):,} images)", data, clip.table["image_id"], order)
        for name, order in orders.items()
        if len(order)
    )


def _outcomes(clip: np.ndarray, cnn: np.ndarray) -> dict[str, int]:
    outcomes = {"both_right": clip & cnn, "only_clip": clip & ~cnn, "only_cnn": cnn & ~clip, "both_wrong": ~clip & ~cnn}
    return {name: int(of.sum()) for name, of in outcomes.items()}


def _sheet(caption: str, data: str, image_ids: pd.Series, order: np.ndarray) -> ExampleSheet:
    return ExampleSheet(
        caption=caption, images=tuple((data, str(image)) for image in image_ids.iloc[order[:IMAGES_PER_SHEET]])
    )


def _value(draws: Draws, metric: str, at: int = 0) -> float:
    return float(draws.values[metric][at])


def _bounds(draws: Draws, metric: str, at: int = 0) -> list[float] | None:
    return percentile_interval(draws.samples[metric][at])
