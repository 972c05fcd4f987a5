"""What goes with the class in the tables: its source, view, the patients' age and sex, and what files it comes in.

What tells the class without a look at the lungs, a model can learn in their place.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, PreparedSet
from clipcovid.audit.examples import evenly_spaced_positions, example_sheets
from clipcovid.evaluate.bootstrap import Intervals, bootstrap, patient_groups
from clipcovid.evaluate.number_format import agree, describe_resampling, format_count, format_with_interval
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import Finding, Severity

UNKNOWN = -1  # the code of a missing value
AGE_BANDS = (0, 18, 40, 60, 80)  # years from which on a band begins
MAX_SIZES = 12  # sizes of images, from the most frequent on, that are told apart
STRONG, MODERATE, WEAK = 0.5, 0.3, 0.1  # Cramér's V from which on an association is high, medium and low
SIGNIFICANCE_LEVEL = 1e-3  # p-value, by patients, from which down an association is no chance
MIN_GAP = 0.5  # between a class's share of a value and the others', from which on it is a sentence
DEMOGRAPHICS = {
    "age": ("age", "patientage", "ageyears", "ageinyears"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
}
"""What columns of a source are called that have the patient's age and sex, in small letters and without signs."""
PHRASES = {
    "source": "come from the source {}",
    "view": "have the view {}",
    "age": "are of patients aged {}",
    "sex": "are of patients of the sex {}",
    "file shape": "are {}",
    "file size": "are {}",
    "file format": "are {} files",
    "file channels": "are {} files",
    "file depth": "have {} bits a channel",
}
"""What is said of images that have a value."""
ADVICE = {
    "source": "Add images of each class from each source, or train and test within one source alone; else a model can tell "
    "the sources apart in place of the classes, and no score on this set will show it.",
    "view": "Compare classes within a view, or add the missing ones: AP and PA films differ in the heart's size and in "
    "who needed them.",
    "age": "Report scores by age, and match the classes by it: children's chests, say, look different.",
    "sex": "Report scores by sex, and match the classes by it.",
    "file": "Bring the files to one shape and format before they are prepared, from the originals if you can (crop, don't "
    "pad or squash), and audit the set again.",
}
FILE_COLUMNS = ("file shape", "file size", "file format", "file channels", "file depth")


def check_associations(data: AuditData, config: AuditConfig) -> list[Finding]:
    """Findings on class × source × view × age × sex, and class × what the files are."""
    prepared = data.main
    columns = {"class": prepared.table["label"], **metadata_columns(prepared.table), **file_columns(prepared.files)}
    codes = {name: category_codes(column) for name, column in columns.items()}
    pairs = [(a, b) for a, b in itertools.combinations(codes, 2) if not (a in FILE_COLUMNS or b in FILE_COLUMNS)]
    pairs += [("class", name) for name in FILE_COLUMNS]
    intervals = association_intervals(codes, pairs, patient_groups(prepared.table), config.seed)
    rows = [measure_association(codes, pair, prepared.table["patient_id"], intervals) for pair in pairs]
    findings = [
        _finding(prepared, columns, association)
        for association in rows
        if association.pair[0] == "class" and association.severity != "info"
    ]
    return [*findings, _summary(rows, columns, intervals)]


def metadata_columns(table: pd.DataFrame) -> dict[str, pd.Series]:
    """source, view, age (in bands) and sex of a manifest's rows as text, "" where unknown."""
    columns = {"source": table["source"], "view": table["view"]}
    names = list(map(str, table.columns))
    for name, spellings in DEMOGRAPHICS.items():
        named = [column for column in names if re.sub(r"[\W_]", "", column.lower()) in spellings]
        known = table[named[0]] if named else pd.Series("", index=table.index)
        columns[name] = known.map(age_band) if name == "age" else known.str.strip().str.upper().str[:1]
    return columns


def age_band(text: str) -> str:
    """`40–59` of an age in years (`45`, `45.0`, DICOM's `045Y`, also `006M`, `003W`, `010D`); "" for what is none."""
    match = re.fullmatch(r"\s*(\d{1,3})(?:\.\d+)?\s*(?:(y|years?)|(m|w|d))?\s*", text, re.IGNORECASE)
    if not match:
        return ""
    years = {"m": 12, "w": 52, "d": 365}
    age = int(match[1]) // years[match[3].lower()] if match[3] else int(match[1])
    start = max(year for year in AGE_BANDS if year <= age)
    end = [year for year in AGE_BANDS if year > age]
    return f"{start}–{end[0] - 1}" if end else f"{start}+"


