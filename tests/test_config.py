import dataclasses
import errno
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import tyro

from clipcovid.cli import from_cli, run_job
from clipcovid.config import (
    ClipConfig,
    ComputeConfig,
    ImagesConfig,
    OptimConfig,
    UserError,
    flatten_resolved,
    override,
    resolve_defaults,
    resolve_schedule,
)
from clipcovid.identity import config_identity
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.segment.config import SegmentConfig

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.py"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An example."""

    data: str = "there"
    out: str = "outputs"
    name: str = ""
    images: tyro.conf.OmitArgPrefixes[ImagesConfig] = ImagesConfig()
    clip: ClipConfig = ClipConfig()
    compute: ComputeConfig = ComputeConfig()
    words: tuple[str, ...] = ()
    seed: int = 0


def test_flatten_names_every_field_by_its_dotted_path():
    flat = flatten_resolved(Example(words=("a", "b")))
    assert flat["clip.model"] == "ViT-B-32"
    assert flat["words"] == "a,b"
    assert {"images.size", "compute.workers", "seed", "data"} <= set(flat)
    assert not any(isinstance(value, (dict, tuple)) for value in flat.values())


def test_override_reaches_into_sections_and_leaves_the_original_alone():
    config = Example()
    changed = override(config, {"clip.model": "tiny", "clip.pretrained": "none", "seed": 3})
    assert (changed.clip.model, changed.clip.pretrained, changed.seed) == ("tiny", "none", 3)
    assert config == Example()


@pytest.mark.parametrize("key", ["optim.lr", "clip.modl", "seed.deeper", "", "clip.model.more"])
def test_override_refuses_an_unknown_key_and_names_the_known_ones(key):
    with pytest.raises(UserError, match=r"clip\.model"):
        override(Example(), {key: 1})


def test_override_runs_the_checks_again():
    with pytest.raises(UserError, match="--size"):
        override(Example(), {"images.size": 3})


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().seed = 1


def test_identity_ignores_where_and_with_what_a_run_happens_and_nothing_else():
    same = override(Example(), {"data": "x", "out": "y", "name": "z", "compute.workers": 7})
    assert config_identity(same) == config_identity(Example())
    for change in ({"seed": 1}, {"clip.precision": "fp32"}, {"images.fit": "pad"}, {"words": ("a",)}):
        assert config_identity(override(Example(), change)) != config_identity(Example())


def test_the_command_line_gives_the_same_object():
    parsed = from_cli(
        Example, "", args=["--clip.model", "tiny", "--size", "64", "--words", "a", "b", "--compute.workers", "2"]
    )
    expected = {"clip.model": "tiny", "images.size": 64, "words": ("a", "b"), "compute.workers": 2}
    assert parsed == override(Example(), expected)


@pytest.mark.parametrize("args", [["--nonsense", "1"], ["--seed", "x"], ["--size", "3"], ["--images.size", "64"]])
def test_a_bad_flag_ends_with_status_2(args):
    with pytest.raises(SystemExit) as end:
        from_cli(Example, "", args=args)
    assert end.value.code == 2


def test_a_users_mistake_is_one_sentence_and_status_2(monkeypatch, capsys):
    def main(config):
        raise UserError("That is wrong: do this.")

    monkeypatch.setattr(sys, "argv", ["job"])
    with pytest.raises(SystemExit) as end:
        run_job(Example, main, "A job.")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: That is wrong: do this.\n"


