from pathlib import Path

import numpy as np
import pytest
import torch
from parallel import run_ranks
from stubs import (
    CLASSES,
    MACHINE,
    Stub,
    config,
    difference,
    examples,
    on_a_rank,
    state_of,
    stopped_on_a_rank,
    train,
)

from clipcovid.config import ImagesConfig, OptimConfig, UserError
from clipcovid.errors import TrainingStopped
from clipcovid.training.batches import epoch_batches, iter_batches, split_microbatches
from clipcovid.training.checkpoint import TrainingCheckpoint
from clipcovid.training.loop import TrainingLoop, fit, predict
from clipcovid.training.optimizer import ExponentialMovingAverage, build_optimizer, layer_of, set_lr


class Killed(Exception):
    """The process is gone."""


def killed_after(epochs, folder, made, **settings):
    """A training whose driver dies while it reports its `epochs`-th epoch."""
    seen = []

    def report(line):
        seen.append(line)
        if len(seen) == epochs:
            raise Killed

    task = settings.pop("task", None) or Stub(made, CLASSES, ImagesConfig())
    with pytest.raises(Killed):
        fit(
            task,
            task.build(),
            examples(),
            examples(31, seed=1),
            config=made,
            device_context=MACHINE,
            checkpoint=TrainingCheckpoint(Path(folder), {"a": 1}),
            report=report,
            log=lambda text: None,
        )


def deep(made):
    task = Stub(made, CLASSES, ImagesConfig())
    task.deep = True
    return task


def timeless(history):
    return [{name: line[name] for name in line if name not in ("seconds", "images_per_s")} for line in history]


class TestOrder:
    def test_an_epoch_sees_each_image_at_most_once_and_another_order_than_the_next(self):
        batches = [np.concatenate(epoch_batches(50, 12, 0, epoch, 0, 1)) for epoch in (0, 1)]
        assert len(set(batches[0])) == 48
        assert set(batches[0]) != set(batches[1])
        assert batches[0].tolist() != batches[1].tolist()
        assert batches[0].tolist() == np.concatenate(epoch_batches(50, 12, 0, 0, 0, 1)).tolist()

    @pytest.mark.parametrize("world", [2, 3, 4])
    def test_the_batches_are_the_same_for_any_number_of_processes(self, world):
        whole = epoch_batches(50, 12, 7, 3, 0, 1)
        shares = [epoch_batches(50, 12, 7, 3, rank, world) for rank in range(world)]
        for number, batch in enumerate(whole):
            assert sorted(np.concatenate([share[number] for share in shares])) == sorted(batch)
            assert len({len(share[number]) for share in shares}) == 1

    def test_fewer_images_than_a_batch_are_one(self):
        assert [len(batch) for batch in epoch_batches(5, 64, 0, 0, 0, 1)] == [5]
        assert [len(batch) for batch in epoch_batches(5, 64, 0, 0, 1, 2)] == [2]
        with pytest.raises(UserError, match="too few for 8 workers"):
            epoch_batches(5, 64, 0, 0, 0, 8)

    def test_a_stream_gives_what_was_asked_in_order(self):
        some = examples(10)
        takes = [np.array([3, 1]), np.array([9]), np.array([0, 4, 2])]
        assert [batch["row"] for batch in iter_batches(some, takes, torch.device("cpu"))] == [[3, 1], [9], [0, 4, 2]]
        assert list(iter_batches(some, [], torch.device("cpu"))) == []

    def test_parts_are_the_whole_batch(self):
        batch = {"x": torch.arange(7), "row": list(range(7))}
        assert [part["row"] for part in split_microbatches(batch, 3)] == [[0, 1, 2], [3, 4], [5, 6]]
        assert torch.cat([part["x"] for part in split_microbatches(batch, 3)]).equal(batch["x"])
        assert len(split_microbatches(batch, 20)) == 7


