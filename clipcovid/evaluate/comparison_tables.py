"""The tables of a comparison: those that a terminal shows, and all of them."""

from collections.abc import Mapping, Sequence

from clipcovid.evaluate.external_gap import external_tables
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.number_format import format_mean_std, format_p_value, format_with_interval, gap_bounds
from clipcovid.evaluate.scores import Comparison
from clipcovid.evaluate.subgroups import Subgroup
from clipcovid.evaluate.text_table import TextTable, score_table

IMAGES_SHOWN = 20  # images that all methods miss; the rest is in comparison.json


def headline_tables(comparison: Comparison) -> list[TextTable]:
    """The methods' scores and the baselines beneath; then, where there are any, differences to the best, seeds and groups."""
    tables = [_score_table(comparison)]
    if comparison.paired_differences:
        tables.append(_difference_table(comparison))
    if comparison.seeds:
        tables.append(_seed_table(comparison))
    return [*tables, *external_tables(comparison.external, get_kind(comparison.kind))]


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """All tables: the headline, then further scores, classes, pairs, groups, images that all methods miss, decisions."""
    kind = get_kind(comparison.kind)
    tables = headline_tables(comparison)
    if kind.detail_metrics:
        tables.append(_method_table(comparison, f"{comparison.split}: further scores", kind.detail_metrics))
    for title, heads in kind.class_metrics(comparison).items():
        tables.append(_method_table(comparison, title, heads))
    if len(comparison.pairs) > 1 or comparison.margin is not None:
        tables.append(_pair_table(comparison))
    for column in dict.fromkeys(group.column for group in comparison.subgroups):
        tables += _group_tables(comparison, column)
    if comparison.hard_images:
        tables += _hard_tables(comparison)
    return [*tables, *(comparison.decisions.tables().values() if comparison.decisions else ())]


def _score_table(comparison: Comparison) -> TextTable:
    kind = get_kind(comparison.kind)
    heads = kind.comparison_headers(comparison)
    names = kind.baseline_names(comparison)
    baselines = [
        [names[name], *(format_with_interval(values.get(metric)) for metric in heads)]
        for name, values in comparison.baselines.items()
    ]
    return _method_table(comparison, kind.comparison_title(comparison), heads, baselines)


def _method_table(
    comparison: Comparison, title: str, heads: Mapping[str, str], baselines: Sequence[list[str]] = ()
) -> TextTable:
    """A row a method, a column each metric of `heads` with its interval: of three digits where one is narrow."""
    rows = [[name] for name in comparison.methods]
    for metric in heads:
        intervals = [scores.intervals["intervals"].get(metric) for scores in comparison.methods.values()]
        narrow = any(interval and interval[1] - interval[0] < 0.01 for interval in intervals)
        for row, scores, interval in zip(rows, comparison.methods.values(), intervals, strict=True):
            row.append(format_with_interval(scores.metrics.get(metric), interval, 3 if narrow else 2))
    return _table(title, ["Method", *heads.values()], rows, list(baselines))


def _difference_table(comparison: Comparison) -> TextTable:
    kind = get_kind(comparison.kind)
    heads = ["Method"]
    rows = []
    for name, gaps in comparison.paired_differences.items():
        metrics = [metric for metric in gaps if metric in kind.table_metrics]
        tests = kind.significance_cells(gaps)
        cells = [format_with_interval(gaps[metric]["value"], gap_bounds(gaps[metric]), 3) for metric in metrics]
        heads = ["Method", *(kind.table_metrics[metric] for metric in metrics), *tests]
        rows.append([name, *cells, *tests.values()])
    return _table(f"Minus {comparison.best}", heads, rows)


def _seed_table(comparison: Comparison) -> TextTable:
    kind = get_kind(comparison.kind)
    heads = kind.comparison_headers(comparison)
    rows = [
        [name, str(len(runs.runs)), *(format_mean_std(runs.values.get(metric, [])) for metric in heads)]
        for name, runs in comparison.seeds.items()
    ]
    return _table("Mean ± standard deviation over seeds", ["Method", "seeds", *heads.values()], rows)


