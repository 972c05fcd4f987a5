"""Captions: a text for every image, written or retrieved, beside the true one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.captions import (
    BASELINES,
    HYPOTHESIS_COLUMN,
    METEOR_MAX_WORDS,
    METRICS,
    RANK_COLUMNS,
    CocoCaptionScores,
    caption_metrics,
    java_note,
    tokenize,
)
from clipcovid.evaluate.draws import Resampler
from clipcovid.evaluate.examples import IMAGES_IN_GROUP, ExampleGroup, ExampleImage
from clipcovid.evaluate.hits import Hits
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.number_format import describe_resampling, format_interval, format_number
from clipcovid.evaluate.retrieval import retrieval_metrics
from clipcovid.evaluate.scores import Comparison, Scores
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcovid.data.packed import PackedImages

IMAGES_IN_FIGURE = 9  # images
RANKED_BY, RANKS_RIGHT = "image_to_text", 10  # a direction of retrieval, and the last rank that is right


@dataclass(frozen=True, kw_only=True)
class CaptionsScores(Scores):
    """Scores of captions; retrieval metrics are named `image_to_text/<metric>` and `text_to_image/<metric>`."""

    kind = "captions"
    json_marker = "captions"
    json_order = ("n", "captions", "metrics", "intervals", "baselines", "differences", "alarms", "notes")

    captions: bool = True
    differences: dict[str, dict[str, dict[str, Any]]]
    """Baseline → metric → `value` of the captions minus the baseline, and its `interval` over paired resamples or None."""


class Captions(Kind[CaptionsScores]):
    """A row an image. Columns: reference, hypothesis; where known patient_id, `RANK_COLUMNS` and `BASELINES`."""

    name = "captions"
    title = "captions"
    truth_column = "reference"
    scores_type = CaptionsScores
    key_metrics: ClassVar[Mapping[str, str]] = {
        "cider": "CIDEr",
        "bleu_4": "BLEU-4",
        "bleu_1": "BLEU-1",
        "image_to_text/recall_10": "recall at 10",
    }
    table_metrics: ClassVar[Mapping[str, str]] = {
        name: name.replace("/", "\n").replace("_", "\n")
        for name in ("bleu_1", "bleu_4", "rouge_l", "meteor", "cider", "image_to_text/recall_10")
    }
    needs_whole_split = True

    def columns(self, classes: Sequence[str]) -> list[str]:
        """image_id and hypothesis; the reference is that of images that have a caption."""
        return ["image_id", HYPOTHESIS_COLUMN]

    def score(
        self,
        table: pd.DataFrame,
        classes: Sequence[str] = (),
        train_labels: Sequence[str] | None = None,
        similarities: np.ndarray | None = None,
    ) -> CaptionsScores:
        """Scores of hypothesis against reference; no classes, labels or similarities are needed.

        Baselines are scored by the same code. `differences` are of the hypothesis minus each of them, in paired resamples
        of patients.
        """
        columns = [HYPOTHESIS_COLUMN, *(name for name in BASELINES if name in table)]
        scored = _score_columns(table, columns)
        texts, ranks = scored[HYPOTHESIS_COLUMN], _ranks(table)
        metrics = {name: texts.overall[name] for name in METRICS if name in texts.overall} | _retrieval(ranks)

        def draw(indices: np.ndarray) -> dict[str, float]:
            values = texts.subset_metrics(indices) | _retrieval({way: rank[indices] for way, rank in ranks.items()})
            for column in columns[1:]:
                other = scored[column].subset_metrics(indices)
                values |= {f"{column} {metric}": values[metric] - other[metric] for metric in other}
            return values

        intervals = bootstrap.bootstrap(draw, bootstrap.patient_groups(table))
        differences = {
            BASELINES[column]: {
                metric: {
                    "value": texts.overall[metric] - value,
                    "interval": intervals["intervals"].pop(f"{column} {metric}", None),
                }
                for metric, value in scored[column].overall.items()
            }
            for column in columns[1:]
        }
        return CaptionsScores(
            n=len(table),
            metrics=metrics,
            intervals=intervals,
            baselines={BASELINES[column]: dict[str, Any](scored[column].overall) for column in columns[1:]},
            differences=differences,
            alarms=_alarms(table),
            notes=_notes(table),
        )

    def tables(self, scores: CaptionsScores) -> list[TextTable]:
        """All metrics beside the baselines'."""
        intervals, baselines = scores.intervals, scores.baselines
        origin = "captions are written; the baselines' are the training split's"
        if BASELINES["hypothesis_own"] in baselines:
            origin = "captions are the training split's, but in the last column this split's own, the truth among them"
        rows = [
            (
                name.replace("_", " ").replace("/", ", "),
                format_number(value),
                format_interval(intervals["intervals"].get(name)),
                *(format_number(values.get(name)) for values in baselines.values()),
            )
            for name, value in scores.metrics.items()
        ]
        heads = (
            "metric",
            "value",
            f"{intervals['level']:.0%} interval",
            *(name.replace(" ", "\n") for name in baselines),
        )
        caption = f"{describe_resampling(intervals)}; {origin}"
        return [TextTable(title=f"{scores.n:,} images", caption=caption, headers=heads, sections=[rows], bold=1)]

    def figures(
        self,
        table: pd.DataFrame,
        scores: CaptionsScores,
        classes: Sequence[str],
        open_images: Callable[[], PackedImages],
        *,
        split: str,
    ) -> dict[str, Figure]:
        """`captions`: some images, evenly drawn, with their captions and the true ones."""
        from clipcovid.evaluate import plots  # matplotlib: a training's first step does not wait for its figures

        packed = open_images()
        rows = table.iloc[np.unique(np.linspace(0, len(table) - 1, IMAGES_IN_FIGURE).round().astype(int))]
        texts = [f"{row.hypothesis}\n(true: {row.reference})" for row in rows.itertuples()]
        images = packed.images(packed.manifest.positions(rows["image_id"]))
        return {"captions": plots.contact_sheet_figure(images, texts, title="Captions")}

    def resampler(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Resampler:
        """The metrics of the texts, and those of retrieval where all tables have ranks."""
        texts = [_score_columns(table, [HYPOTHESIS_COLUMN])[HYPOTHESIS_COLUMN] for table in tables]
        ranks = [_ranks(table) for table in tables]

        def resample(indices: np.ndarray) -> dict[str, np.ndarray]:
            metrics = [
                text.subset_metrics(indices) | _retrieval({way: values[indices] for way, values in rank.items()})
                for text, rank in zip(texts, ranks, strict=True)
            ]
            common = [name for name in metrics[0] if all(name in values for values in metrics)]
            return {name: np.array([values[name] for values in metrics]) for name in common}

        return resample

    def hits(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Hits | None:
        """Right: the image's own caption is among the first 10; None where a table has no ranks, for texts are not right."""
        ranks = [of_table[RANKED_BY] for of_table in map(_ranks, tables) if RANKED_BY in of_table]
        if len(ranks) < len(tables):
            return None
        return Hits(f"the own caption is among the first {RANKS_RIGHT}", np.stack(ranks) <= RANKS_RIGHT)

    def describe_predictions(self, table: pd.DataFrame, image_ids: Sequence[str], classes: Sequence[str]) -> list[str]:
        """The rank of the own caption."""
        return [f"rank {rank}" for rank in table.set_index("image_id").loc[list(image_ids), "image_to_text_rank"]]

    def common_baselines(self, scores: Sequence[CaptionsScores]) -> dict[str, dict[str, Any]]:
        """The training split's most frequent caption, where any method's scores have it; the others vary with the method."""
        name = BASELINES["hypothesis_frequent"]
        return next(({name: entry.baselines[name]} for entry in scores if name in entry.baselines), {})

    def baseline_notes(self, comparison: Comparison) -> list[str]:
        """What the baseline says."""
        return [f"The {name} of the training split is said of every image." for name in comparison.baselines]

    def examples(self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> list[ExampleGroup]:
        """The images whose captions by the first method are most and least like the true ones, by CIDEr."""
        name, table = next(iter(tables.items()))
        cider = _score_columns(table, [HYPOTHESIS_COLUMN])[HYPOTHESIS_COLUMN].per_caption["cider"]
        order, some = np.argsort(-cider, kind="stable"), min(IMAGES_IN_GROUP, -(-len(table) // 2))
        groups = []
        for which, rows in (("most", order[:some]), ("least", order[::-1][:some])):
            images = tuple(
                ExampleImage(
                    image_id=table["image_id"].iloc[at],
                    caption=f"{table[HYPOTHESIS_COLUMN].iloc[at]} (true: {table['reference'].iloc[at]}; "
                    f"CIDEr {cider[at]:.2f})",
                )
                for at in rows
            )
            groups.append(ExampleGroup(title=f"{name}: captions that are {which} like the true ones", images=images))
        return groups


def _score_columns(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, CocoCaptionScores]:
    """Each column's texts against the reference."""
    texts = tokenize([*table["reference"], *(text for name in columns for text in table[name])])
    references, *hypotheses = [texts[start : start + len(table)] for start in range(0, len(texts), len(table))]
    return {name: caption_metrics(references, part) for name, part in zip(columns, hypotheses, strict=True)}


def _ranks(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Direction of retrieval → ranks (n,), where the table has them."""
    return {way: table[column].to_numpy() for column, way in RANK_COLUMNS.items() if column in table}


def _retrieval(ranks: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {
        f"{way}/{name}": value for way, values in ranks.items() for name, value in retrieval_metrics(values).items()
    }


def _alarms(table: pd.DataFrame) -> list[str]:
    hypotheses = table[HYPOTHESIS_COLUMN].map(str.strip)
    if len(table) > 1 and hypotheses.nunique() == 1:
        return [f"All {len(table)} images get the same caption: {hypotheses.iloc[0][:80]!r}."]
    return []


def _notes(table: pd.DataFrame) -> list[str]:
    notes = [java_note()] if java_note() else []
    if foreign := int(table["reference"].map(lambda text: bool(re.search(r"[^\W\d_a-zA-ZÀ-ɏ]", text))).sum()):
        notes.append(f"{foreign} references have letters other than Latin ones: METEOR knows only English words.")
    if long := int(table["reference"].map(lambda text: len(text.split()) > METEOR_MAX_WORDS).sum()):
        notes.append(f"{long} references have over {METEOR_MAX_WORDS} words: METEOR looks at so many of each text.")
    if empty := int((table[HYPOTHESIS_COLUMN].str.strip() == "").sum()):
        notes.append(f"{empty} of {len(table)} captions are empty; they score nothing.")
    return notes


KIND = Captions()
