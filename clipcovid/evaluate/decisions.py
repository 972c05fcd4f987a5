"""What a method's probabilities are good for: calibration, abstaining, prediction sets, operating points, net benefit.

Whatever is chosen (temperature, thresholds, limits of prediction sets) is chosen on validation images, and tried once on the
test images. Temperature scaling enters calibration and decision curves, which need true probabilities; all else takes the
probabilities as they were predicted, so that no validation image is used twice for it.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipcovid.errors import UserError
from clipcovid.evaluate import decision_tables as tables
from clipcovid.evaluate.bootstrap import Intervals, patient_groups
from clipcovid.evaluate.conformal import ConformalSets, conformal_sets
from clipcovid.evaluate.metrics import encode_labels
from clipcovid.evaluate.net_benefit import TABLE_THRESHOLDS, THRESHOLDS, NetBenefit, net_benefit, net_benefits
from clipcovid.evaluate.number_format import describe_resampling
from clipcovid.evaluate.operating_points import OperatingPoint, operating_points
from clipcovid.evaluate.predictions import TRAINED_ON
from clipcovid.evaluate.probabilities import class_probabilities
from clipcovid.evaluate.reliability import Reliability, reliability
from clipcovid.evaluate.resamples import Resamples
from clipcovid.evaluate.selective import SelectivePrediction, selective_prediction
from clipcovid.evaluate.temperature import fit_temperature, scale_probabilities
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LabelsAndProbabilities = tuple[np.ndarray, np.ndarray]
"""The true class (n,) int64 and probabilities (n, k)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodDecisions:
    """One method."""

    validation_n: int
    """Validation images; 0 where there are no predictions of any, and nothing could be chosen."""
    temperature: float | None
    """None where the probabilities are not scaled."""
    predicted: Reliability
    """Calibration as predicted."""
    scaled: Reliability | None
    """Calibration after temperature scaling."""
    selective: SelectivePrediction
    conformal: dict[str, ConformalSets]
    """`lac` and `class_conditional`, or none."""
    operating_points: dict[str, OperatingPoint]
    """Class → its operating point."""
    net_benefit: dict[str, NetBenefit]
    """Class → net benefit, of scaled probabilities where there are any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decisions:
    """All methods on the same test images."""

    classes: list[str]
    n: int
    """Test images."""
    sensitivity: float
    """What operating points were chosen to reach on validation images."""
    coverage: float
    """The share of prediction sets that were to have the true class."""
    resampled: Intervals
    """What intervals rest on."""
    treat_all: dict[str, list[float]]
    """Class → the net benefit at `THRESHOLDS` of calling every image positive."""
    methods: dict[str, MethodDecisions]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it; what is undefined is null."""
        return dataclasses.asdict(self) | {"thresholds": THRESHOLDS.tolist()}

    def tables(self) -> dict[str, TextTable]:
        """`calibration`, `selective`, `operating_points`, `prediction_sets`, `net_benefit`: those that have rows."""
        caption, methods = describe_resampling(self.resampled), self.methods.items()
        at = [THRESHOLDS.tolist().index(threshold) for threshold in TABLE_THRESHOLDS]
        everyone = {name: [values[index] for index in at] for name, values in self.treat_all.items()}
        calibrations = {name: (method.predicted, method.temperature, method.scaled) for name, method in methods}
        points = {name: method.operating_points for name, method in methods}
        sets = {name: method.conformal for name, method in methods}
        made = {
            "calibration": tables.calibration_table(calibrations, caption),
            "selective": tables.selective_table({name: method.selective for name, method in methods}, caption),
            "operating_points": tables.operating_points_table(points, self.classes, self.sensitivity, caption),
            "prediction_sets": tables.prediction_sets_table(sets, self.coverage, caption),
            "net_benefit": tables.net_benefit_table(
                {name: method.net_benefit for name, method in methods}, everyone, caption
            ),
        }
        return {name: table for name, table in made.items() if table.sections}

    def figures(self, split: str = "test") -> dict[str, "Figure"]:
        """`reliability`, `reliability_classes`, `risk_coverage`, `decision_curves`; `split` stands in their titles."""
        from clipcovid.evaluate import decision_plots, plots  # matplotlib: what only prints starts without it

        sample, methods = plots.sample_title(self.n, split), self.methods.items()
        last = {name: method.scaled or method.predicted for name, method in methods}
        benefits = {self._curve_name(name): method.net_benefit for name, method in methods}
        return {
            "reliability": decision_plots.reliability_figure(
                {name: (method.predicted, method.scaled) for name, method in methods}, sample
            ),
            "reliability_classes": decision_plots.class_reliability_figure(
                {self._curve_name(name): kind for name, kind in last.items()}, self.classes, sample
            ),
            "risk_coverage": decision_plots.risk_coverage_figure(
                {name: method.selective for name, method in methods}, sample
            ),
            "decision_curves": decision_plots.decision_curves_figure(benefits, self.treat_all, sample),
        }

    def _curve_name(self, name: str) -> str:
        """A method's name where curves of scaled probabilities and of others stand side by side."""
        return name if self.methods[name].scaled else f"{name} (not scaled)"


