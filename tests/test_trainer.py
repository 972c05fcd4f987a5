import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import HERE
from ports import Watch, is_loopback

from clipcovid.config import ClipConfig, ComputeConfig, OptimConfig, UserError, override
from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.data.training_images import TrainingImages, read_training_images
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.identity import digest, run_identity
from clipcovid.io.files import write_json
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.runs import start_run
from clipcovid.training.trainer import check_initial_overlap, train_model, training_manifest
from clipcovid.workflows.train import train

ROOT = Path(__file__).parents[1]
EXACT = OptimConfig(epochs=2, batch_size=32, lr=1e-3, precision="fp32")  # on any machine, where runs are compared


def cnn(phantoms, out, **settings):
    given = {"optim": EXACT, "compute": HERE} | settings
    return CnnConfig(data=phantoms, out=out, weights="none", image_size=32, **given)


def finetune(phantoms, out, **settings):
    given = {
        "clip": ClipConfig(model="tiny", pretrained="none"),
        "optim": EXACT,
        "augment": NO_AUGMENT,
        "compute": HERE,
    }
    return FinetuneConfig(data=phantoms, out=out, captions="dataset", hf=False, **(given | settings))


def quiet(text):
    pass


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """A config that has been trained, and what came of it."""
    config = cnn(phantoms, tmp_path_factory.mktemp("finished"))
    run = start_run(config, method=config.title, identity=run_identity(config, training_manifest(config)))
    (run.folder / "state").mkdir()
    (run.folder / "state" / "mine.txt").write_text("a user's file")
    return config, train_model(config, log=quiet)


def test_a_run_folder_has_all_that_was_promised(finished):
    config, trained = finished
    there = {str(path.relative_to(trained.run.folder)) for path in trained.run.folder.rglob("*") if path.is_file()}
    assert there >= {
        "config.json",
        "metrics.json",
        "history.json",
        "_SUCCESS",
        "checkpoint/model.safetensors",
        "checkpoint/config.json",
        "predictions/val.parquet",
        "predictions/test.parquet",
        "figures/curves.png",
        "figures/test_confusion.png",
    }
    assert [path.name for path in (trained.run.folder / "state").iterdir()] == ["mine.txt"]  # which is not ours
    table, about = read_predictions(trained.run.folder / "predictions" / "test.parquet")
    assert about["method"] == config.title == "cnn-resnet18"
    assert table.filter(like="prob_").sum(axis=1).sub(1).abs().max() < 1e-9
    assert len(json.loads((trained.run.folder / "history.json").read_text())["epochs"]) == 2


def test_a_finished_run_says_so_and_is_not_done_again(finished):
    config, trained = finished
    said = []
    before = (trained.run.folder / "metrics.json").stat().st_mtime_ns
    again = train_model(config, log=said.append)
    assert not again.created
    assert again.scores == trained.scores
    assert "finished already" in said[0]
    assert (trained.run.folder / "metrics.json").stat().st_mtime_ns == before


def test_a_changed_config_under_the_same_name_is_refused(finished):
    config, trained = finished
    changed = override(config, {"name": trained.run.name, "optim.lr": 0.5})
    with pytest.raises(UserError, match=r"holds another run \(optim\.lr differ\): choose another --name"):
        train_model(changed, log=quiet)


def test_the_same_config_gives_the_same_predictions_twice(finished, tmp_path):
    config, trained = finished
    again = train_model(override(config, {"out": tmp_path}), log=quiet)
    tables = [read_predictions(run.folder / "predictions" / "test.parquet")[0] for run in (trained.run, again.run)]
    pd.testing.assert_frame_equal(*tables)
    assert again.run.name == trained.run.name