def _pair_table(comparison: Comparison) -> TextTable:
    """All pairs by the ranking metric; McNemar's test, and a verdict."""
    kind, metric = get_kind(comparison.kind), comparison.judged_by
    tested = any(pair.mcnemar for pair in comparison.pairs)
    rows = []
    for pair in comparison.pairs:
        gap = pair.differences.get(metric, {})
        row = [f"{pair.first} − {pair.second}", format_with_interval(gap.get("value"), gap_bounds(gap), 3)]
        row += [format_p_value(gap[key]) if key in gap else "" for key in ("p", "p_holm")]
        if tested:
            row.append(format_p_value(pair.mcnemar["p_holm"]) if pair.mcnemar else "")
        rows.append([*row, pair.verdict])
    heads = ["Pair", kind.key_metrics[metric], "p", "p (Holm)", *(["McNemar (Holm)"] if tested else []), "the first is"]
    margin = f", equivalent within ±{comparison.margin:g}" if comparison.margin is not None else ""
    return _table(f"All {len(rows)} pairs{margin}", heads, rows)


def _group_tables(comparison: Comparison, column: str) -> list[TextTable]:
    """The groups of a column with each method's ranking metric, then its gaps."""
    kind, metric = get_kind(comparison.kind), comparison.judged_by
    groups = [group for group in comparison.subgroups if group.column == column]
    unit = comparison.methods[comparison.best].intervals["unit"] + "s"
    heads = [column, "images", *([unit] if unit != "images" else []), *comparison.methods, "not in the gap"]
    rows = [
        [
            group.name,
            f"{group.images:,}",
            *([f"{group.units:,}"] if unit != "images" else []),
            *(_group_cell(group, name, metric) for name in comparison.methods),
            group.left_out,
        ]
        for group in groups
    ]
    tables = [_table(f"{kind.key_metrics[metric]} by {column}", heads, rows)]
    gaps = [gap for gap in comparison.gaps if (gap.column, gap.metric) == (column, metric)]
    if gaps:
        cells = [[gap.method, gap.best, gap.worst, format_with_interval(gap.value, gap.bounds, 3)] for gap in gaps]
        tables.append(_table(f"Gap by {column}", ["Method", "best", "worst", f"{kind.key_metrics[metric]} gap"], cells))
    return tables


def _group_cell(group: Subgroup, method: str, metric: str) -> str:
    score = group.scores.get(method, {}).get(metric)
    return format_with_interval(score["value"], gap_bounds(score)) if score else ""


def _hard_tables(comparison: Comparison) -> list[TextTable]:
    """How many runs have an image right, by label; the first images that none has."""
    hard = comparison.hard_images
    assert hard is not None
    labels = [
        [label, *(f"{counts[key]:,}" for key in ("images", "missed_by_all", "right_in_all"))]
        for label, counts in hard.labels.items()
    ]
    total = ["all", f"{comparison.n:,}", f"{hard.counts[0]:,}", f"{hard.counts[-1]:,}"]
    heads = ["label", "images", "missed by all", "right in all"]
    tables = [_table(f"Hard and easy images over {len(hard.runs)} runs", heads, [*labels, total])]
    shown = hard.missed[:IMAGES_SHOWN]
    if shown:
        rows = [[image.image_id, image.label, *image.predictions.values()] for image in shown]
        more = f", the first {len(shown)}; all are in comparison.json" if len(hard.missed) > len(shown) else ""
        tables.append(_table(f"Missed by all: {len(hard.missed):,} images{more}", ["image", "label", *hard.runs], rows))
    return tables


def _table(title: str, heads: list[str], *sections: list[list[str]]) -> TextTable:
    return score_table(title, heads, sections)
