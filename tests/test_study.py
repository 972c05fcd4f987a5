"""A study's steps as they run: by a stand-in for the command that writes what a job would, fails, hangs or is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import interruptible

from clipcovid.study import process, run
from clipcovid.study.estimate import Estimates
from clipcovid.study.file import parse_study
from clipcovid.study.outcomes import Outcomes
from clipcovid.study.plan import plan_study
from clipcovid.study.room import ComputePool
from clipcovid.study.run import Runner
from clipcovid.study.study import do_study, print_plan

FAKE = Path(__file__).with_name("fake_clipcovid.py")
STUDY = """
name: trial
run-name: "{step}"
data: {source: table, root: scans.csv, out: data/scans}
external: {other: {source: table, root: others.csv, out: data/others}}
encoders: {small: {model: tiny, pretrained: none}}
methods:
  cnn: {weights: none}
  zeroshot: {encoder: small}
  finetune: {encoder: small}
  probe: {encoder: finetune}
  coop: {encoder: finetune}
audit: false
report: false
"""
CODE = """
import sys
from clipcovid.study import process
from clipcovid.study.estimate import Estimates
from clipcovid.commands import run_command
process.PROGRAM = (sys.executable, sys.argv[1])
Estimates.work = lambda self, step: 1.0
run_command("study", sys.argv[2:])
"""


class World:
    """A folder to do a study in, with orders for its fake steps."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "study.yaml").write_text(STUDY)
        self.order()

    def order(self, **orders):
        (self.folder / "orders.json").write_text(json.dumps(orders))
        (self.folder / "calls.jsonl").write_text("")

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def began(self):
        return [call["step"] for call in self.calls() if call["event"] == "began"]

    def study(self, **changes):
        return parse_study(yaml.load(STUDY, Loader=yaml.BaseLoader) | changes, "trial")

    def outcomes(self):
        return Outcomes.read(self.folder / "outputs" / "trial").steps

    def states(self):
        return {name: outcome.state for name, outcome in self.outcomes().items()}

    def start(self):
        """The study in a process of its own."""
        command = [sys.executable, "-c", CODE, str(FAKE), "study.yaml"]
        return subprocess.Popen(command, cwd=self.folder, preexec_fn=interruptible, text=True, stderr=subprocess.PIPE)

    def wait_for(self, step, event="began"):
        deadline = time.monotonic() + 60
        while not any(call["step"] == step and call["event"] == event for call in self.calls()):
            assert time.monotonic() < deadline, self.calls()
            time.sleep(0.05)
        return next(call for call in self.calls() if call["step"] == step and call["event"] == event)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_ORDERS", str(tmp_path / "orders.json"))
    monkeypatch.setattr(process, "PROGRAM", (sys.executable, str(FAKE)))
    monkeypatch.setattr(run, "POLL_S", 0.02)
    monkeypatch.setattr(Estimates, "work", lambda self, step: 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////no/such/folder/mlflow.db")  # importing MLflow takes seconds
    return World(tmp_path)


def test_every_step_runs_once_and_behind_all_that_it_waits_for(world, capfd):
    study = world.study()
    assert do_study(study)
    steps = {step.name: step for step in plan_study(study)}
    assert set(world.states().values()) == {"done"}
    assert world.states().keys() == steps.keys()
    calls = world.calls()
    assert len(world.began()) == len(steps) == len(set(world.began()))
    ended, began = (
        {tuple(call["words"]): call["time"] for call in calls if call["event"] == event} for event in ("ended", "began")
    )
    for step in steps.values():
        for before in (*step.needs, *step.after):
            assert ended[steps[before].args] < began[step.args], (before, step.name)
    compared = next(call["words"] for call in calls if call["step"] == "compare")
    assert compared[1:6] == [f"outputs/{name}" for name in ("cnn", "zeroshot", "finetune", "probe", "coop")]
    assert {call["study"] for call in calls} == {"trial"}
    said = capfd.readouterr().out
    assert "$ clipcovid cnn --data data/scans" in said
    assert "compare works" in said
    assert json.loads((study.folder / "plan.json").read_text())["steps"][2]["command"][:2] == ["clipcovid", "cnn"]


def test_what_is_done_is_not_started_again_and_what_changed_is(world):
    assert do_study(world.study())
    world.order()
    assert do_study(world.study())
    assert sorted(world.began()) == ["prepare others", "prepare scans"]  # which look for changed files
    world.order()
    (world.folder / "outputs" / "cnn" / "_SUCCESS").unlink()
    assert do_study(world.study())
    assert sorted(world.began()) == ["cnn", "compare", "prepare others", "prepare scans"]
    world.order()
    (world.folder / "data" / "scans" / "manifest.parquet").write_text("prepared anew")
    assert do_study(world.study())
    assert len(world.began()) == len(plan_study(world.study())) - 1  # no run was written anew: the comparison stands


def test_a_dry_run_says_what_is_done_and_what_is_not(world, monkeypatch, capsys):
    for name in ("seconds", "disk"):
        monkeypatch.setattr(Estimates, name, lambda self, step: 61.0)
    assert do_study(world.study())
    changed = yaml.load(STUDY, Loader=yaml.BaseLoader)["methods"] | {"cnn": {"weights": "none", "tta": "true"}}
    capsys.readouterr()
    print_plan(world.study(methods=changed))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    states = {row[0]: row[-1] == "done" for row in rows if row and row[0] in world.outcomes()}
    assert states == {name: name != "cnn" for name in world.outcomes()}
    assert next(row for row in rows if row[:1] == ["all"])[1] == "0:01:01"


def test_a_failed_step_leaves_out_what_needs_it_and_nothing_else(world, capfd):
    world.order(finetune="fail")
    assert not do_study(world.study())
    assert world.states() == {
        **dict.fromkeys(
            ("prepare", "prepare-other", "cnn", "embed-small", "zeroshot-val", "zeroshot", "compare"), "done"
        ),
        "finetune": "failed",
        **dict.fromkeys(("probe", "coop"), "left out"),
    }
    assert world.outcomes()["finetune"].reason == "exit status 2: there is something wrong with it."
    assert world.outcomes()["coop"].reason == "finetune is failed"
    compared = next(call["words"] for call in world.calls() if call["step"] == "compare")
    assert compared[1:4] == ["outputs/cnn", "outputs/zeroshot", "--split"]
    said = capfd.readouterr()
    assert "1 step failed (finetune)" in said.err
    assert "exit status 2: there is something wrong with it" in " ".join(said.out.split())
    world.order()
    assert do_study(world.study())
    assert set(world.began()) == {"prepare scans", "prepare others", "finetune", "probe", "coop", "compare"}


@pytest.mark.parametrize("order", ["", "fail"])
def test_the_report_takes_comparison_and_audit_where_they_are_done(world, order):
    world.order(audit=order, compare=order)
    assert do_study(world.study(audit="", report="")) == (order == "")
    words = next(call["words"] for call in world.calls() if call["step"] == "report")
    runs = [f"outputs/{name}" for name in ("cnn", "zeroshot", "finetune", "probe", "coop")]
    assert words[1 : words.index("--data")] == (runs if order else ["outputs/compare"])
    assert (words[-2:] == ["--audit", "outputs/audit"]) == (order == "")


@pytest.mark.parametrize(
    ("order", "reason"),
    [("kill", "ended by SIGKILL"), ("forget", "it ended well, but outputs/cnn/_SUCCESS is missing")],
)
def test_a_step_that_is_killed_or_leaves_no_result_has_failed(world, order, reason):
    world.order(cnn=order)
    assert not do_study(world.study())
    assert world.outcomes()["cnn"].reason == reason
    assert world.states()["compare"] == "done"


def test_what_is_made_of_other_runs_than_before_does_not_take_their_place(world):
    """A comparison's folder holds one comparison: that of fewer methods is renamed, and one of the same runs is not."""
    world.order(finetune="fail")
    assert not do_study(world.study())
    world.order()
    assert do_study(world.study())
    (former,) = (world.folder / "outputs").glob("compare-*")
    names = [
        json.loads((folder / "config.json").read_text())["identity"] for folder in (former, former.with_name("compare"))
    ]
    assert [sum(word.startswith("outputs/") for word in words) for words in names] == [2, 5]
    (former.with_name("cnn") / "_SUCCESS").unlink()
    assert do_study(world.study())
    assert world.began().count("compare") == 2
    assert [*(world.folder / "outputs").glob("compare-*")] == [former]


def test_external_data_that_can_not_be_prepared_are_left_out_of_the_comparison(world):
    there = world.folder / "data" / "there"
    there.mkdir(parents=True)
    (there / "manifest.parquet").touch()
    external = {"other": {"source": "table", "root": "o.csv", "out": "data/others"}, "there": "data/there"}
    for order, used in (("fail", ["data/there"]), ("", ["data/others", "data/there"])):
        world.order(**{"prepare others": order})
        assert do_study(world.study(external=external)) == (order == "")
        words = next(call["words"] for call in world.calls() if call["step"] == "compare")
        assert words[words.index("--external") + 1 :] == used


def test_where_nothing_is_left_to_compare_the_comparison_is_left_out(world):
    world.order(**{"prepare scans": "fail"})
    assert not do_study(world.study())
    assert world.states()["prepare-other"] == "done"
    assert world.outcomes()["cnn"].reason == "prepare is failed"
    assert world.outcomes()["compare"].reason.startswith("none of cnn, zeroshot, ")


def test_a_study_that_is_killed_takes_its_steps_along_and_goes_on_when_run_again(world):
    world.order(finetune="sleep")
    study = world.start()
    pid = world.wait_for("finetune")["pid"]
    study.kill()
    study.wait()
    world.wait_for("finetune", "SIGTERM" if sys.platform == "linux" else "began")
    assert world.states()["finetune"] == "running"
    done = {call["step"] for call in world.calls() if call["event"] == "ended"}
    assert "cnn" in done
    world.order()
    again = world.start()
    assert again.wait(60) == 0, again.stderr.read()
    assert not {"cnn", "zeroshot"} & set(world.began())
    assert set(world.states().values()) == {"done"}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_step_waits_for_the_process_that_an_earlier_start_left(world, capfd):
    study = world.study()
    log = process.open_log(study.folder / "logs" / "cnn.log")
    (study.folder / "plan.json").write_text("{}")
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], stdout=log)
    log.close()
    assert do_study(study)
    assert "cnn: waits until the process of an earlier start has ended" in capfd.readouterr().out
    assert left.poll() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on_and_steps_end_in_order(world, number, status):
    world.order(cnn="sleep")
    study = world.start()
    world.wait_for("cnn")
    study.send_signal(number)
    assert study.wait(30) == status
    assert world.wait_for("cnn", signal.Signals(number).name)
    assert world.states()["cnn"] == "stopped"
    assert "run the same command again" in study.stderr.read()