def test_a_programmers_mistake_keeps_its_traceback(monkeypatch):
    def main(config):
        raise KeyError("oops")

    monkeypatch.setattr(sys, "argv", ["job"])
    with pytest.raises(KeyError):
        run_job(Example, main, "A job.")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_help_of_every_job_explains_every_flag(job, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(job), "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert not ended.value.code
    text = capsys.readouterr().out
    assert f"clipcovid {job.stem.replace('_', '-')} " in text
    lines = [line for line in text.splitlines() if not re.fullmatch(r"[+|]?-{9,}[+|]?", line.strip())]  # of ASCII boxes
    bare = "\n".join(line.strip("|│ ╰╯─╭╮") for line in lines)
    flags = re.split(r"^(?=--)", bare.split("options", 1)[1], flags=re.MULTILINE)[1:]
    assert flags
    for flag in flags:
        explained = re.split(r"\s{2,}|\n", flag, maxsplit=1)[1]
        assert re.match(r"\w[^(]{4,}", explained), f"{job.name} does not explain {flag}"


@pytest.mark.parametrize(
    ("job", "words", "lr"),
    [
        (CnnConfig, [], 1e-4),
        (CnnConfig, ["--weights", "none"], 1e-3),
        (CnnConfig, ["--weights", "none", "--optim.lr", "0.3"], 0.3),
        (DualEncoderConfig, ["--weights", "none"], 1e-3),
        (DualEncoderConfig, ["--towers", "clip", "--clip.pretrained", "none"], 1e-3),
        (FinetuneConfig, [], 1e-5),
        (FinetuneConfig, ["--clip.pretrained", "none"], 2e-4),
        (ProbeConfig, [], 0.01),
    ],
)
def test_the_learning_rate_follows_from_the_weights(job, words, lr):
    config = from_cli(job, "", ["--data", "d", *words])
    assert resolve_defaults(config).optim.lr == lr
    assert flatten_resolved(config)["optim.lr"] == lr  # what MLflow and the run's identity have
    assert resolve_defaults(resolve_defaults(config)) == resolve_defaults(config)


def test_a_learning_rate_that_follows_from_the_weights_follows_a_change_of_them():
    config = CnnConfig(data=Path("d"))
    assert resolve_defaults(override(config, {"weights": "none"})).optim.lr == 1e-3
    assert (
        resolve_defaults(override(override(config, {"seed": 1, "weights": "none"}), {"weights": "pretrained"})).optim.lr
        == 1e-4
    )
    given = override(config, {"optim.lr": 1e-4})
    assert resolve_defaults(override(given, {"weights": "none"})).optim.lr == 1e-4
    finetune = override(FinetuneConfig(data=Path("d")), {"clip.pretrained": "none"})
    assert resolve_defaults(finetune).optim.lr == 2e-4


@pytest.fixture
def job(monkeypatch):
    """Runs the main of a job that would write to its --out; the exit status, or None where it was run."""
    ran = []

    def run(kind, *flags):
        monkeypatch.setattr(sys, "argv", ["job", *map(str, flags)])
        ran.clear()
        try:
            run_job(kind, ran.append, "")
        except SystemExit as ended:
            assert not ran
            return ended.code
        return None

    return run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "s3://bucket/quex"], "--data s3://bucket/quex is a URI"),
        (["--data", "d", "--out", "gs://bucket/outputs"], "--out gs://bucket/outputs is a URI"),
        (["--data", "d", "--out", "{file}"], "file is a file; give another --out"),
        (["--data", "d", "--out", "{file}/runs/a"], "file is a file; give another --out"),
        (["--data", "d", "--out", "/proc/outputs"], "--out /proc/outputs can't be written (/proc: "),
    ],
)
def test_places_that_can_not_be_written_are_refused_before_any_work(job, tmp_path, capsys, flags, said):
    (tmp_path / "file").touch()
    assert job(CnnConfig, *(flag.format(file=tmp_path / "file") for flag in flags)) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_can_be_made_is_taken_and_not_made_yet(job, tmp_path):
    assert job(CnnConfig, "--data", tmp_path / "data", "--out", tmp_path / "runs" / "a") is None
    assert not list(tmp_path.iterdir())


def test_a_submitted_job_asks_for_absolute_paths(job, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0a1b"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert job(CnnConfig, "--data", tmp_path) == 2  # --out is relative by default
    assert "--out outputs would be in Ray's copy" in (told := capsys.readouterr().err)
    assert "give an absolute path" in told
    assert job(CnnConfig, "--data", "data", "--out", tmp_path) == 2
    assert job(CnnConfig, "--data", tmp_path, "--out", tmp_path) is None
    assert not list(copy.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_wherever_it_is_met(monkeypatch, capsys, tmp_path, number):
    monkeypatch.setattr(sys, "argv", ["job", "--data", str(tmp_path), "--out", str(tmp_path)])

    def main(config):
        raise OSError(number, os.strerror(number), "weights.bin")

    with pytest.raises(SystemExit) as ended:
        run_job(CnnConfig, main, "")
    assert ended.value.code == 2
    assert "weights.bin can't be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [(1, 8, 50), (124, 8, 34), (421, 16, 20), (1000, 32, 17), (5_000, 64, 10), (21_000, 64, 10)],
)
def test_a_training_s_length_follows_from_the_number_of_images(images, batch_size, epochs):
    config = resolve_schedule(CnnConfig(data=Path("d")), images)
    assert (config.optim.batch_size, config.optim.epochs) == (batch_size, epochs)
    assert epochs * (images // batch_size) >= 500 or epochs == 50


def test_what_is_given_stays_and_contrastive_batches_are_not_small():
    given = CnnConfig(data=Path("d"), optim=OptimConfig(epochs=3, batch_size=5))
    assert resolve_schedule(given, 124) == given
    assert resolve_schedule(FinetuneConfig(data=Path("d")), 124).optim.batch_size == 32
    assert resolve_schedule(SegmentConfig(data=Path("d")), 10**5).optim.epochs == SegmentConfig.optim.epochs


def test_sizing_leaves_what_follows_from_other_settings_open():
    config = override(resolve_schedule(CnnConfig(data=Path("d")), 124), {"weights": "none"})
    assert resolve_defaults(config).optim.lr == 1e-3
