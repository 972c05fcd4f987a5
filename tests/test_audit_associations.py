"""Class × source × view × age × sex × files: Cramér's V against a naive implementation, planted and absent associations."""

import numpy as np
import pandas as pd
import pytest
from audit_sets import noise_set, open_set, write_set
from scipy.stats.contingency import association

from clipcovid.audit.associations import (
    age_band,
    check_associations,
    contingency,
    cramers_v,
    independence_p_value,
    metadata_columns,
)
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData


def naive_cramers_v(first, second):
    """Bergsma (2013), cell by cell."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a >= 0 and b >= 0]
    n, rows, columns = len(pairs), {a for a, _ in pairs}, {b for _, b in pairs}
    chi2 = 0.0
    for a in rows:
        for b in columns:
            expected = sum(x == a for x, _ in pairs) * sum(y == b for _, y in pairs) / n
            chi2 += (pairs.count((a, b)) - expected) ** 2 / expected
    r, c = len(rows), len(columns)
    phi2 = max(0, chi2 / n - (r - 1) * (c - 1) / (n - 1))
    r, c = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
    return (phi2 / min(r - 1, c - 1)) ** 0.5


@pytest.mark.parametrize("seed", range(20))
def test_cramers_v_is_bergsmas(seed):
    rng = np.random.default_rng(seed)
    n, r, c = rng.integers(20, 200), rng.integers(2, 5), rng.integers(2, 6)
    first = rng.integers(-1, r, n)
    second = np.where(rng.random(n) < 0.5, first % c, rng.integers(-1, c, n))
    assert cramers_v(first, second) == pytest.approx(naive_cramers_v(first, second), abs=1e-12)
    assert cramers_v(second, first) == pytest.approx(cramers_v(first, second), abs=1e-12)


def test_without_the_correction_it_would_be_scipys():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 4000)
    second = np.where(rng.random(4000) < 0.3, first, rng.integers(0, 3, 4000))
    assert cramers_v(first, second) == pytest.approx(association(contingency(first, second)), abs=2e-3)


def test_it_is_one_for_the_same_none_for_chance_and_undefined_for_a_single_value():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 300)
    assert cramers_v(first, 2 - first) == pytest.approx(1)
    draws = [cramers_v(rng.integers(0, 3, 300), rng.integers(0, 4, 300)) for _ in range(300)]
    assert (
        np.mean(np.square(draws)) < 0.01
    )  # uncorrected: (3 - 1) * (4 - 1) / 300 / 2 = 0.01 on average, and never less than 0
    assert np.isnan(cramers_v(first, np.zeros(300, int)))
    assert np.isnan(cramers_v(np.full(300, -1), first))


def test_many_images_of_a_patient_are_no_evidence():
    """Of ten patients with a hundred images each, chance alone gives V > 0.3 often, and the p-value knows."""
    rng = np.random.default_rng(0)
    patients = pd.Series([f"p{i // 100}" for i in range(1000)])
    false = 0
    for _ in range(200):
        first, second = rng.integers(0, 2, 10).repeat(100), rng.integers(0, 3, 10).repeat(100)
        false += independence_p_value(first, second, patients) < 0.001
    assert false == 0
    alone = pd.Series([""] * 1000)
    assert independence_p_value(first, first, alone) < 1e-100


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("45", "40–59"),
        ("45.0", "40–59"),
        ("058Y", "40–59"),
        ("17", "0–17"),
        ("18", "18–39"),
        ("80", "80+"),
        ("006M", "0–17"),
        ("240M", "18–39"),
        ("", ""),
        ("unknown", ""),
        ("-3", ""),
        ("40-50", ""),
    ],
)
def test_ages_are_read_as_sources_write_them(text, band):
    assert age_band(text) == band


def test_age_and_sex_are_found_by_their_columns_names():
    table = pd.DataFrame({"source": ["a"], "view": ["PA"], "Patient Age": ["61"], "Patient Gender": ["female"]})
    columns = metadata_columns(table)
    assert columns["age"].tolist() == ["60–79"]
    assert columns["sex"].tolist() == ["F"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    rng = np.random.default_rng(1)
    images, rows = noise_set(None, n=300)
    who = rng.integers(0, 1000, 150).repeat(2)
    rows |= {"source": [f"site {w % 3}" for w in who], "view": ["PA" if w % 7 < 3 else "AP" for w in who]}
    rows |= {"age": [str(20 + w % 61) for w in who], "sex": ["M" if w % 11 < 5 else "F" for w in who]}
    return write_set(tmp_path_factory.mktemp("clean"), images, rows)


def audited(folder):
    data = AuditData(main=open_set(folder))
    config = AuditConfig(data=folder)
    return check_associations(data, config)


def test_nothing_is_found_where_nothing_is(clean):
    assert [finding.severity for finding in audited(clean)] == ["info"]


def test_a_class_of_one_source_is_found_and_counted(clean, tmp_path):
    prepared = open_set(clean)
    label = prepared.table["label"]
    folder = write_set(
        tmp_path / "set",
        prepared.packed.images(range(300)),
        {
            "label": label.tolist(),
            "patient_id": prepared.table["patient_id"].tolist(),
            "source": np.where(label == "COVID-19", "cohen", "nih").tolist(),
        },
    )
    found = {finding.check: finding for finding in audited(folder)}["class × source"]
    assert found.severity == "high"
    assert (
        "all 100 images of COVID-19 come from the source cohen, and none of the 200 of the other classes"
        in found.summary
    )
    assert found.numbers["cramers_v"] == pytest.approx(1, abs=0.01)
    assert found.examples[0].images[0] == (str(folder), "0.png")


def test_files_that_are_not_square_in_one_class_are_found(clean, tmp_path):
    prepared = open_set(clean)
    label = prepared.table["label"]
    width = np.where((label == "COVID-19") & (np.arange(300) > 5), 80, 64)
    columns = {
        "label": label.tolist(),
        "patient_id": prepared.table["patient_id"].tolist(),
        "width": width,
        "height": 64,
    }
    folder = write_set(tmp_path / "set", prepared.packed.images(range(300)), columns)
    found = {finding.check: finding for finding in audited(folder)}["class × file shape"]
    assert found.severity == "high"
    assert "98 of the 100 images of COVID-19 are not square, and none of the 200 of the other classes" in found.summary