class TestResume:
    @pytest.mark.parametrize("epochs", [1, 3])
    def test_a_killed_training_ends_as_an_unbroken_one(self, tmp_path, epochs):
        made = config(ema=0.9, epochs=5, weight_decay=0.1)
        unbroken, progress, _ = train(tmp_path / "a", made, task=deep(made))
        killed_after(epochs, tmp_path / "b", made, task=deep(made))
        said = []
        resumed, other, reports = train(tmp_path / "b", made, task=deep(made), log=said.append)
        assert difference(state_of(unbroken), state_of(resumed)) == 0
        assert timeless(progress.history) == timeless(other.history)
        assert len(reports) == 5 - epochs
        assert said[0] == f"Going on after epoch {epochs} of 5."

    def test_early_stopping_remembers_how_long_nothing_got_better(self, tmp_path):
        made = config(lr=1e-9, epochs=9, patience=4)
        killed_after(3, tmp_path, made)
        _, progress, reports = train(tmp_path, made)
        assert progress.stopped
        assert (progress.epoch, progress.best_epoch, len(reports)) == (5, 1, 2)
        _, again, reports = train(tmp_path, made)
        assert (again.epoch, reports) == (5, [])

    def test_the_optimizers_momentum_is_restored(self, tmp_path):
        made = config()
        killed_after(2, tmp_path, made)
        module = Stub(made, CLASSES, ImagesConfig()).build()
        optimizer = build_optimizer(module, made.optim)
        TrainingCheckpoint(tmp_path, {"a": 1}).restore(module, optimizer, {})
        moments = [state["exp_avg"].abs().sum() for state in optimizer.state.values()]
        assert len(moments) == 2
        assert min(moments) > 0

    def test_the_state_of_another_run_is_refused(self, tmp_path):
        killed_after(1, tmp_path, config())
        with pytest.raises(UserError, match="the state of another run"):
            train(tmp_path, identity={"a": 2})

    def test_a_half_written_state_is_never_seen(self, tmp_path, monkeypatch):
        made = config()
        killed_after(2, tmp_path, made)
        before = (tmp_path / "state.pt").read_bytes()
        save = torch.save

        def torn(content, path):
            save(content, path)
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", torn)
        with pytest.raises(UserError, match="disk full"):
            train(tmp_path, made)
        assert (tmp_path / "state.pt").read_bytes() == before


SETTINGS = [{}, {"ema": 0.9, "class_weights": "balanced", "label_smoothing": 0.1}]


def jobs_of_a_rank(folder, killed):
    """All that the tests below ask of processes: their start takes longer than the work."""
    return {
        "plain": [on_a_rank(folder / f"plain-{number}", settings, False) for number, settings in enumerate(SETTINGS)],
        "deep": on_a_rank(folder / "deep", {}, True)[0],
        "resumed": on_a_rank(killed, {"ema": 0.9}, False)[0],
        "stopped": stopped_on_a_rank(folder / "stopped"),
        "uneven": stopped_on_a_rank(folder / "uneven", batch_size=10),
    }


class TestManyProcesses:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("ranks")
        killed_after(2, folder / "killed", config(ema=0.9))
        return run_ranks(jobs_of_a_rank, 3, folder, folder / "killed")

    @pytest.mark.parametrize("number", range(len(SETTINGS)))
    def test_three_processes_train_the_model_of_one(self, tmp_path, found, number):
        module, progress, _ = train(tmp_path, config(**SETTINGS[number]))
        for rank in range(3):
            state, history, _ = found[rank]["plain"][number]
            assert difference(state, state_of(module)) < 1e-5
            for ours, theirs in zip(timeless(progress.history), timeless(history), strict=True):
                assert theirs == pytest.approx(ours, abs=1e-4)

    def test_what_one_process_began_three_can_finish(self, tmp_path, found):
        unbroken, _, _ = train(tmp_path, config(ema=0.9))
        assert difference(found[0]["resumed"], state_of(unbroken)) < 1e-5

    def test_all_of_them_stop_where_one_meets_nan(self, found):
        said = {rank["stopped"] for rank in found}
        assert len(said) == 1
        assert "image-3" in said.pop()

    def test_dropout_and_batch_norm_train_on_many_too(self, found):
        assert difference(found[0]["deep"], found[2]["deep"]) == 0

    def test_a_batch_that_workers_can_not_share_evenly_is_refused(self, found):
        assert "can't be shared evenly among 3 workers" in found[1]["uneven"]


