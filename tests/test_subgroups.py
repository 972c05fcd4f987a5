"""Groups of images by a column of the manifest: which they are, their scores, and the gaps between them."""

import numpy as np
import pandas as pd
import pytest
from made_predictions import CLASSES

from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.errors import UserError
from clipcovid.evaluate import metrics, subgroups
from clipcovid.evaluate.kinds.classification import KIND

N = 240


def manifest(**columns):
    labels = [CLASSES[i % 3] for i in range(N)]
    table = pd.DataFrame({"image_id": [f"{i:03}.png" for i in range(N)], "label": labels, **columns})
    table["patient_id"] = [f"p{i // 2}" for i in range(N)]
    return Manifest(table=normalize_columns(table).assign(split="test"), classes=CLASSES, dataset="cxr")


def images(made):
    return made.table[["image_id", "label", "patient_id"]]


def table(made, wrong, seed=0):
    """Predictions that are wrong for the rows of `wrong`, a share each."""
    rng = np.random.default_rng(seed)
    truth = made.table["label"].map(CLASSES.index).to_numpy()
    said = np.where(rng.random(N) < wrong, (truth + 1) % 3, truth)
    rows = images(made).copy()
    rows[[f"prob_{name}" for name in CLASSES]] = 0.1 + 0.7 * np.eye(3)[said]
    return rows


def scored(made, columns, tables, least=10, metrics=("accuracy", "macro_f1")):
    groups = subgroups.find_groups(made, columns, images(made))
    draws = KIND.draws(list(tables.values()), CLASSES, subsets=[group.rows for group in groups], samples=300)[1:]
    rows = {name: at for at, name in enumerate(tables)}
    return subgroups.score_groups(groups, draws, rows, metrics, images(made), least)


SEX = ["F" if i // 2 % 5 > 1 else "M" for i in range(N)]


def test_a_group_s_scores_are_those_of_its_images_alone():
    made = manifest(sex=SEX)
    rows = table(made, 0.3)
    found, _ = scored(made, ["sex"], {"cnn": rows}, metrics=("accuracy", "macro_f1", "macro_auroc"))
    assert [(group.column, group.name) for group in found] == [("sex", "F"), ("sex", "M")]
    for group in found:
        own = rows[np.array(SEX) == group.name]
        probabilities = own[[f"prob_{name}" for name in CLASSES]].to_numpy()
        expected = metrics.classification_metrics(own["label"].tolist(), probabilities, CLASSES)
        for metric, score in group.scores["cnn"].items():
            assert score["value"] == pytest.approx(expected[metric])
            assert score["low"] <= score["value"] <= score["high"]
        assert (group.images, group.units) == (len(own), own["patient_id"].nunique())


def test_a_planted_gap_is_found_with_its_interval_by_patient():
    made = manifest(sex=SEX)
    wrong = np.where(np.array(SEX) == "M", 0.5, 0.05)
    tables = {"unfair": table(made, wrong)} | {f"fair {seed}": table(made, 0.2, seed) for seed in range(10)}
    _, gaps = scored(made, ["sex"], tables)
    unfair = next(gap for gap in gaps if (gap.method, gap.metric) == ("unfair", "accuracy"))
    assert (unfair.best, unfair.worst) == ("F", "M")
    assert 0.2 < unfair.low < unfair.value < unfair.high < 0.7
    fair = [gap.low > 0 for gap in gaps if gap.method.startswith("fair") and gap.metric == "accuracy"]
    assert len(fair) == 10
    assert sum(fair) <= 2  # one in twenty, by chance
    right = {sex: [] for sex in "FM"}
    patients = np.array(made.table["patient_id"])
    hit = tables["unfair"][[f"prob_{c}" for c in CLASSES]].to_numpy().argmax(1) == made.table["label"].map(
        CLASSES.index
    )
    sums = pd.DataFrame({"hit": hit, "one": 1.0, "sex": SEX, "patient": patients}).groupby(["sex", "patient"]).sum()
    rng = np.random.default_rng(1)
    for sex, of_sex in sums.groupby("sex"):
        draws = rng.integers(0, len(of_sex), (2000, len(of_sex)))
        right[sex] = of_sex["hit"].to_numpy()[draws].sum(1) / of_sex["one"].to_numpy()[draws].sum(1)
    naive = np.percentile(right["F"] - right["M"], [2.5, 97.5])  # patients of one sex each: the groups are independent
    assert (unfair.low, unfair.high) == pytest.approx(naive, abs=0.03)


def test_small_groups_are_not_scored_and_count_in_no_gap():
    few = [*["rare"] * 10, *["A"] * 120, *["B"] * (N - 130)]
    made = manifest(source=few)
    found, gaps = scored(made, ["source"], {"cnn": table(made, 0.3)}, least=20)
    rare = next(group for group in found if group.name == "rare")
    assert (rare.images, rare.units, rare.left_out, rare.scores) == (10, 5, "too few (below 20)", {})
    assert {gap.best for gap in gaps} | {gap.worst for gap in gaps} <= {"A", "B"}


def test_a_group_that_lacks_a_class_is_scored_but_compared_with_none():
    source = ["healthy" if i % 3 == 2 and i % 2 else "mixed" if i % 4 else "other" for i in range(N)]
    made = manifest(source=source)
    found, gaps = scored(made, ["source"], {"cnn": table(made, 0.3)})
    healthy = next(group for group in found if group.name == "healthy")
    assert healthy.absent == ["COVID-19", "Non-COVID"]
    assert healthy.left_out == "lacks COVID-19, Non-COVID"
    assert healthy.scores["cnn"]["accuracy"]
    assert "healthy" not in {name for gap in gaps for name in (gap.best, gap.worst)}


def test_unknown_values_are_a_group_that_counts_in_no_gap():
    made = manifest(sex=["" if i < 80 else SEX[i] for i in range(N)])
    found, gaps = scored(made, ["sex"], {"cnn": table(made, 0.3)})
    assert [group.name for group in found] == ["F", "M", "unknown"]
    assert found[-1].left_out
    assert found[-1].scores
    assert sum(group.images for group in found) == N
    assert "unknown" not in {name for gap in gaps for name in (gap.best, gap.worst)}


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("", "unknown"),
        ("0", "0–19"),
        ("19.9", "0–19"),
        ("20", "20–39"),
        ("063Y", "60–79"),
        ("63 years", "60–79"),
        ("79", "60–79"),
        ("80", "80 and over"),
        ("006M", "0–19"),
        ("030D", "0–19"),
        ("411", "unreadable"),
        ("old", "unreadable"),
        ("-3", "unreadable"),
    ],
)
def test_ages_are_put_together(text, group):
    assert subgroups.age_group(text) == group