def test_workers_and_places_are_no_part_of_a_runs_identity_but_seeds_and_folds_are(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr("clipcovid.training.trainer._train", lambda *given, **named: pytest.fail("trained"))

    def name(config):
        with pytest.raises(pytest.fail.Exception):
            train_model(config, log=quiet)
        return max(config.out.iterdir(), key=lambda path: path.stat().st_mtime_ns).name

    plain = name(cnn(phantoms, tmp_path / "a"))
    assert name(cnn(phantoms, tmp_path / "b", compute=ComputeConfig(workers=0, threads=1))) == plain
    assert name(cnn(phantoms, tmp_path / "c", seed=1)) != plain
    assert name(cnn(phantoms, tmp_path / "d", fold="1/3")) != plain


def test_a_tracking_server_that_fails_does_not_hurt_the_training(phantoms, tmp_path, capsys):
    def fail(line):
        raise ConnectionError("gone")

    trained = train_model(cnn(phantoms, tmp_path), on_run=lambda run: fail, log=quiet)
    assert trained.run.is_done
    assert "could not be tracked (ConnectionError: gone)" in capsys.readouterr().out


def test_fine_tuning_shows_what_it_changed(phantoms, tmp_path):
    metrics = train_model(finetune(phantoms, tmp_path), log=quiet).run.metrics()
    assert set(metrics) == {
        f"{split}{variant}" for split in ("val", "test") for variant in ("", "-before", "-frozen-texts")
    }
    before, after = metrics["test-before"]["metrics"], metrics["test"]["metrics"]
    assert before["macro_auroc"] != after["macro_auroc"]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("pretrained", "HF_HUB_OFFLINE is set.*hf download timm/resnet18"),
        ("gone.pt", "no such file"),
        ("text.pt", "is text"),
    ],
)
def test_weights_that_can_not_be_had_are_known_before_anything_starts(phantoms, tmp_path, monkeypatch, weights, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("clipcovid.training.trainer.connect", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("no weights")
    config = dataclasses.replace(cnn(phantoms, tmp_path / "out", name="run"), weights=weights, compute=ComputeConfig())
    with pytest.raises(UserError, match=says):
        train_model(config, log=quiet)
    assert not (tmp_path / "out").exists()  # the corrected command may have the name


def test_a_finished_run_needs_no_weights_that_can_not_be_had(finished, monkeypatch):
    config, trained = finished
    monkeypatch.setattr(CnnConfig, "check_initial_weights", lambda config: pytest.fail("weights were looked for"))
    before = {path: path.stat().st_mtime_ns for path in trained.run.folder.rglob("*")}
    lines = []
    again = train_model(config, log=lines.append)
    assert not again.created
    assert lines == [
        f"{trained.run.folder} is finished already: nothing was left to do. A new run needs another --name or config."
    ]
    assert {path: path.stat().st_mtime_ns for path in trained.run.folder.rglob("*")} == before
    with pytest.raises(pytest.fail.Exception, match="weights were looked for"):
        train_model(override(config, {"seed": 7}), log=quiet)


def test_more_workers_than_there_is_room_for_are_refused_at_once(cluster, phantoms, tmp_path):
    began = time.time()
    with pytest.raises(UserError, match=r"64 workers of .* each do not fit: the cluster has"):
        train_model(
            cnn(
                phantoms,
                tmp_path,
                optim=OptimConfig(batch_size=64),
                compute=ComputeConfig(workers=64),
            )
        )
    assert time.time() - began < 10


def test_a_batch_that_workers_can_not_share_is_refused_before_they_start(cluster, phantoms, tmp_path):
    asked = ComputeConfig(address="local", workers=2, cpus_per_worker=0.5)
    with pytest.raises(UserError, match="31 can't be shared evenly among 2 workers"):
        train_model(cnn(phantoms, tmp_path, optim=OptimConfig(batch_size=31), compute=asked), log=quiet)


class TestOnRay:
    """One start of Ray Train's workers for each test: these are slow."""

    TWO = ComputeConfig(address="local", workers=2, cpus_per_worker=0.5)

    def test_two_workers_train_the_model_of_one_process_and_nobody_else_can_reach_them(
        self, cluster, phantoms, tmp_path, capfd, monkeypatch
    ):
        """Relative paths too mean what they mean here, though Ray Train moves its workers into a folder of its own."""
        encoder = ClipConfig(model="tiny", pretrained="encoder")
        save_clip(tmp_path / "encoder", load_clip(ClipConfig(model="tiny", pretrained="none"), seed=5), hf=False)
        monkeypatch.chdir(tmp_path)
        alone = train_model(finetune(phantoms, Path("alone"), clip=encoder), log=quiet)
        config = finetune(Path(os.path.relpath(phantoms)), Path("two"), clip=encoder, compute=self.TWO)
        with Watch(os.getpid()) as ports:
            both = train(config)
        assert both.run.name == alone.run.name
        for ours, theirs in zip(alone.run.history(), both.run.history(), strict=True):
            for name in ours:
                if name not in ("seconds", "images_per_s"):
                    assert theirs[name] == pytest.approx(ours[name], abs=2e-3), name
        tables = [read_predictions(run.folder / "predictions" / "test.parquet")[0] for run in (alone.run, both.run)]
        difference = (tables[0].filter(like="prob_") - tables[1].filter(like="prob_")).abs().max().max()
        assert difference < 1e-2
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err
        assert "in the object store" not in said.out + said.err
        self.nobody_else_can_reach(ports)

    def nobody_else_can_reach(self, ports):
        """All listens on loopback, and there too nothing is done for a client without the token."""
        assert len(ports.addresses) > 10
        assert [address for address in ports.addresses if not is_loopback(address[0])] == []
        said = [answers for answers in ports.answers.values() if answers]
        assert sum("UNAUTHENTICATED" in answers for answers in said) >= 6  # GCS, raylet, its objects, driver, 2 workers
        assert sum("401" in answers for answers in said) >= 1  # the agent's pages
        done = {answer for answers in said for answer in answers if "is done" in answer or "has" in answer}
        assert {answer for answer in done if not re.search("# HELP|healthz", answer)} == set()  # metrics may be read

    @pytest.mark.faults
    def test_a_users_mistake_in_the_workers_is_one_here(self, cluster, phantoms, tmp_path):
        config = override(
            finetune(phantoms, tmp_path, compute=self.TWO), {"lora.targets": ("nothing",), "method": "lora"}
        )
        with pytest.raises(UserError, match=r"--lora\.targets nothing"):
            train_model(config, log=quiet)


KILLER = """
import os, sys
from pathlib import Path
import clipcovid.training.loop as loop
from clipcovid.distributed import rank
fuse = Path(os.environ["FUSE"])
inner = loop.TrainingLoop.step
def step(self, batch, epoch):
    if epoch == 2 and rank() == int(os.environ["VICTIM"]) and not fuse.exists():
        fuse.write_text("")
        if os.environ["DRIVER"]:
            os.kill(int(os.environ["DRIVER"]), 9)
        os._exit(1)
    return inner(self, batch, epoch)
loop.TrainingLoop.step = step
"""


def job(phantoms, out, workers, *, env=None, through=()):
    """The whole command of a fine-tuning, run to its end; `through`: what Python runs it with."""
    command = [
        *(sys.executable, *through, ROOT / "jobs" / "finetune.py", "--data", phantoms, "--out", out, "--no-hf"),
        *("--clip.model", "tiny", "--clip.pretrained", "none", "--captions", "dataset", "--compute.address", "local"),
        *("--optim.epochs", "4", "--optim.batch-size", "16", "--optim.lr", "1e-3", "--optim.ema", "0.9"),
        *("--compute.workers", str(workers), "--augment.noise", "0", "--optim.precision", "fp32"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, cwd=ROOT)


def outcome(out):
    (folder,) = (path for path in out.iterdir() if path.name.startswith("finetune-"))
    history = json.loads((folder / "history.json").read_text())
    lines = [
        {name: line[name] for name in line if name not in ("seconds", "images_per_s")} for line in history["epochs"]
    ]
    return lines, read_predictions(folder / "predictions" / "test.parquet")[0].filter(like="prob_").to_numpy()


@pytest.fixture(scope="module")
def unbroken(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    done = job(phantoms, out, 2)
    assert done.returncode == 0, done.stderr
    return outcome(out)


@pytest.mark.faults
class TestDeaths:
    def killer(self, folder, **env):
        """An environment in which every process of Python reads `KILLER` when it starts."""
        place = folder / "site"
        place.mkdir()
        (place / "sitecustomize.py").write_text(
            "import sys, importlib.abc, importlib.util\n"
            "class Hook(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name != 'clipcovid.training.trainer': return None\n"
            "        sys.meta_path.remove(self)\n"
            "        spec = importlib.util.find_spec(name)\n"
            "        load = spec.loader.exec_module\n"
            "        def exec_module(module):\n"
            "            load(module)\n"
            "            inner = module._train\n"
            "            def train(*given, **named):\n"
            f"                exec({KILLER!r}, {{}})\n"
            "                return inner(*given, **named)\n"
            "            module._train = train\n"
            "        spec.loader.exec_module = exec_module\n"
            "        return spec\n"
            "sys.meta_path.insert(0, Hook())\n"
        )
        return {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "FUSE": str(folder / "fuse"), "DRIVER": ""} | env

    def same(self, one, other, tolerance):
        for ours, theirs in zip(one[0], other[0], strict=True):
            assert theirs == pytest.approx(ours, abs=tolerance)
        assert abs(one[1] - other[1]).max() <= tolerance

    def test_a_worker_that_dies_mid_epoch_changes_nothing(self, phantoms, tmp_path, unbroken):
        done = job(phantoms, tmp_path / "out", 2, env=self.killer(tmp_path, VICTIM="1"))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "fuse").exists()
        assert "Going on after epoch 2 of 4" in done.stdout + done.stderr
        self.same(unbroken, outcome(tmp_path / "out"), 0)

    def test_a_driver_that_is_killed_goes_on_with_fewer_workers_too(self, phantoms, tmp_path, unbroken):
        out = tmp_path / "out"
        launcher = (
            "import os, runpy, sys; os.environ['DRIVER'] = str(os.getpid()); sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        env = self.killer(tmp_path, VICTIM="0")
        killed = job(phantoms, out, 2, env=env, through=("-c", launcher))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        done = job(phantoms, out, 1)
        assert done.returncode == 0, done.stderr
        assert "Going on after epoch 2 of 4" in done.stdout + done.stderr
        self.same(unbroken, outcome(out), 5e-3)


@pytest.fixture
def set_of():
    """A data set of these images by their pixels: split → names."""

    def make(pack_hash="p", **splits):
        rows = [
            {"image_id": f"{split}-{name}", "split": split, "label": "ab"[number % 2], "sha256": digest(name, 64)}
            for split, names in splits.items()
            for number, name in enumerate(names.split())
        ]
        return Manifest(
            table=normalize_columns(pd.DataFrame(rows)), classes=("a", "b"), dataset="d", info={"pack_hash": pack_hash}
        )

    return make


@pytest.fixture
def encoder(tmp_path, set_of):
    """A run that learned from the images 1 to 4, and was chosen by 5 and 6."""
    learned = set_of(train="1 2 3 4", val="5 6", test="7 8")
    run = tmp_path / "run"
    write_json(run / "config.json", {"identity": {"pack_hash": "p", "split_hash": learned.split_hash}})
    write_json(run / "checkpoint" / "config.json", {"task": "finetune"})
    splits = {split: learned.rows(split) for split in ("train", "val")}
    TrainingImages.from_splits(splits).write(run / "checkpoint")
    return run


def probing(place):
    return ProbeConfig(data=Path("unused"), clip=ClipConfig(pretrained=str(place)))


def test_an_encoder_that_learned_from_test_images_is_refused_whatever_their_size_or_split(encoder, set_of):
    for place in (encoder, encoder / "checkpoint"):
        for pack_hash in ("p", "another size"):
            with pytest.raises(
                UserError, match=r"pixels, 1 of this run's 2 test images and 2 of its 3 validation images"
            ):
                check_initial_overlap(
                    probing(place), set_of(pack_hash, train="7 8 9 10", val="1 2 11", test="6 12"), quiet
                )


def test_an_encoder_may_have_learned_from_the_same_split_or_from_other_images(encoder, set_of):
    said = []
    same = set_of(train="1 2 3 4", val="5 6", test="7 8")
    assert check_initial_overlap(probing(encoder), same, said.append).contains(same.table).sum() == 6
    check_initial_overlap(probing(encoder), set_of(train="21 22", val="23", test="24 25"), said.append)
    repeated = set_of(train="1 2 3 4", val="5 6", test="4 7 8")  # which the run learns from itself
    check_initial_overlap(probing(encoder), repeated, said.append)
    assert said == []
    with pytest.raises(UserError, match=r"All 2 test images .* prepare it so that equal images are in one split"):
        check_initial_overlap(probing("none"), set_of(train="1 2", val="3", test="1 2"), quiet)


def test_an_encoder_of_an_older_version_is_judged_by_its_split(encoder, set_of):
    (encoder / "checkpoint" / "training_images.parquet").unlink()
    said = []
    check_initial_overlap(probing(encoder), set_of(train="1 2 3 4", val="5 6", test="7 8"), said.append)
    check_initial_overlap(probing(encoder), set_of("another size", train="7 8", val="5", test="1 2"), said.append)
    assert ["it learned from this very split" in said[0], "is not known" in said[1], len(said)] == [True, True, 2]
    with pytest.raises(UserError, match=r"keeps no list of the images .* Train it anew on the same split"):
        check_initial_overlap(probing(encoder), set_of(train="7 8", val="5", test="1 2"), quiet)


def test_an_unrelated_config_beside_the_job_is_not_looked_into(set_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = set_of(train="1 2", val="3", test="4 5")
    for text in ('{"identity": {"split_hash": "x", "pack_hash": "p"}}', "no JSON", "[]"):
        (tmp_path / "config.json").write_text(text)
        for config in (CnnConfig(data=Path("d")), CnnConfig(data=Path("d"), weights="none"), probing("openai")):
            assert check_initial_overlap(config, manifest, pytest.fail) is None


def test_a_run_keeps_what_it_and_the_weights_it_began_with_learned_from(finished, phantoms, tmp_path):
    _, trained = finished
    table, own = trained.manifest.table, read_training_images(trained.run.folder)
    assert set(table["split"][own.contains(table)]) == {"train", "val"}
    assert own.contains(table).sum() == (table["split"] != "test").sum()
    elsewhere = pd.DataFrame({"sha256": ["ab" * 32]})
    encoder = tmp_path / "encoder"
    save_clip(encoder, load_clip(ClipConfig(model="tiny", pretrained="none")), hf=False)
    TrainingImages.from_splits({"train": elsewhere}).write(encoder)
    clip, optim = ClipConfig(model="tiny", pretrained=str(encoder)), OptimConfig(epochs=1, lr=0.01)
    probe = ProbeConfig(data=phantoms, out=tmp_path, clip=clip, optim=optim, compute=HERE)
    images = read_training_images(train(probe).run.folder)
    assert images.contains(elsewhere).all()
    assert images.contains(table).sum() == own.contains(table).sum()
