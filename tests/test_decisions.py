"""What probabilities are good for, beside MAPIE, dcurves, scikit-learn and plain loops."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from made_predictions import CLASSES, make
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_curve

from clipcovid.errors import RESEARCH_ONLY, UserError
from clipcovid.evaluate import plots
from clipcovid.evaluate.bootstrap import bootstrap
from clipcovid.evaluate.calibration import calibration_metrics
from clipcovid.evaluate.conformal import conformal_quantile, conformal_sets, prediction_set_limits
from clipcovid.evaluate.decisions import analyze_decisions
from clipcovid.evaluate.load_predictions import load_method_predictions, load_validation
from clipcovid.evaluate.net_benefit import THRESHOLDS, net_benefit, net_benefits
from clipcovid.evaluate.operating_points import choose_threshold, operating_points
from clipcovid.evaluate.predictions import write_predictions
from clipcovid.evaluate.reliability import reliability, reliability_bins
from clipcovid.evaluate.resamples import Resamples
from clipcovid.evaluate.selective import RiskCoverage, selective_prediction
from clipcovid.evaluate.temperature import fit_temperature, scale_probabilities

SAMPLES = 60


def examples(n=90, **options):
    """The true class and probabilities of n images; many probabilities are equal."""
    labels, probabilities = make(n, **options)
    return np.array([CLASSES.index(label) for label in labels]), probabilities


def table_of(n=90, seed=0, name="t", **options):
    labels, probabilities = make(n, seed=seed, **options)
    table = pd.DataFrame({"image_id": [f"{name}{i:03}" for i in range(n)], "label": labels})
    table["patient_id"] = [f"{name}{i // 3}" for i in range(n)]
    table[[f"prob_{name}" for name in CLASSES]] = probabilities
    return table


def patients(n, size=3):
    return [f"p{i // size}" for i in range(n)]


def expect(estimate, metric, n, groups=None):
    """The estimate is `metric` of all rows, and its interval that of the plain bootstrap."""
    plain = bootstrap(lambda rows: {"m": metric(rows)}, groups or patients(n), samples=SAMPLES)["intervals"]
    assert estimate.value == pytest.approx(metric(np.arange(n)))
    assert estimate.bounds == pytest.approx(tuple(plain["m"]))


# Temperature


@pytest.mark.parametrize("classes", [2, 3])
def test_the_temperature_is_that_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, 400)
    features = rng.normal(size=(400, 5)) + 0.7 * np.eye(classes, 5)[truth]
    model = LogisticRegression(C=1e4).fit(features[:40], truth[:40])
    held_out = features[40:200], truth[40:200]
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(*held_out)
    ours = fit_temperature(held_out[1], model.predict_proba(held_out[0]))
    scaled = scale_probabilities(model.predict_proba(features[200:]), ours)
    assert scaled == pytest.approx(theirs.predict_proba(features[200:]), abs=1e-5)


def test_no_other_temperature_has_a_smaller_loss():
    truth, probabilities = examples(signal=0.8)
    best = fit_temperature(truth, probabilities)
    losses = [log_loss(truth, scale_probabilities(probabilities, best * factor)) for factor in (0.98, 1, 1.02)]
    assert losses[1] < min(losses[0], losses[2])


def test_a_planted_temperature_is_found_and_the_order_of_classes_stays():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([1, 1, 1], 20_000)
    truth = (rng.random((20_000, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    sharp = honest**2.5 / (honest**2.5).sum(axis=1, keepdims=True)
    temperature = fit_temperature(truth, sharp)
    assert temperature == pytest.approx(2.5, rel=0.05)
    scaled = scale_probabilities(sharp, temperature)
    assert (scaled.argsort(axis=1) == sharp.argsort(axis=1)).all()
    assert calibration_metrics(truth, scaled)["ece"] < 0.01 < 0.1 < calibration_metrics(truth, sharp)["ece"]


def test_a_class_that_no_validation_image_is_of_changes_no_temperature():
    truth, probabilities = examples(signal=0.8)
    kept = truth != 1
    best = fit_temperature(truth[kept], probabilities[kept])
    losses = [
        log_loss(truth[kept], scale_probabilities(probabilities[kept], best * factor), labels=[0, 1, 2])
        for factor in (0.98, 1, 1.02)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_where_no_temperature_is_best_nothing_is_scaled():
    right = np.eye(3)[[0, 1, 2, 0]] * 0.4 + 0.2
    assert fit_temperature(np.array([0, 1, 2, 0]), right) is None
    assert fit_temperature(np.array([1, 2, 0, 1]), right) is None  # worse than chance: equal probabilities are the best
    assert scale_probabilities(right, None) is right


def test_probabilities_of_0_and_1_and_rounded_ones_are_scaled():
    sure = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0.2, 0.3, 0.4995]])
    temperature = fit_temperature(np.array([0, 1, 2, 1, 2]), sure)
    scaled = scale_probabilities(sure, temperature)
    assert temperature > 1
    assert np.isfinite(scaled).all()
    assert scaled.sum(axis=1) == pytest.approx(1)


# Reliability


def test_bins_are_those_of_scikit_learn():
    truth, probabilities = examples(300)
    for at in range(3):
        bins = np.array(reliability_bins(probabilities[:, at], truth == at))
        shares, means = calibration_curve(truth == at, probabilities[:, at], n_bins=15)
        assert bins[:, :2] == pytest.approx(np.stack([means, shares], axis=1))
        assert bins[:, 2].sum() == 300


def test_calibration_has_the_intervals_of_the_bootstrap():
    truth, probabilities = examples()
    made = reliability(truth, probabilities, CLASSES, Resamples(patients(90), samples=SAMPLES))
    for name in ("brier", "ece", "classwise_ece"):
        expect(
            made.metrics[name], lambda rows, name=name: calibration_metrics(truth[rows], probabilities[rows])[name], 90
        )
    assert {name: estimate.value for name, estimate in made.metrics.items()} == pytest.approx(
        calibration_metrics(truth, probabilities)
    )


# Operating points


@pytest.mark.parametrize("sensitivity", [0.05, 0.5, 0.9, 0.95, 1.0])
def test_thresholds_are_the_first_on_the_roc_curve_that_are_sensitive_enough(sensitivity):
    for seed in range(5):
        truth, probabilities = examples(seed=seed)
        _, true_rate, thresholds = roc_curve(truth == 0, probabilities[:, 0], drop_intermediate=False)
        expected = thresholds[np.argmax(true_rate >= sensitivity - 1e-12)]
        assert choose_threshold(truth == 0, probabilities[:, 0], sensitivity) == expected


def test_rates_at_operating_points_are_those_of_plain_counts_with_intervals_of_the_bootstrap():
    validation, test = examples(60, seed=1), examples(90, seed=2)
    points = operating_points(validation, test, CLASSES, 0.9, Resamples(patients(90), samples=SAMPLES))
    for at, name in enumerate(CLASSES):
        point = points[name]
        called, positive = test[1][:, at] >= point.threshold, test[0] == at
        assert point.counts == {
            "tp": sum(c and p for c, p in zip(called, positive, strict=True)),
            "fp": sum(c and not p for c, p in zip(called, positive, strict=True)),
            "fn": sum(not c and p for c, p in zip(called, positive, strict=True)),
            "tn": sum(not c and not p for c, p in zip(called, positive, strict=True)),
        }
        expect(point.sensitivity, lambda rows, c=called, p=positive: c[rows][p[rows]].mean(), 90)
        expect(point.specificity, lambda rows, c=called, p=positive: 1 - c[rows][~p[rows]].mean(), 90)
        expect(point.ppv, lambda rows, c=called, p=positive: p[rows][c[rows]].mean(), 90)
        expect(point.npv, lambda rows, c=called, p=positive: 1 - p[rows][~c[rows]].mean(), 90)
        assert point.validation_sensitivity >= 0.9
        assert point.validation_positives == (validation[0] == at).sum()


def test_what_is_undefined_at_an_operating_point_is_none():
    truth = np.array([0, 0, 1, 1])
    validation = truth, np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    never = truth, np.tile([0.1, 0.9], (4, 1))
    point = operating_points(validation, never, ("a", "b"), 0.9, Resamples(["", "", "", ""], samples=20))["a"]
    assert (point.ppv.value, point.ppv.bounds, point.sensitivity.value) == (None, None, 0)
    assert operating_points(validation, (truth[:2], never[1][:2]), ("a", "b"), 0.9, Resamples(["", ""])).keys() == {"a"}


# Prediction sets


class Predicted:
    """A fitted classifier, as MAPIE asks, whose inputs are its probabilities."""

    def __init__(self, k):
        self.classes_ = np.arange(k)

    def fit(self, X, y):
        return self

    def predict(self, X):
        return X.argmax(axis=1)

    def predict_proba(self, X):
        return X

    def __sklearn_is_fitted__(self):
        return True


def mapie_sets(validation, probabilities, coverage):
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Model(Predicted, ClassifierMixin, BaseEstimator):
        pass

    made = SplitConformalClassifier(
        estimator=Model(3), confidence_level=coverage, prefit=True, conformity_score="lac"
    ).conformalize(validation[1], validation[0])
    return made.predict_set(probabilities)[1][:, :, 0]


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_lac_sets_are_those_of_mapie(coverage, seed):
    validation, test = examples(150, seed=seed), examples(90, seed=seed + 10)
    inside = 1 - test[1] <= prediction_set_limits(*validation, coverage, by_class=False)
    assert (inside == mapie_sets(validation, test[1], coverage)).all()


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels")
def test_class_conditional_sets_are_those_of_mapie_on_each_class_alone():
    validation, test = examples(150), examples(90, seed=10)
    inside = 1 - test[1] <= prediction_set_limits(*validation, 0.9, by_class=True)
    for at in range(3):
        of_class = validation[0] == at
        alone = mapie_sets((validation[0][of_class], validation[1][of_class]), test[1], 0.9)
        assert (inside[:, at] == alone[:, at]).all()


def test_quantiles_against_counts_by_hand():
    scores = np.arange(1, 10) / 10
    assert conformal_quantile(scores, 0.9) == 0.9  # the 9th of 9
    assert conformal_quantile(scores[:8], 0.9) == math.inf  # the 9th of 8
    assert conformal_quantile(scores, 0.5) == 0.5


def test_coverage_is_what_was_promised_over_many_draws():
    """Between the promise and 1 / (n + 1) above it, for scores without ties (Vovk; Lei et al. 2018)."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        probabilities = rng.dirichlet([1, 1, 1], 80)
        truth = (rng.random((80, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
        limits = prediction_set_limits(truth[:30], probabilities[:30], 0.9, by_class=False)
        covered.append((1 - probabilities[30:][np.arange(50), truth[30:]] <= limits[0]).mean())
    spread = 3 * np.std(covered) / len(covered) ** 0.5
    assert 0.9 - spread < np.mean(covered) < 0.9 + 1 / 31 + spread


def test_sets_are_counted_by_image_and_by_patient():
    validation, test = examples(150), examples(90, seed=10)
    groups = [f"p{min(i, 40)}" for i in range(90)]  # one patient has fifty images
    inside = 1 - test[1] <= prediction_set_limits(*validation, 0.9, by_class=False)
    right = inside[np.arange(90), test[0]]
    resamples = Resamples(groups, samples=SAMPLES)
    made = conformal_sets(validation, test, CLASSES, 0.9, resamples, by_class=False)
    expect(made.coverage, lambda rows: right[rows].mean(), 90, groups)
    expect(made.size, lambda rows: inside[rows].sum(axis=1).mean(), 90, groups)
    expect(made.empty, lambda rows: (inside[rows].sum(axis=1) == 0).mean(), 90, groups)
    each = pd.Series(right.astype(float)).groupby(groups).mean()
    assert made.patient_coverage.value == pytest.approx(each.mean())
    for at, name in enumerate(CLASSES):
        assert made.class_coverage[name].value == pytest.approx(right[test[0] == at].mean())


def test_a_class_of_too_few_validation_images_is_in_every_set():
    truth, probabilities = examples(150)
    few = np.append(np.flatnonzero(truth != 1), np.flatnonzero(truth == 1)[:8])
    made = conformal_sets(
        (truth[few], probabilities[few]), examples(60, seed=3), CLASSES, 0.9, Resamples(patients(60)), by_class=True
    )
    assert made.thresholds["Non-COVID"] == 0
    assert made.empty.value == 0
    assert made.size.value >= 1


# Selective prediction


def naive_area(confidence, wrong):
    """The mean over all orders of images that are as sure as each other."""
    orders = [
        order
        for order in itertools.permutations(range(len(wrong)))
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order))
    ]
    return np.mean([[np.mean([wrong[i] for i in order[:k]]) for k in range(1, len(wrong) + 1)] for order in orders])


@pytest.mark.parametrize("seed", range(6))
def test_the_area_is_the_mean_over_all_orders_of_equals(seed):
    rng = np.random.default_rng(seed)
    confidence, wrong = -np.sort(-rng.choice([0.4, 0.6, 0.9], 6)), rng.integers(0, 2, 6).astype(float)
    curve = RiskCoverage(confidence, wrong > 0)
    assert curve.measure(np.ones(6, int), np.ones(1))[0] == pytest.approx(naive_area(confidence, wrong))
    weights = rng.multinomial(6, np.full(6, 1 / 6))
    rows = np.repeat(np.arange(6), weights)
    area, errors = curve.measure(weights[curve.order], np.array([1.0]))
    assert area == pytest.approx(naive_area(confidence[rows], wrong[rows]))
    assert errors == pytest.approx([wrong[rows].mean()])


def test_abstaining_against_plain_sorting():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], 90)  # no two are as sure as each other
    truth = (rng.random((90, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    right = probabilities.argmax(axis=1) == truth

    def accuracy(rows, share):
        surest = sorted(rows, key=lambda row: -probabilities[row].max())[: math.ceil(share * len(rows) - 1e-9)]
        return np.mean([right[row] for row in surest])

    made = selective_prediction(truth, probabilities, Resamples(patients(90), samples=SAMPLES))
    assert made.accuracy["1.0"].value == pytest.approx(right.mean())
    for share in (0.8, 0.9):
        assert made.accuracy[str(share)].value == pytest.approx(accuracy(range(90), share))
    expect(made.accuracy["1.0"], lambda rows: right[rows].mean(), 90)
    assert made.curve[49] == pytest.approx([0.5, 1 - accuracy(range(90), 0.5)])
    assert made.aurc.value == pytest.approx(np.mean([1 - accuracy(range(90), k / 90) for k in range(1, 91)]))


def test_confidence_that_says_nothing_gains_nothing():
    truth = np.array([0, 1, 2] * 10)
    made = selective_prediction(truth, np.tile([0.5, 0.3, 0.2], (30, 1)), Resamples([""] * 30, samples=SAMPLES))
    assert made.aurc.value == pytest.approx(2 / 3)
    assert [estimate.value for estimate in made.accuracy.values()] == pytest.approx([1 / 3] * 3)


# Decision curves


DCURVES = {  # what dcurves 1.1.7 gives for these 200 images; it wants an older pandas than ours, so it is not installed
    0.01: (0.2677272727, 0.2676767677),
    0.05: (0.2431578947, 0.2368421053),
    0.1: (0.2111111111, 0.1944444444),
    0.2: (0.16, 0.09375),
    0.3: (0.1028571429, -0.0357142857),
    0.5: (0.065, -0.45),
    0.8: (0.0, -2.625),
}


def test_net_benefit_is_that_of_dcurves():
    truth, probabilities = examples(200)
    for column, values in enumerate((probabilities[:, 0], np.ones(200))):
        expected = [pair[column] for pair in DCURVES.values()]
        assert net_benefit(truth == 0, values, np.array(list(DCURVES))) == pytest.approx(expected, abs=1e-9)


def test_net_benefit_is_that_of_plain_counts_with_intervals_of_the_bootstrap():
    truth, probabilities = examples()
    made = net_benefits(truth, probabilities, CLASSES, Resamples(patients(90), samples=SAMPLES))
    for at, name in enumerate(CLASSES):
        for threshold in (0.1, 0.25, 0.5):

            def benefit(rows, at=at, threshold=threshold):
                called = probabilities[rows, at] >= threshold
                true, false = np.sum(called & (truth[rows] == at)), np.sum(called & (truth[rows] != at))
                return (true - false * threshold / (1 - threshold)) / len(rows)

            expect(made[name].at[str(threshold)], benefit, 90)
            assert made[name].curve[round(100 * threshold) - 1] == pytest.approx(benefit(np.arange(90)))


def test_treating_all_and_none_are_the_ends_of_every_curve():
    truth, probabilities = examples()
    everyone = net_benefit(truth == 0, np.ones(90), THRESHOLDS)
    share = (truth == 0).mean()
    assert everyone == pytest.approx(share - (1 - share) * THRESHOLDS / (1 - THRESHOLDS))
    assert net_benefit(truth == 0, np.zeros(90), THRESHOLDS) == pytest.approx(0)
    perfect = net_benefit(truth == 0, (truth == 0).astype(float), THRESHOLDS)
    assert perfect == pytest.approx(share)
    assert (net_benefit(truth == 0, probabilities[:, 0], THRESHOLDS) <= perfect).all()


# All together


def analyzed(methods=None, **options):
    methods = methods or {
        name: (table_of(60, seed, "v", signal=1 + seed), table_of(90, seed + 5, signal=1 + seed))
        for seed, name in enumerate(("cnn", "probe"))
    }
    for _, test in methods.values():
        test["label"] = next(iter(methods.values()))[1]["label"]
    return analyze_decisions(methods, CLASSES, samples=SAMPLES, **options)


def test_decisions_become_json_tables_and_figures(tmp_path):
    decisions = analyzed()
    content = json.loads(json.dumps(decisions.to_json(), allow_nan=False))
    assert content["methods"]["cnn"]["operating_points"]["Normal"]["sensitivity"].keys() == {"value", "low", "high"}
    tables = decisions.tables()
    assert list(tables) == ["calibration", "selective", "operating_points", "prediction_sets", "net_benefit"]
    for table in tables.values():
        assert {len(row) for rows in table.sections for row in rows} == {len(table.headers)}
        assert "95% intervals by patient (30)" in table.caption
        assert "cnn" in "\n".join(table.markdown())
    assert [row[:2] for row in tables["net_benefit"].sections[0][-2:]] == [
        ["treat all", "COVID-19"],
        ["treat none", "COVID-19"],
    ]
    figures = decisions.figures()
    assert set(figures) == {"reliability", "reliability_classes", "risk_coverage", "decision_curves"}
    for figure in figures.values():
        assert any(RESEARCH_ONLY in text.get_text() for text in figure.texts) or figure._supxlabel is not None
    assert len(plots.save_figures(figures, tmp_path)) == 4


def test_nothing_is_chosen_on_the_test():
    first = analyzed()
    flipped = {
        name: (table_of(60, seed, "v", signal=1 + seed), table_of(90, seed + 5, signal=1 + seed).assign(label="Normal"))
        for seed, name in enumerate(("cnn", "probe"))
    }
    second = analyze_decisions(flipped, CLASSES, samples=SAMPLES)
    for name in ("cnn", "probe"):
        one, two = first.methods[name], second.methods[name]
        assert one.temperature == two.temperature
        assert one.operating_points["Normal"].threshold == two.operating_points["Normal"].threshold
        assert {kind: sets.thresholds for kind, sets in one.conformal.items()} == {
            kind: sets.thresholds for kind, sets in two.conformal.items()
        }
    assert "COVID-19" not in second.methods["cnn"].operating_points  # no test image is of it
    assert second.methods["cnn"].conformal["lac"].class_coverage["COVID-19"].value is None
    second.tables()
    second.figures()


def test_what_has_no_validation_is_said_and_left_out():
    test = table_of(90)
    decisions = analyzed({"cnn": (table_of(60, 1, "v"), test), "zeroshot": (None, test.copy())})
    method = decisions.methods["zeroshot"]
    assert (method.validation_n, method.temperature, method.scaled) == (0, None, None)
    assert (method.conformal, method.operating_points) == ({}, {})
    assert method.selective == decisions.methods["cnn"].selective
    assert "for zeroshot: there are no predictions of validation images" in decisions.notes[0]
    assert "zeroshot" not in {row[0] for row in decisions.tables()["operating_points"].sections[0]}
    assert "zeroshot (not scaled)" in {
        text.get_text() for text in decisions.figures()["decision_curves"].legends[0].get_texts()
    }
    none = analyzed({"zeroshot": (None, test)})
    assert list(none.tables()) == ["calibration", "selective", "net_benefit"]
    assert len(none.notes) == 1


def test_unlabelled_and_learned_images_choose_nothing():
    validation = table_of(60, 1, "v")
    rest = validation[20:]
    marked = validation.assign(trained_on=validation.index < 10)
    marked.loc[10:19, "label"] = ""
    test = table_of(90)
    assert analyzed({"m": (marked, test)}) == analyzed({"m": (rest, test)})


def test_too_few_validation_images_and_odd_wishes_are_said():
    validation = table_of(60, 1, "v")
    few = validation.drop(index=np.flatnonzero(validation["label"] == "Normal")[4:])
    notes = " ".join(analyzed({"m": (few, table_of(90))}).notes)
    assert "Fewer than 10 validation images are of Normal (4)" in notes
    right = validation.assign(**{f"prob_{name}": (validation["label"] == name) * 0.4 + 0.2 for name in CLASSES})
    assert "No temperature is the best for m" in " ".join(analyzed({"m": (right, table_of(90))}).notes)
    for wish in ({"sensitivity": 1.5}, {"coverage": 0}):
        with pytest.raises(UserError, match=r"is not between 0 and 1"):
            analyzed(**wish)


@pytest.mark.parametrize("right", [0, 1, 2])
def test_all_right_all_wrong_and_three_images_are_no_failure(right, tmp_path):
    test = table_of(3).assign(label=[CLASSES[0]] * 3)
    test[[f"prob_{name}" for name in CLASSES]] = np.eye(3)[[0 if row < right else 1 for row in range(3)]]
    decisions = analyzed({"m": (table_of(12, 1, "v"), test)})
    method = decisions.methods["m"]
    assert method.selective.accuracy["1.0"].value == pytest.approx(right / 3)
    assert method.selective.aurc.value == pytest.approx(1 - right / 3)  # all are as sure as each other
    assert method.operating_points.keys() == {CLASSES[0]}
    assert method.operating_points[CLASSES[0]].specificity.value is None  # no image is of another class
    json.dumps(decisions.to_json(), allow_nan=False)
    assert len(plots.save_figures(decisions.figures(), tmp_path)) == 4
    assert all(table.markdown() for table in decisions.tables().values())


def test_one_patient_has_numbers_without_intervals():
    test = table_of(30).assign(patient_id="p")
    method = analyzed({"m": (table_of(60, 1, "v"), test)}).methods["m"]
    assert method.selective.aurc.value is not None
    assert method.selective.aurc.bounds is None
    assert method.operating_points["Normal"].sensitivity.bounds is None


# Predictions of validation beside those of the test


def run_folder(tmp_path, **validation):
    about = {"method": "cnn", "task": "classification", "identity": {"seed": 0}, "manifest_hash": "m"}
    about |= {"split_hash": "s", "classes": list(CLASSES)}
    folder = tmp_path / "cnn" / "predictions"
    write_predictions(folder / "test.parquet", table_of(30), **about, split="test")
    learned = table_of(60, 1, "v")
    learned.insert(3, "trained_on", learned.index < 5)
    write_predictions(folder / "val.parquet", learned, **{**about, "split": "val", **validation})
    return tmp_path / "cnn"


def test_validation_predictions_are_found_beside_those_of_the_test(tmp_path):
    run = run_folder(tmp_path)
    (method,) = load_method_predictions([run], "test")
    table = load_validation(method)
    assert table["image_id"].tolist() == [f"v{i:03}" for i in range(5, 60)]
    (validation,) = load_method_predictions([run], "val")
    assert load_validation(validation) is None  # nothing is chosen on what is compared
    (run / "predictions" / "val.parquet").unlink()
    assert load_validation(method) is None


@pytest.mark.parametrize("about", [{"identity": {"seed": 1}}, {"split_hash": "other"}])
def test_validation_predictions_of_another_run_are_refused(tmp_path, about):
    (method,) = load_method_predictions([run_folder(tmp_path, **about)], "test")
    with pytest.raises(UserError, match=f"another {next(iter(about)).replace('_', ' ')}"):
        load_validation(method)
