import numpy as np
import pytest
from clouds import CLASSES, MACHINE, Cloud, train
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from clipcovid.config import ImagesConfig, OptimConfig, UserError, override
from clipcovid.data.manifest import Manifest
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.task import make_task
from clipcovid.training.loop import predict


@pytest.mark.parametrize(("penalty", "weights"), [(1e-3, "none"), (1.0, "none"), (1e-1, "balanced")])
def test_it_is_scikit_learns_logistic_regression(tmp_path, penalty, weights):
    cloud = Cloud()
    optim = OptimConfig(epochs=400, batch_size=1024, lr=0.05, weight_decay=0, clip_norm=0, keep="last")
    task, module, sets, _ = train(cloud, tmp_path, penalties=(penalty,), class_weights=weights, optim=optim)
    x, y = cloud.part("train")
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(
        C=1 / (len(y) * penalty), max_iter=5000, tol=1e-8, class_weight=None if weights == "none" else "balanced"
    )
    theirs.fit(scaler.transform(x), y)
    expected = theirs.predict_proba(scaler.transform(cloud.part("test")[0]))
    ours = predict(task.predictor(module), sets["test"], MACHINE)
    assert np.abs(ours - expected).mean() < 0.005
    assert (ours.argmax(1) == expected.argmax(1)).mean() > 0.98


def test_the_validation_split_chooses_the_penalty(tmp_path):
    cloud = Cloud(spread=4)
    task, module, sets, chosen = train(cloud, tmp_path, penalties=(1e-5, 0.3, 1e3))
    scores = []
    for number in range(3):
        module.chosen.fill_(number)
        scores.append(
            task.validation_scores(sets["val"], predict(task.predictor(module), sets["val"], MACHINE))["macro_f1"]
        )
    assert chosen["penalty"] == (1e-5, 0.3, 1e3)[max(range(3), key=lambda n: (scores[n], n))]
    assert len(set(scores)) == 3


def test_shots_are_drawn_for_each_class_by_seed_and_draw():
    cloud = Cloud()

    def ids(**settings):
        task = make_task(ProbeConfig(data="unused", **settings), CLASSES, ImagesConfig())
        rows = task.examples("unused", cloud.manifest, "train", cloud, training=True).rows
        assert rows["label"].value_counts().tolist() == [5, 5, 5]
        return set(rows["image_id"])

    one = ids(shots=("5",))
    assert one == ids(shots=("5",))
    assert one != ids(shots=("5",), draw=1)
    assert one != ids(shots=("5",), seed=1)
    with pytest.raises(UserError, match="--shots few must be"):
        ProbeConfig(data="unused", shots=("few",))


def test_a_hidden_layer_learns_what_a_line_can_not(tmp_path):
    cloud = Cloud()
    signs = np.random.default_rng(0).choice([-1, 1], (700, 2))
    cloud.features[:, :2] = signs * 2 + np.random.default_rng(1).normal(size=(700, 2)) * 0.3
    cloud.features[:, 2:-1] = 0
    labels = (signs.prod(axis=1) > 0).astype(int)
    cloud.manifest = Manifest(
        table=cloud.manifest.table.assign(label=[CLASSES[i] for i in labels]), classes=CLASSES, dataset="xor"
    )
    accuracy = {}
    for head in ("linear", "mlp"):
        task, module, sets, _ = train(cloud, tmp_path / head, head=head, hidden=32, penalties=(1e-5,))
        outputs = predict(task.predictor(module), sets["test"], MACHINE)
        accuracy[head] = (outputs.argmax(1) == labels[500:]).mean()
    assert accuracy["linear"] < 0.65 < 0.95 < accuracy["mlp"]


def test_a_saved_probe_predicts_as_it_did(tmp_path):
    task, module, sets, _ = train(Cloud(), tmp_path / "state")
    before = predict(task.predictor(module), sets["test"], MACHINE)
    task.save(module, None, tmp_path / "checkpoint")
    fresh = make_task(override(task.config, {"seed": 5}), CLASSES, ImagesConfig())
    assert np.array_equal(
        before, predict(fresh.predictor(fresh.load(tmp_path / "checkpoint")[0]), sets["test"], MACHINE)
    )
    assert task.config.augment == NO_AUGMENT