def test_two_starts_of_one_study_are_refused(world):
    world.order(cnn="sleep")
    first = world.start()
    world.wait_for("cnn")
    second = world.start()
    assert second.wait(60) == 2
    assert "is being written by process" in second.stderr.read()
    first.terminate()
    first.wait(30)


def test_the_budget_ends_the_methods_but_not_the_comparison(world):
    world.order(cnn="1.5")
    assert do_study(world.study(budget="1s"))
    assert world.states()["cnn"] == world.states()["compare"] == "done"
    assert world.outcomes()["finetune"].reason == "the budget of 1s was spent"
    assert Outcomes.read(world.study().folder).spent_s > 1.5
    world.order()
    assert do_study(world.study(budget="1s"))  # the time of the first start counts
    assert "finetune" not in world.began()


def overlaps(calls):
    """Pairs of steps that ran at the same time."""
    spans = {}
    for call in calls:
        spans.setdefault(call["step"], {})[call["event"]] = call["time"]
    names = sorted(spans)
    return {
        (first, second)
        for first in names
        for second in names
        if first < second
        and spans[first]["began"] < spans[second]["ended"]
        and spans[second]["began"] < spans[first]["ended"]
    }


@pytest.mark.parametrize(("threads", "at_once"), [(None, False), ("1", True)])
def test_trainings_run_one_at_a_time_unless_they_ask_for_less_than_all(world, threads, at_once):
    asked = {"workers": "0"} | ({"threads": threads} if threads else {})
    study = world.study(compute=asked)
    steps = plan_study(study)
    world.order(**{"prepare others": "with cnn"} | ({"cnn": "with finetune"} if at_once else {}))
    estimates = Estimates(steps=steps, out=study.settings.out, cores=2)
    Runner(study, steps, ComputePool(cores=2), estimates).run()
    together = overlaps(world.calls())
    assert (("cnn", "finetune") in together) == at_once
    assert ("cnn", "prepare others") in together  # which does not compute with torch