def file_columns(files: pd.DataFrame) -> dict[str, pd.Series]:
    """What files are, as text, "" where unknown: shape (square or not), size (rare ones as one), format, channels, depth."""
    size = files["width"].astype(str) + " × " + files["height"].astype(str) + " pixels"
    frequent = size.value_counts().index[:MAX_SIZES]
    return {
        "file shape": files["shape"].where(files["shape"] == "square", "not square"),
        "file size": size.where(size.isin(frequent), "of a size of which there are few"),
        "file format": files["format"].fillna(""),
        "file channels": files["channels"].fillna(""),
        "file depth": files["bits"].map(lambda bits: "" if pd.isna(bits) else str(int(bits))),
    }


def category_codes(column: pd.Series) -> np.ndarray:
    """Codes (n,) int64 of a column's values, `UNKNOWN` for ""."""
    codes, _ = pd.factorize(column.mask(column == ""), use_na_sentinel=True)
    return codes.astype(np.int64)


def cramers_v(first: np.ndarray, second: np.ndarray) -> float:
    """Bias-corrected Cramér's V of two columns of codes (n,), 0 to 1; rows with an unknown one are left out.

    Bergsma, A bias-correction for Cramér's V and Tschuprow's T, J. Korean Stat. Soc. 42 (2013). NaN where one of them has
    a single value.
    """
    counts = contingency(first, second)
    n, (rows, columns) = counts.sum(), counts.shape
    if min(rows, columns) < 2 or n <= max(rows, columns):
        return float("nan")
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / n
    phi2 = ((counts - expected) ** 2 / expected).sum() / n
    phi2 = max(0.0, phi2 - (rows - 1) * (columns - 1) / (n - 1))
    levels = min(size - (size - 1) ** 2 / (n - 1) for size in (rows, columns))
    return float(min(1.0, np.sqrt(phi2 / (levels - 1))))


