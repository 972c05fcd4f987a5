"""The scores of predictions, and those of several methods side by side: what tables, files and figures are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from clipcovid.evaluate.bootstrap import Intervals
from clipcovid.evaluate.hits import HardImages
from clipcovid.evaluate.pairs import Pair
from clipcovid.evaluate.subgroups import Subgroup, SubgroupGap
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one predictions table, as an entry of metrics.json holds them; no value is NaN."""

    kind: ClassVar[str]
    json_marker: ClassVar[str]
    """The key that of all kinds only this one's JSON has."""
    json_order: ClassVar[tuple[str, ...]]
    """The keys of the JSON, which are fields, in their order."""

    n: int
    """Images scored."""
    metrics: dict[str, float]
    intervals: Intervals
    baselines: dict[str, dict[str, Any]]
    """What sees no image → its metrics, and texts that say what it is."""
    alarms: list[str] = field(default_factory=list)
    """Sentences on what is likely to be wrong."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what the scores rest on."""
    folds: list[dict[str, float]] = field(default_factory=list)
    """Of a cross-validation: the metrics of each fold's test images."""

    def to_json(self) -> dict[str, Any]:
        """The entry of metrics.json; without folds where there are none."""
        content = {name: getattr(self, name) for name in self.json_order}
        return content | ({"folds": self.folds} if self.folds else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The scores that `to_json` gave; other keys are passed over."""
        return cls(**{entry.name: content[entry.name] for entry in fields(cls) if entry.name in content})


@dataclass(frozen=True, kw_only=True)
class SeedRuns:
    """The runs of one method that has several seeds. Its scores among the methods' are means over them."""

    runs: list[str]
    sources: list[str]
    seeds: list[Any]
    values: dict[str, list[float]]
    """Metric → its value of each seed."""
    std: dict[str, float]
    """Metric → the standard deviation over seeds."""


class DecisionAnalysis(Protocol):
    """Protocol of what validation and test predictions together say of methods (`decisions.Decisions`)."""

    @property
    def notes(self) -> list[str]:
        """What the numbers rest on, and what was left out."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""

    def tables(self) -> dict[str, TextTable]:
        """Tables by name."""

    def figures(self, split: str) -> dict[str, Figure]:
        """Figures by name."""


@dataclass(frozen=True, kw_only=True)
class ExternalTest:
    """Methods on another data set than the one that they are compared on."""

    data: str
    """The prepared folder."""
    dataset: str
    split: str
    manifest_hash: str
    split_hash: str
    label_map: dict[str, str]
    """The data set's class → the class that it is taken for, "" for none."""
    left_out: int
    """Images that a method learned from, by their pixels: no method is scored on them."""
    shared: dict[str, int]
    """Split of the internal data set → images of its that would be scored here, by their pixels."""
    runs: dict[str, str]
    """Method → the folder of its predictions."""
    skipped: dict[str, str]
    """Method that makes no predictions of other data → why."""
    n: int = 0
    """Images that all methods are scored on."""
    classes: list[str] = field(default_factory=list)
    """The classes that scores are of; merged ones are one."""
    methods: dict[str, Scores] = field(default_factory=dict)
    """Method → scores, in the order of the comparison; none where the sets have but one class in common."""
    gaps: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Method → metric → internal, external, value (external minus internal), and low and high of its interval."""
    alarms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """An entry of `external` in comparison.json."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return content | {"methods": {name: scores.to_json() for name, scores in self.methods.items()}}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods side by side on the same images; all tables, files and figures of a comparison are made of it."""

    kind: str
    split: str
    split_hash: str
    manifest_hash: str
    n: int
    """Images that all methods are scored on."""
    classes: list[str]
    best: str
    methods: dict[str, Scores]
    """Method → scores, the best first."""
    runs: dict[str, str]
    """Method → the name of its run."""
    sources: dict[str, str]
    """Method → the folder or file of its predictions."""
    baselines: dict[str, dict[str, Any]]
    paired_differences: dict[str, dict[str, dict[str, float]]]
    """Method, but the best → its differences to the best (`Kind.differences`)."""
    judged_by: str = ""
    """The metric that ranks the methods, and that verdicts are of."""
    margin: float | None = None
    """The difference in it below which methods are equivalent; None: no difference is too small."""
    pairs: list[Pair] = field(default_factory=list)
    """Each pair of methods, the better one first."""
    cochran_q: dict[str, float] = field(default_factory=dict)
    """`significance.cochran_q` of the methods of one seed, where there are three or more and the kind tests hits."""
    seeds: dict[str, SeedRuns] = field(default_factory=dict)
    """Method of several seeds → its runs."""
    subgroups: list[Subgroup] = field(default_factory=list)
    gaps: list[SubgroupGap] = field(default_factory=list)
    hard_images: HardImages | None = None
    external: list[ExternalTest] = field(default_factory=list)
    """The methods on other data sets."""
    decisions: DecisionAnalysis | None = None
    """Calibration, operating points, prediction sets: where the kind has them, and a method predicted validation images."""
    alarms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of comparison.json."""
        names = ("split", "split_hash", "manifest_hash", "n", "classes", "best")
        content = {name: getattr(self, name) for name in names} | {"methods": self.methods_json()}
        content |= {"baselines": self.baselines, "paired": self.paired_differences}
        content |= {"judged_by": self.judged_by, "margin": self.margin, "pairs": [asdict(pair) for pair in self.pairs]}
        content |= {"cochran_q": self.cochran_q, "seeds": {name: asdict(runs) for name, runs in self.seeds.items()}}
        content |= {"subgroups": list(map(asdict, self.subgroups)), "gaps": list(map(asdict, self.gaps))}
        content |= {"hard_images": asdict(self.hard_images) if self.hard_images else None}
        content |= {"external": [test.to_json() for test in self.external]}
        content |= {"decisions": self.decisions.to_json() if self.decisions else None}
        return content | {"alarms": self.alarms, "notes": self.notes}

    def methods_json(self) -> dict[str, dict[str, Any]]:
        """Method → run, source and scores."""
        return {
            name: {"run": self.runs[name], "source": self.sources[name], **scores.to_json()}
            for name, scores in self.methods.items()
        }
