"""Tests of differences between methods on the same images."""

import math
from collections.abc import Sequence

import numpy as np


def mcnemar(only_first_right: int, only_second_right: int) -> float:
    """Exact two-sided p-value of McNemar's test from the rows that only one, and only the other, has right.

    McNemar, Psychometrika 12 (1947), with the binomial distribution of the discordant rows in place of chi-squared.
    """
    from scipy.stats import binomtest  # half a second to import, which a training does not need

    return (
        float(binomtest(only_first_right, only_first_right + only_second_right, 0.5).pvalue)
        if only_first_right + only_second_right
        else 1.0
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: Holm's step-down method, Scand. J. Statist. 6 (1979), in the order given."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def cochran_q(correct: np.ndarray) -> dict[str, float]:
    """Cochran's Q of k methods on the same n images: `statistic`, `df` and `p`; `correct` (k, n) bool, which has which right.

    Cochran, Biometrika 37 (1950), against chi-squared with k - 1 degrees of freedom. Of two methods it is McNemar's test
    without correction. Where no image tells the methods apart, p is 1.
    """
    from scipy.stats import chi2  # half a second to import, which a training does not need

    methods, images = correct.sum(axis=1).astype(np.float64), correct.sum(axis=0).astype(np.float64)
    k, total = len(correct), float(methods.sum())
    spread = float(k * total - (images**2).sum())
    statistic = (k - 1) * (k * float((methods**2).sum()) - total**2) / spread if spread > 0 else 0.0
    return {"statistic": statistic, "df": k - 1, "p": float(chi2.sf(statistic, k - 1)) if spread > 0 else 1.0}


def bootstrap_p_value(value: float, draws: np.ndarray) -> float | None:
    """Two-sided p-value of a difference from its `draws` (samples,): by their standard deviation, against the normal.

    So does pROC's bootstrap test (Robin et al., BMC Bioinformatics 12, 2011); the share of draws beyond 0 could not get below
    1 / samples, which a correction for many pairs would drown. None where most draws are undefined, or all are one but 0.
    """
    defined = draws[~np.isnan(draws)]
    if math.isnan(value) or 2 * len(defined) < len(draws) or len(defined) < 2:
        return None
    deviation = float(defined.std(ddof=1))
    if deviation < 1e-12:
        return 1.0 if abs(value) < 1e-12 else None
    return math.erfc(abs(value) / deviation / math.sqrt(2))


def classify_difference(interval_90: Sequence[float], interval_95: Sequence[float], margin: float | None) -> str:
    """equivalent, better, worse or undecided, of a difference with its intervals.

    Equivalent: the 90 % interval lies within ±`margin`, which is two one-sided tests at 5 % (Schuirmann, J. Pharmacokinet.
    Biopharm. 15, 1987); it comes before better and worse, which say that the 95 % interval leaves out 0.
    """
    if margin is not None and -margin < interval_90[0] and interval_90[1] < margin:
        return "equivalent"
    if interval_95[0] > 0:
        return "better"
    return "worse" if interval_95[1] < 0 else "undecided"