def test_trainings_that_ask_for_a_gpu_each_get_one_of_their_own(world):
    study = world.study(compute={"workers": "0", "threads": "1", "gpus-per-worker": "1"})
    steps = plan_study(study)
    world.order(cnn="with finetune")
    estimates = Estimates(steps=steps, out=study.settings.out, cores=8)
    Runner(study, steps, ComputePool(cores=8, gpus=("4", "7")), estimates).run()
    assert ("cnn", "finetune") in overlaps(world.calls())
    gpus = {call["step"]: call["gpus"] for call in world.calls()}
    assert {gpus["cnn"], gpus["finetune"]} == {"4", "7"}


def test_on_a_cluster_its_cores_count_and_ray_gives_out_the_gpus(world, monkeypatch):
    monkeypatch.setattr("clipcovid.study.room.find_cluster", lambda address: "head:6379")
    monkeypatch.setattr("clipcovid.study.room.connect", lambda compute: None)
    monkeypatch.setattr("clipcovid.study.room.cluster_nodes", lambda: [(8.0, 2.0), (8.0, 0.0)])
    asked = {"workers": "2", "cpus-per-worker": "3", "gpus-per-worker": "0.5"}
    study = world.study(compute=asked, methods={name: {"command": "cnn"} for name in ("a", "b", "c")})
    room = ComputePool.detect(study.settings.compute)
    assert (room.cores, len(room.gpus)) == (16, 2)
    a, b, c = (step for step in plan_study(study) if step.is_method)
    assert room.acquire(a) == room.acquire(b) == {}  # six cores and a GPU each
    assert room.acquire(c) is None
    room.release(a)
    assert room.acquire(c) == {}
    assert ComputePool.detect(world.study(compute={"workers": "0"}).settings.compute).is_cluster is False


def test_a_sweep_is_followed_by_the_training_of_its_best(world):
    study = world.study(sweeps={"tuned": {"method": "cnn", "trials": "3"}})
    assert do_study(study)
    words = {call["step"]: call["words"] for call in world.calls()}
    assert words["tuned-search"][:2] == ["sweep", "cnn"]
    assert words["tuned"][-7:] == [
        "--optim.lr",
        "0.003",
        "--class-weights",
        "balanced",
        "--optim.lr-scale",
        "a=1",
        "b=2",
    ]
    assert "outputs/tuned" in words["compare"]
    assert "outputs/tuned-search" not in words["compare"]


def test_a_folder_that_no_study_wrote_is_left_alone(world):
    (world.folder / "outputs" / "trial").mkdir(parents=True)
    (world.folder / "outputs" / "trial" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.txt, which was not written by this job"):
        do_study(world.study())


def test_on_a_terminal_one_line_shows_what_runs(world, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    world.order(cnn="0.3")
    assert do_study(world.study())
    said = capsys.readouterr().out
    assert "\r\x1b[K2 of 10 steps · cnn 0:00:00" in said
    assert "cnn works" in said
