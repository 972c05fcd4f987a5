"""A run in words: what stands above its charts in MLflow, and beside a model in the registry."""

from collections.abc import Mapping, Sequence

from clipcovid.config import RESEARCH_ONLY
from clipcovid.evaluate.kinds.registry import get_kind, scores_from_json
from clipcovid.evaluate.number_format import describe_resampling, format_with_interval
from clipcovid.evaluate.scores import Scores
from clipcovid.evaluate.text_table import TextTable
from clipcovid.io.files import read_json_object
from clipcovid.runs import Run
from clipcovid.tracking.datasets import TrackedDataset

JOBS = {  # job → what its run is called in a sentence
    "train": "a training",
    "crossval": "a cross-validation",
    "few-shot": "a few-shot curve",
    "sweep": "a sweep of hyperparameters",
    "predict": "predictions of a trained run",
    "zeroshot": "zero-shot classification",
    "prompts": "a search for prompts",
    "compare": "a comparison of methods",
    "audit": "an audit of a data set",
    "study": "a study",
}


def summarize_run(run: Run, data: Sequence[TrackedDataset] = ()) -> str:
    """Markdown: what the run is, on which data, how it scores beside the baselines, and what is likely to be wrong."""
    bodies = run.metrics()
    scores = {split: scores_from_json(body) for split, body in bodies.items() if "n" in body}
    alarms = [f"**Alarm** ({split}): {text}" for split, body in bodies.items() for text in body["alarms"]]
    parts = [RESEARCH_ONLY, _opening(run, data), _result(scores), *alarms, *_comparison(run)]
    for split, body in bodies.items():
        if split not in scores and body["metrics"]:  # a trial's score alone
            values = (f"{name} {format_with_interval(value)}" for name, value in body["metrics"].items())
            parts.append(f"On {split}: {', '.join(values)}.")
    if scores:
        parts.append(_table(scores))
    return "\n\n".join(part for part in parts if part)


def _opening(run: Run, data: Sequence[TrackedDataset]) -> str:
    """The run's name, job and data in a sentence."""
    job = JOBS.get(run.job or run.method, "")
    sentence = f"**{run.name}**" + (f" ({run.method})" if run.method != run.name else "") + (f": {job}" if job else "")
    if not data:
        return f"{sentence}."
    shares = ", ".join(f"*{used.name}* {used.images:,} images" for used in data)
    classes = f"; classes: {', '.join(data[0].classes)}" if data[0].classes else ""
    return f"{sentence}. Data: {shares}{classes}."


def _result(scores: Mapping[str, Scores]) -> str:
    """The test split's key metrics, or those of the last that was scored, with intervals, and the best baseline's."""
    if not scores:
        return ""
    split = "test" if "test" in scores else list(scores)[-1]
    entry = scores[split]
    metrics = _key_metrics(entry)
    values = ", ".join(f"{title} {_cell(entry, name)}" for name, title in metrics.items())
    first = next(iter(metrics), "")
    baselines = {name: body[first] for name, body in entry.baselines.items() if body.get(first) is not None}
    best = max(baselines, key=lambda name: baselines[name], default="")
    beside = f"; the baseline {best} has {metrics[first]} {format_with_interval(baselines[best])}" if best else ""
    resampling = f" ({describe_resampling(entry.intervals)})" if entry.intervals else ""
    return f"On {split}, {entry.n:,} images: {values}{resampling}{beside}."


def _comparison(run: Run) -> list[str]:
    """The best method of a comparison, and the table of its methods."""
    body = read_json_object(run.folder / "comparison.json")
    if not body:
        return []
    scores = {name: scores_from_json(entry) for name, entry in body["methods"].items()}
    best = f"Best of {len(scores)} methods on the same images ({body['split']}): **{body['best']}**."
    return [best, _table(scores)]


def _table(scores: Mapping[str, Scores]) -> str:
    """Markdown: a row an entry, with its images and its kind's key metrics."""
    metrics = _key_metrics(next(iter(scores.values())))
    rows = [(name, f"{entry.n:,}", *(_cell(entry, metric) for metric in metrics)) for name, entry in scores.items()]
    return "\n".join(TextTable(headers=("", "images", *metrics.values()), sections=[rows]).markdown())


def _key_metrics(scores: Scores) -> dict[str, str]:
    """Metric → name of the kind's key metrics that these scores have."""
    return {name: title for name, title in get_kind(scores.kind).key_metrics.items() if name in scores.metrics}


def _cell(scores: Scores, metric: str) -> str:
    intervals = scores.intervals["intervals"] if scores.intervals else {}
    return format_with_interval(scores.metrics.get(metric), intervals.get(metric))