def contingency(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Counts (r, c) int64 of pairs of codes, without unknown ones, and without rows and columns of zeros."""
    known = (first != UNKNOWN) & (second != UNKNOWN)
    if not known.any():
        return np.zeros((0, 0), np.int64)
    width = int(second[known].max()) + 1
    counts = np.bincount(first[known] * width + second[known])
    counts = np.pad(counts, (0, -len(counts) % width)).reshape(-1, width)
    return counts[counts.any(axis=1)][:, counts.any(axis=0)]


def association_intervals(
    codes: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], groups: Sequence[str], seed: int
) -> Intervals:
    """Bootstrap intervals by patient of `cramers_v` of each pair of columns, named `a × b`."""

    def values(rows: np.ndarray) -> dict[str, float]:
        return {f"{a} × {b}": cramers_v(codes[a][rows], codes[b][rows]) for a, b in pairs}

    return bootstrap(values, groups, samples=500, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Association:
    """How two columns go together."""

    pair: tuple[str, str]
    v: float | None
    """Bias-corrected Cramér's V over images; None where one of them has a single known value."""
    interval: list[float] | None
    images: int
    """That both are known of."""
    p_value: float | None
    """Of the chi-squared test of independence, each patient counted once for each pair of values."""

    @property
    def name(self) -> str:
        """`a × b`."""
        return " × ".join(self.pair)

    @property
    def severity(self) -> Severity:
        """By V; info where it is small, or may be chance."""
        if self.v is None or self.p_value is None or self.p_value > SIGNIFICANCE_LEVEL:
            return "info"
        return "high" if self.v >= STRONG else "medium" if self.v >= MODERATE else "low" if self.v >= WEAK else "info"


def measure_association(
    codes: Mapping[str, np.ndarray], pair: tuple[str, str], patients: pd.Series, intervals: Intervals
) -> Association:
    """The association of a pair of columns."""
    first, second = (codes[name] for name in pair)
    v = cramers_v(first, second)
    known = np.isnan(v)
    return Association(
        pair=pair,
        v=None if known else v,
        interval=intervals["intervals"].get(" × ".join(pair)),
        images=int(((first != UNKNOWN) & (second != UNKNOWN)).sum()),
        p_value=None if known else independence_p_value(first, second, patients),
    )


def independence_p_value(first: np.ndarray, second: np.ndarray, patients: pd.Series) -> float:
    """P-value of the chi-squared test of independence of two columns of codes, over patients.

    A patient with many equal images counts once, an image of an unknown patient as one of its own. 1 for a column that is
    constant.
    """
    from scipy.stats import chi2_contingency

    who = patients.where(patients != "", "image " + pd.Series(np.arange(len(patients)), patients.index).astype(str))
    once = ~pd.DataFrame({"who": who.to_numpy(), "a": first, "b": second}).duplicated().to_numpy()
    counts = contingency(first[once], second[once])
    return float(chi2_contingency(counts, correction=False).pvalue) if min(counts.shape) > 1 else 1.0


def _finding(prepared: PreparedSet, columns: Mapping[str, pd.Series], association: Association) -> Finding:
    """The finding on a class's association with a column."""
    other = association.pair[1]
    sentences, sheets = _gaps(columns["class"], columns[other], other)
    value = format_with_interval(association.v, association.interval)
    told = "; ".join(sentences) or "the classes differ in their shares"
    return Finding(
        check=association.name,
        severity=association.severity,
        summary=f"The class goes with the {other} (Cramér's V {value}): {told}.",
        advice=ADVICE["file" if other in FILE_COLUMNS else other],
        numbers={"cramers_v": association.v, "interval": association.interval, "images": association.images}
        | {"p_value": association.p_value, "counts": _counts(columns["class"], columns[other]).to_dict("index")},
        tables=(_counts_table(columns["class"], columns[other], other),),
        examples=example_sheets(prepared, sheets),
    )


def _gaps(classes: pd.Series, values: pd.Series, name: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Sentences on the classes whose share of a value is furthest from the others', and rows that show them by caption."""
    known = (classes != "") & (values != "")
    sentences, sheets, told = list[str](), dict[str, np.ndarray](), set[str]()
    candidates = []
    for label, value in itertools.product(classes[known].unique(), values[known].unique()):
        inside, outside = known & (classes == label), known & (classes != label)
        has = values == value
        gap = has[inside].mean() - has[outside].mean()
        candidates.append((gap, label, value, inside, outside, has))
    for gap, label, value, inside, outside, has in sorted(candidates, key=lambda entry: -entry[0]):
        if gap < MIN_GAP or label in told or len(told) == 2:
            continue
        told.add(label)
        what = PHRASES[name].format(value)
        sentences.append(
            f"{_share(int(has[inside].sum()), int(inside.sum()))} images of {label} {what}, and "
            f"{_share(int(has[outside].sum()), int(outside.sum()))} of the other classes"
        )
        sheets[f"{label}: these {what}"] = evenly_spaced_positions(inside & has)
        sheets[f"Not {label}: these do not"] = evenly_spaced_positions(outside & ~has)
    return sentences, sheets


def _share(part: int, whole: int) -> str:
    if part == whole:
        return f"all {whole:,}"
    return f"none of the {whole:,}" if not part else f"{part:,} of the {whole:,}"


def _counts(classes: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Images by class and value, "unknown" where there is none."""
    return pd.crosstab(values.replace("", "unknown"), classes.replace("", "unknown"))


def _counts_table(classes: pd.Series, values: pd.Series, name: str) -> TextTable:
    counts = _counts(classes, values)
    rows = [[str(value), *(f"{count:,}" for count in counts.loc[value])] for value in counts.index]
    return TextTable(title=f"Images by class and {name}", headers=[name, *map(str, counts.columns)], sections=[rows])


def _summary(rows: Sequence[Association], columns: Mapping[str, pd.Series], intervals: Intervals) -> Finding:
    """The finding with all pairs, and what could not be looked at."""
    measured = [row for row in rows if row.v is not None]
    unmeasured = [row.name for row in rows if row.v is None]
    table = TextTable(
        title="Associations: bias-corrected Cramér's V, from 0 (none) to 1",
        headers=["pair", "Cramér's V", "images"],
        sections=[[[row.name, format_with_interval(row.v, row.interval), f"{row.images:,}"] for row in measured]],
        caption=f"{describe_resampling(intervals)}. One is a finding where its p-value by patients is at most "
        f"{SIGNIFICANCE_LEVEL:g}.",
    )
    unknown = [
        f"{name} is unknown of {int((column == '').sum()):,}" for name, column in columns.items() if "" in set(column)
    ]
    strongest = max(measured, key=lambda row: row.v or 0.0, default=None)
    summary = f"{format_count(len(measured), 'pair')} of columns {agree(len(measured), 'was', 'were')} measured"
    summary += f"; the strongest is {strongest.name} ({strongest.v:.2f})." if strongest else "."
    left = f" Not measured, for one of them has a single known value: {', '.join(unmeasured)}." if unmeasured else ""
    return Finding(
        check="associations",
        severity="info",
        summary=summary + left + (f" Of the images, {'; '.join(unknown)}." if unknown else ""),
        advice="Fill in the sources, views, ages and sexes that are unknown (--columns.* of clipcovid prepare): what is "
        "unknown can't be found to be confounded.",
        numbers={row.name: {"cramers_v": row.v, "interval": row.interval, "images": row.images} for row in rows},
        tables=(table,) if measured else (),
    )
