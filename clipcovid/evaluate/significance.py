"""Tests of differences between methods on the same images."""

from collections.abc import Sequence


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