class TestNotFinite:
    def test_nan_in_the_data_stops_before_the_step_and_names_the_images(self, tmp_path):
        with pytest.raises(TrainingStopped, match=r"The loss is not finite.*image-3\b"):
            train(tmp_path, config(batch_size=4), train_set=examples(bad=3))

    def test_the_weights_are_those_before(self, tmp_path):
        made = config(epochs=1, batch_size=50)
        task = Stub(made, CLASSES, ImagesConfig())
        kept = []
        task.build = lambda: kept.append(Stub.build(task)) or kept[0]
        with pytest.raises(TrainingStopped):
            train(tmp_path, made, task=task, train_set=examples(bad=3))
        assert difference(state_of(kept[0]), state_of(Stub.build(task))) == 0

    def test_no_later_step_changes_the_weights_where_the_answer_comes_late(self):
        made = config(batch_size=10)
        task = Stub(made, CLASSES, ImagesConfig())
        module, train_set = task.build(), examples(bad=3)
        optimizer, average = build_optimizer(module, made.optim), ExponentialMovingAverage(module, 0)
        loop = TrainingLoop(task, module, module, train_set, made, MACHINE, optimizer, average, print)
        good, bad = (np.arange(start, start + 10) for start in (10, 0))
        states = []
        for batch in iter_batches(train_set, [good, bad, good, good], MACHINE.device):
            loop.step(batch, 0)
            loop.check_steps(pending=3)
            states.append(state_of(module))
        assert difference(states[0], state_of(task.build())) > 0
        assert [difference(states[0], state) for state in states[1:]] == [0, 0, 0]
        with pytest.raises(TrainingStopped, match=r"The loss is not finite.*image-3\b"):
            loop.check_steps()

    def test_a_gradient_that_is_not_finite_stops_too(self, tmp_path):
        class Steep(Stub):
            def loss(self, module, batch):
                found = super().loss(module, batch)
                return found | {"loss": found["loss"] + torch.sqrt(module[0].weight.sum() * 0)}

        made = config()
        with pytest.raises(TrainingStopped, match="The gradient is not finite"):
            train(tmp_path, made, task=Steep(made, CLASSES, ImagesConfig()))


def test_accumulation_gives_the_same_weights(tmp_path):
    one, _, _ = train(tmp_path / "a", config(class_weights="balanced"))
    other, _, _ = train(tmp_path / "b", config(class_weights="balanced", accumulate=5))
    assert difference(state_of(one), state_of(other)) < 1e-6


def test_the_same_config_gives_the_same_model_and_another_seed_another(tmp_path):
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = config(seed=seed)
        states.append(state_of(train(tmp_path / name, made, task=deep(made))[0]))
    assert difference(states[0], states[1]) == 0
    assert difference(states[0], states[2]) > 1e-3


def test_the_best_epochs_weights_are_kept(tmp_path):
    class Scripted(Stub):
        def __init__(self, *given):
            super().__init__(*given)
            self.to_come, self.seen = [0.2, 0.9, 0.5, 0.9], []

        def validation_scores(self, examples, outputs):
            return {"macro_f1": self.to_come.pop(0)}

        def predictor(self, module):
            self.seen.append(state_of(module))
            return super().predictor(module)

    task = Scripted(config(), CLASSES, ImagesConfig())
    module, progress, _ = train(tmp_path, task=task)
    assert progress.best_epoch == 2
    assert difference(state_of(module), task.seen[1]) == 0
    assert difference(state_of(module), task.seen[3]) > 0


def test_what_is_validated_is_what_is_kept_with_a_moving_average(tmp_path):
    made = config(ema=0.95, epochs=3)
    task = Stub(made, CLASSES, ImagesConfig())
    module, progress, _ = train(tmp_path, made, task=task)
    val = examples(31, seed=1)
    found = task.validation_scores(val, predict(task.predictor(module), val, MACHINE))
    best = progress.history[progress.best_epoch - 1]
    assert found["loss"] == pytest.approx(best["val/loss"], abs=1e-6)


def test_predicting_loses_no_row():
    val = examples(31, seed=1)
    outputs = predict(lambda batch: batch["x"], val, MACHINE)
    assert np.array_equal(outputs, val.read(np.arange(31))["x"])


def test_it_learns(tmp_path):
    _, progress, _ = train(tmp_path, config(epochs=30))
    assert progress.history[-1]["val/accuracy"] > 0.8
    assert progress.history[-1]["train/loss"] < progress.history[0]["train/loss"]


def test_adopted_weights_go_on_with_settings_of_their_own(tmp_path):
    killed_after(2, tmp_path / "donor", config(weight_decay=0.5))
    states = TrainingCheckpoint(tmp_path / "own", {"another": 1})
    states.fork_from(tmp_path / "donor")
    own = config(weight_decay=0.25, lr=1e-9)
    module = Stub(own, CLASSES, ImagesConfig()).build()
    optimizer = build_optimizer(module, own.optim)
    progress = states.restore(module, optimizer, {})
    assert (progress.epoch, progress.best, progress.history) == (2, None, [])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.25}
    before = state_of(module)
    after, _, reports = train(tmp_path / "own", own, identity={"another": 1})
    assert [line["epoch"] for line in reports] == [3, 4]
    assert difference(before, state_of(after)) < 1e-6
    with pytest.raises(UserError, match="state of another run"):
        TrainingCheckpoint(tmp_path / "own", {"a": 1}).restore(module, optimizer, {})