def analyze_decisions(
    methods: Mapping[str, tuple[pd.DataFrame | None, pd.DataFrame]],
    classes: Sequence[str],
    *,
    sensitivity: float = 0.9,
    coverage: float = 0.9,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Decisions:
    """The decisions that methods allow: method → predictions of validation images (None for none) and of test images.

    Tables are as `write_predictions` takes them, with label, patient_id and prob_<class>; those of the test have the same
    images in the same order. Validation images without a label, or that the method learned from, are left out. Intervals
    are by patient, from as many resamples as `samples` says.
    """
    for name, value in (("sensitivity", sensitivity), ("coverage", coverage)):
        if not 0 < value < 1:
            raise UserError(f"A wanted {name} of {value} is not between 0 and 1, e.g. 0.9.")
    tests = [test for _, test in methods.values()]
    assert all(test["image_id"].tolist() == tests[0]["image_id"].tolist() for test in tests), "other images"
    resamples = Resamples(patient_groups(tests[0]), samples=samples, seed=seed, level=level)
    validations = {name: _validation(table, classes) for name, (table, _) in methods.items()}
    truth = encode_labels(tests[0]["label"].tolist(), classes)
    tested = {name: (truth, class_probabilities(test, classes)) for name, (_, test) in methods.items()}

    def analyze(name: str) -> MethodDecisions:
        wishes = {"sensitivity": sensitivity, "coverage": coverage}
        return _analyze(validations[name], tested[name], classes, resamples, **wishes)

    with ThreadPoolExecutor(min(len(methods), os.cpu_count() or 1)) as pool:  # NumPy lets other threads run meanwhile
        analyzed = dict(zip(methods, pool.map(analyze, methods), strict=True))
    decisions = Decisions(
        classes=list(classes),
        n=len(truth),
        sensitivity=sensitivity,
        coverage=coverage,
        resampled=resamples.rests_on,
        treat_all={
            name: net_benefit(truth == at, np.ones(len(truth)), THRESHOLDS).tolist() for at, name in enumerate(classes)
        },
        methods=analyzed,
        notes=[],
    )
    return dataclasses.replace(decisions, notes=_notes(decisions, validations))


def _validation(table: pd.DataFrame | None, classes: Sequence[str]) -> LabelsAndProbabilities | None:
    """The validation images that something can be chosen on; None where there are none."""
    if table is None:
        return None
    usable = table["label"].fillna("") != ""
    if TRAINED_ON in table:
        usable &= ~table[TRAINED_ON]
    table = table[usable]
    if table.empty:
        return None
    return encode_labels(table["label"].tolist(), classes), class_probabilities(table, classes)


def _analyze(
    validation: LabelsAndProbabilities | None,
    test: LabelsAndProbabilities,
    classes: Sequence[str],
    resamples: Resamples,
    *,
    sensitivity: float,
    coverage: float,
) -> MethodDecisions:
    truth, probabilities = test
    temperature = fit_temperature(*validation) if validation else None
    scaled = scale_probabilities(probabilities, temperature)
    sets, points = {}, {}
    if validation:
        sets = {
            name: conformal_sets(validation, test, classes, coverage, resamples, by_class=by_class)
            for name, by_class in (("lac", False), ("class_conditional", True))
        }
        points = operating_points(validation, test, classes, sensitivity, resamples)
    return MethodDecisions(
        validation_n=len(validation[0]) if validation else 0,
        temperature=temperature,
        predicted=reliability(truth, probabilities, classes, resamples),
        scaled=reliability(truth, scaled, classes, resamples) if temperature else None,
        selective=selective_prediction(truth, probabilities, resamples),
        conformal=sets,
        operating_points=points,
        net_benefit=net_benefits(truth, scaled, classes, resamples),
    )


def _notes(decisions: Decisions, validations: Mapping[str, LabelsAndProbabilities | None]) -> list[str]:
    """What the numbers rest on, what was left out, and what is too little to go by."""
    notes = []
    if missing := [name for name, validation in validations.items() if validation is None]:
        notes.append(
            f"No temperature, operating points or prediction sets for {', '.join(missing)}: there are no predictions of "
            "validation images to choose them on. Trained methods write them; zeroshot does with --split val and the same "
            "--name."
        )
    chosen = {name: validation for name, validation in validations.items() if validation is not None}
    if not chosen:
        return notes
    notes.append(
        "Temperatures, thresholds and prediction sets were chosen on validation images, which may also have chosen epochs "
        "and settings: go by what the test images show."
    )
    if unscaled := [name for name in chosen if decisions.methods[name].temperature is None]:
        notes.append(
            f"No temperature is the best for {', '.join(unscaled)}, which have all validation images right, or know no more "
            "of them than chance: their probabilities are not scaled."
        )
    k, wanted = len(decisions.classes), max(decisions.sensitivity, decisions.coverage)
    counts = np.min([np.bincount(truth, minlength=k) for truth, _ in chosen.values()], axis=0)
    least = int(np.ceil(1 / (1 - wanted) - 1e-9))
    if few := [f"{name} ({counts[at]})" for at, name in enumerate(decisions.classes) if counts[at] < least]:
        notes.append(
            f"Fewer than {least} validation images are of {', '.join(few)}: too few to choose thresholds and prediction sets "
            "of these classes by. A class-conditional set may hold such a class always."
        )
    notes.append("PPV, NPV and net benefit hold for the class shares of the test images; elsewhere they differ.")
    return notes