def test_ages_are_those_of_a_column_with_the_word_and_stand_in_order():
    ages = [str(5 + i % 90) for i in range(N)]
    made = manifest(age=ages, stage=[str(i % 3) for i in range(N)], **{"Patient Age": ages})

    def names(column):
        return [group.name for group in subgroups.find_groups(made, [column], images(made))]

    assert names("age") == names("Patient Age") == ["0–19", "20–39", "40–59", "60–79", "80 and over"]
    assert names("stage") == ["0", "1", "2"]


def test_what_cannot_be_grouped_is_refused_with_the_way_out():
    made = manifest(sex=SEX, date=[str(i) for i in range(N)])
    with pytest.raises(UserError, match=r"--by ward: cxr has no such column; it has .*sex"):
        subgroups.find_groups(made, ["ward"], images(made))
    with pytest.raises(UserError, match=r"--by date: the compared images have 240 values of it.*at most 20"):
        subgroups.find_groups(made, ["date"], images(made))
    foreign = images(made).assign(image_id=[f"x{i}" for i in range(N)])
    with pytest.raises(UserError, match=r"lacks 240 of the 240 compared images, the first is 'x0': name the prepared"):
        subgroups.find_groups(made, ["sex"], foreign)
    relabelled = images(made).assign(label="Normal")
    with pytest.raises(UserError, match=r"labels 160 of the compared images otherwise, the first is '000\.png'"):
        subgroups.find_groups(made, ["sex"], relabelled)


def test_every_image_is_in_one_group_of_each_column():
    made = manifest(sex=SEX, view=["PA" if i % 5 else "" for i in range(N)])
    groups = subgroups.find_groups(made, ["sex", "view"], images(made)[::-1])
    for column in ("sex", "view"):
        total = np.sum([group.rows for group in groups if group.column == column], axis=0)
        assert (total == 1).all()
    female = next(group for group in groups if group.name == "F")
    assert (female.rows == (np.array(SEX[::-1]) == "F")).all()