def test_a_state_of_an_older_version_goes_on(tmp_path):
    killed_after(2, tmp_path, config())
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    content["progress"]["stale"] = 5
    torch.save(content, tmp_path / "state.pt")
    module = Stub(config(), CLASSES, ImagesConfig()).build()
    progress = TrainingCheckpoint(tmp_path, {"a": 1}).restore(module, build_optimizer(module, config().optim), {})
    assert (progress.epoch, progress.epochs_without_improvement) == (2, 2 - progress.best_epoch)


def test_state_keeps_only_what_training_changes(tmp_path):
    made = config()

    class Frozen(Stub):
        def build(self):
            module = super().build()
            module[0].bias.requires_grad_(False)
            return module

    train(tmp_path, made, task=Frozen(made, CLASSES, ImagesConfig()))
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(content["model"]) == {"0.weight"}


class TestOptimizer:
    @pytest.fixture(scope="class")
    @classmethod
    def module(cls):
        import timm

        return timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=3, img_size=32)

    def of_names(self, module, optimizer, key):
        values = {id(weight): group[key] for group in optimizer.param_groups for weight in group["params"]}
        return {name: values[id(weight)] for name, weight in module.named_parameters()}

    def test_vectors_are_not_decayed(self, module):
        decay = self.of_names(module, build_optimizer(module, OptimConfig(weight_decay=0.1)), "weight_decay")
        for name, weight in module.named_parameters():
            assert decay[name] == (0.1 if weight.ndim > 1 else 0), name

    def test_each_layer_learns_slower_than_the_one_above(self, module):
        of = self.of_names(module, build_optimizer(module, OptimConfig(layer_decay=0.5)), "scale")
        assert of["head.weight"] == of["norm.weight"] == 1
        assert [of[f"blocks.{block}.attn.qkv.weight"] for block in range(3)] == [0.125, 0.25, 0.5]
        assert of["patch_embed.proj.weight"] == of["pos_embed"] == of["cls_token"] == 0.0625

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("clip.visual.transformer.resblocks.11.attn.in_proj_weight", 12),
            ("clip.transformer.resblocks.0.ln_1.weight", 1),
            ("clip.token_embedding.weight", 0),
            ("clip.visual.conv1.weight", 0),
            ("clip.visual.proj", None),
            ("clip.logit_scale", None),
            ("body.layer3.0.conv1.weight", 4),
            ("body.conv1.weight", 0),
            ("body.fc.weight", None),
            ("body.stages.2.blocks.1.norm.weight", 3),
        ],
    )
    def test_names_tell_layers(self, name, layer):
        assert layer_of(name) == layer

    def test_rates_by_name(self, module):
        optimizer = build_optimizer(module, OptimConfig(lr_scale=("head=10", "blocks=0.5", "blocks.1=0")))
        set_lr(optimizer, OptimConfig(lr=1.0, warmup=0), 0, 10)
        of = self.of_names(module, optimizer, "lr")
        assert (of["head.weight"], of["norm.weight"]) == (10, 1)
        assert (of["blocks.0.attn.qkv.weight"], of["blocks.1.attn.qkv.weight"]) == (0.5, 0)
        with pytest.raises(UserError, match="no trained parameter is called so"):
            build_optimizer(module, OptimConfig(lr_scale=("nothing=10",)))
        for wrong in ("head", "head=x", "=3", "head=-1"):
            with pytest.raises(UserError, match="NAME=MULTIPLIER"):
                OptimConfig(lr_scale=(wrong,))
        with pytest.raises(UserError, match=r"--optim\.lr-scale: 'head' is mapped twice, to 10\.0 and to 2\.0"):
            OptimConfig(lr_scale=("head=10", "blocks=1", "head=2"))

    def test_the_rate_rises_then_falls_to_nearly_nothing(self, module):
        optimizer = build_optimizer(module, OptimConfig())
        rates = [set_lr(optimizer, OptimConfig(lr=1.0, warmup=0.2), step, 100) for step in range(100)]
        assert rates[0] == 0.05
        assert max(rates) == rates[20] == 1
        assert all(np.diff(rates[:20]) > 0)
        assert all(np.diff(rates[20:]) < 0)
        assert rates[-1] < 0.001

    def test_the_average_lags_behind_and_gives_the_weights_back(self):
        module = torch.nn.Linear(2, 2)
        average = ExponentialMovingAverage(module, 0.5)
        own = state_of(module)
        with torch.no_grad():
            module.weight.add_(1)
        average.update(module, step=1000)
        with average.swapped_in(module):
            assert (module.weight - own["weight"]).mean().item() == pytest.approx(0.5)
        assert (module.weight - own["weight"]).mean().item() == pytest.approx(1)
