"""Files that appear whole or not at all, and files of others, which no job deletes or changes."""

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HERE
from rich.console import Console

from clipcovid.cli import from_cli
from clipcovid.commands import command_names, load_command
from clipcovid.commands.search import SearchResult, results_table
from clipcovid.config import OptimConfig, UserError
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.data.masked import ApplyMasksConfig, apply_masks
from clipcovid.evaluate import plots
from clipcovid.io.files import (
    LOCK_FILE,
    atomic_write,
    is_writable,
    read_parquet,
    refuse_overlap,
    remove_job_files,
    unknown_file,
    unlock_folder,
    write_json,
    write_parquet,
)
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.task import save_weights
from clipcovid.runs import read_run_metadata, start_run
from clipcovid.training.checkpoint import TrainingCheckpoint, TrainingProgress, trainable_state
from clipcovid.training.trainer import train_model, training_manifest

ROOT = Path(__file__).parents[1]
JOBS = {name.replace("-", "_") for name in command_names()}
TINY = "--clip.model tiny --clip.pretrained none --compute.workers 0"
RUN = "--out {parent} --name {name}"  # jobs that make a folder in --out
FLAGS = {  # what each job is asked; {folder} is the one with the files of others
    "apply_masks": ["--data {data} --out {folder}", "--data {data} --out {folder} --overwrite"],
    "audit": [f"--data {{data}} {RUN}"],
    "caption": [f"--data {{data}} --captions dataset --weights none --compute.workers 0 {RUN}"],
    "captioner": [f"--data {{data}} --captions dataset {TINY} {RUN}"],
    "cascade": [f"{{image}} --segment {{run}} --classify {{run}} {RUN}"],
    "cnn": [f"--data {{data}} --weights none --compute.workers 0 {RUN}"],
    "compare": [f"{{run}} {RUN}", "{run} --out {folder}"],
    "coop": [f"--data {{data}} {TINY} {RUN}"],
    "crossval": [f"probe --data {{data}} {TINY} {RUN}"],
    "embed": [f"--data {{data}} {TINY} {place}" for place in ("--out {folder}", "--embeddings {folder}")],
    "ensemble": [f"{{run}} {{again}} {RUN}"],
    "evaluate": [f"--predictions {{table}} --ground-truth {{table}} {RUN}"],
    "finetune": [f"--data {{data}} {TINY} {RUN}"],
    "hybrid": [f"--data {{data}} --weights none {TINY} {RUN}"],
    "predict": [f"--run {{run}} --data {{data}} --compute.workers 0 {RUN}"],
    "prepare": [
        f"--out {{folder}} --phantom.images 12 --phantom.size 32 --size 32 --compute.workers 0{more}"
        for more in ("", " --overwrite")
    ],
    "probe": [
        f"--data {{data}} --optim.epochs 1 {TINY} {more}" for more in (RUN, "--out {folder}", f"--shots 1 2 {RUN}")
    ],
    "report": [f"{{run}} {RUN}"],
    "search": [f"--data {{data}} --text lungs {TINY} {more}" for more in (RUN, "--out {folder}")],
    "segment": [f"--data {{data}} --weights none --compute.workers 0 {RUN}"],
    "tip_adapter": [f"--data {{data}} {TINY} {RUN}"],
    "zeroshot": [f"--data {{data}} {TINY} {RUN}"],
    "sweep": [f"probe --data {{data}} {TINY} {RUN}"],
    "tune_prompts": [f"--data {{data}} {TINY} {RUN}"],
}
WITHOUT_OUT = {"classify", "demo", "generate_captions", "register", "study"}
NAMES = (  # of files of others: any, and some that are called as ours are
    *(
        "a.txt",
        "sub/folder/b.csv",
        "config.json",
        "metrics.json",
        "manifest.parquet",
        "quarantine.parquet",
        "found.csv",
    ),
    *("images/notes.txt", "images/00000.arrow", "images/00000.png", "phantom/images/00000.png", "00-images.png"),
    *("000-scan.png", "state/mine.txt", "state/state.pt", "state/00000.parquet", "checkpoint/model.safetensors"),
    *("embeddings/0123456789ab/00000.parquet", "predictions/test.parquet", "figures/curves.png", "trials/x/state/a.pt"),
)


def fill(folder):
    """Write the files of others into a folder, and a link to a folder of theirs."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "00000.arrow").write_text("theirs")
    (folder / "linked").symlink_to(elsewhere)


def contents(folder):
    """Path → bytes of every file below a folder, and of what its links lead to."""
    files = [path for path in [*folder.rglob("*"), *(folder / "linked").rglob("*")] if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def inputs(phantoms, tmp_path_factory):
    """What jobs read: a finished run, an image, and a table of labels and predictions."""
    folder = tmp_path_factory.mktemp("inputs")
    optim = OptimConfig(epochs=1, batch_size=12)
    config = CnnConfig(data=phantoms, weights="none", image_size=32, out=folder, optim=optim, compute=HERE, name="run")
    run = train_model(config, log=lambda text: None).run.folder
    table = pd.DataFrame({"image_id": ["x", "y"], "label": ["a", "b"], "prob_a": [0.9, 0.2], "prob_b": [0.1, 0.8]})
    table.to_csv(folder / "table.csv", index=False)
    image = read_manifest(phantoms).table["path"][0]
    again = shutil.copytree(run, folder / "again")
    return {"data": phantoms, "run": run, "again": again, "image": image, "table": folder / "table.csv"}


def config_type(job):
    command = load_command(job.replace("_", "-"))
    return command, command.config


def test_every_job_that_has_an_out_is_tried():
    assert FLAGS.keys() | WITHOUT_OUT == JOBS
    for job in WITHOUT_OUT - {"register"}:  # whose --out says where the MLflow store is
        assert "out" not in {field.name for field in dataclasses.fields(config_type(job)[1])}


@pytest.mark.parametrize(("job", "flags"), [(job, flags) for job in FLAGS for flags in FLAGS[job]])
def test_no_job_touches_files_of_others(job, flags, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:nowhere")  # which MLflow refuses at once: a warning
    folder = tmp_path / "folder"
    fill(folder)
    before = contents(folder)
    module, kind = config_type(job)
    flags = flags.format(**inputs, folder=folder, parent=tmp_path, name="folder")
    beside = (
        re.search(f"--(out|embeddings) {folder}", flags)
        and "--name" not in flags
        and job not in ("prepare", "apply_masks")
    )
    refused = pytest.raises(
        UserError, match=r"holds \S+, which was not written by this job: choose another --(out|name)"
    )
    with contextlib.nullcontext() if beside else refused:  # a run has a folder of its own beside them
        module.main(from_cli(kind, "", flags.split()))
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before


def test_masked_images_do_not_replace_the_folder_of_all_runs(phantoms, tmp_path):
    """Not the working directory either, nor what holds the data, nor a folder in it."""
    data = shutil.copytree(phantoms, tmp_path / "data" / "phantom")
    (tmp_path / "outputs" / "cnn").mkdir(parents=True)
    (tmp_path / "outputs" / "cnn" / "config.json").write_text("{}")
    before = contents(tmp_path)
    module, kind = config_type("apply_masks")
    for out, said in (
        ("outputs", r"holds cnn/config\.json, which was not written"),
        ("", "holds --data"),
        ("data", "holds --data"),
        ("data/phantom", "is --data"),
        ("data/phantom/lungs", "is inside of --data"),
    ):
        for more in ([], ["--overwrite"]):
            with pytest.raises(UserError, match=said):
                module.main(from_cli(kind, "", ["--data", str(data), "--out", str(tmp_path / out), *more]))
    assert contents(tmp_path) == before


def test_a_set_that_is_made_anew_keeps_the_files_that_were_put_beside_it(phantoms, tmp_path):
    module, kind = config_type("apply_masks")
    flags = ["--data", str(phantoms), "--out", str(tmp_path / "out")]
    module.main(from_cli(kind, "", flags))
    (tmp_path / "out" / "images" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds images/notes\.txt"):
        module.main(from_cli(kind, "", [*flags, "--keep", "crop", "--overwrite"]))
    assert (tmp_path / "out" / "manifest.parquet").exists()
    (tmp_path / "out" / "images" / "notes.txt").unlink()
    (tmp_path / "out" / ".gitkeep").touch()
    module.main(from_cli(kind, "", [*flags, "--keep", "crop", "--overwrite"]))
    assert read_manifest(tmp_path / "out").info["masked"]["keep"] == "crop"
    assert (tmp_path / "out" / ".gitkeep").exists()


def test_what_is_removed_is_what_matches_and_what_was_left_unfinished(tmp_path):
    for name in ("images/00000.arrow", "images/.00001.arrow.4711", "images/deep/00000.arrow", "00000.arrow", "a/b/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "a")
    remove_job_files(tmp_path, r"images/\d{5}\.arrow|a/b/.*")
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["00000.arrow", "images", "images/deep", "images/deep/00000.arrow", "images/link"]


def test_links_are_foreign_and_hidden_files_are_not(tmp_path):
    (tmp_path / "own.txt").touch()
    (tmp_path / ".DS_Store").touch()
    assert unknown_file(tmp_path, r"own\.txt") is None
    assert unknown_file(tmp_path / "nowhere") is None
    (tmp_path / "linked").symlink_to(tmp_path)
    assert unknown_file(tmp_path, r"own\.txt|linked") == tmp_path / "linked"


def test_folders_that_are_read_may_not_be_written_through_a_link_either(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="is --data"):
        refuse_overlap(tmp_path / "link", "--data", tmp_path / "data")
    refuse_overlap(tmp_path / "data-2", "--data", tmp_path / "data")


def test_a_run_does_not_begin_where_another_program_keeps_its_config(tmp_path):
    config = CnnConfig(data=Path("data"), out=tmp_path, name="bert")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"holds config\.json, .*choose another --name"):
        start_run(config, method="cnn", identity={"a": 1})
    for name in ("..", "a/b", str(tmp_path)):
        with pytest.raises(UserError, match="must be a plain name"):
            start_run(dataclasses.replace(config, name=name), method="cnn", identity={"a": 1})
    for name in ("mlartifacts", "MLartifacts", "mlflow.db", "mlflow.db-wal"):
        with pytest.raises(UserError, match=f"--name {name} is the name of what the MLflow store keeps in --out"):
            start_run(dataclasses.replace(config, name=name), method="cnn", identity={"a": 1})
        assert not (tmp_path / name).exists()
    named = start_run(dataclasses.replace(config, name=""), method="caption-hf-hub:org/name", identity={"a": 1})
    assert named.folder.parent == tmp_path
    assert named.name.startswith("caption-hf-hub-org-name-")


def test_numbers_of_numpy_stay_numbers_in_json(tmp_path):
    given = {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "a": np.arange(2), "p": Path("x/y")}
    same = {"f": 0.5, "i": 3, "b": True, "a": [0, 1], "p": "x/y"}
    write_json(tmp_path / "a.json", given)
    assert json.loads((tmp_path / "a.json").read_text()) == same
    write_parquet(tmp_path / "a.parquet", pd.DataFrame({"x": [1]}), given)
    assert read_parquet(tmp_path / "a.parquet")[1] == same


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 1), {1, 2}, object()])
def test_what_json_has_no_form_for_is_refused_and_leaves_no_file(tmp_path, value):
    with pytest.raises(TypeError, match="has no form in JSON"):
        write_json(tmp_path / "a.json", {"a": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": np.float32("nan")})
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def held_elsewhere(folder):
    """A process that holds a folder; given, to be ended."""
    code = (
        "import sys, pathlib, clipcovid.io.files as files; files.lock_folder(pathlib.Path(sys.argv[1])); "
        "print('ok', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "ok\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_another_process_writes_is_refused_until_it_ends_however_it_does(phantoms, tmp_path):
    config = CnnConfig(data=Path("data"), out=tmp_path, name="run")
    start_run(config, method="cnn", identity={"a": 1})
    unlock_folder(tmp_path / "run")
    masked = dataclasses.replace(ApplyMasksConfig(data=phantoms, out=tmp_path / "masked"), keep="crop")
    for folder, write in (
        (tmp_path / "run", lambda: start_run(config, method="cnn", identity={"a": 1})),
        (tmp_path / "masked", lambda: apply_masks(masked, log=lambda text: None)),
    ):
        with held_elsewhere(folder) as process:
            with pytest.raises(
                UserError, match=rf"is being written by process {process.pid} on \S+ since \d{{4}}-.*: wait"
            ):
                write()
            process.kill()  # without any chance to let go
            process.wait()
            write()
            write()  # what this process holds, or has finished, is no hindrance to it
        unlock_folder(folder)
        assert not (folder / LOCK_FILE).exists()


def test_a_run_that_ended_before_it_did_anything_gives_up_its_name(tmp_path):
    config = CnnConfig(data=Path("data"), out=tmp_path, name="mine")
    folder = start_run(config, method="cnn", identity={"weights": "resnet1"}).folder
    (folder / "state").mkdir()
    (folder / "state" / "failed.txt").write_text("There are no such weights.")
    start_run(config, method="cnn", identity={"weights": "resnet18"})
    assert read_run_metadata(folder)["identity"] == {"weights": "resnet18"}
    (folder / "state" / "state.pt").touch()
    with pytest.raises(UserError, match=r"holds another run \(weights differ\): choose another --name"):
        start_run(config, method="cnn", identity={"weights": "resnet34"})
    unlock_folder(folder)


@contextlib.contextmanager
def full_disk():
    """Within it no file of this process can be longer than 10,000 bytes: pytest's own output neither, so not a fixture."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_a_sentence_whoever_writes(tmp_path):
    module = torch.nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(module.parameters())
    states = TrainingCheckpoint(tmp_path / "state", {"a": 1})
    for write, name in (
        (lambda: states.save(module, optimizer, {}, TrainingProgress()), r"state\.pt"),
        (lambda: states.save_best(trainable_state(module)), r"best\.pt"),
        (lambda: save_weights(module, tmp_path), r"model\.safetensors"),
        (
            lambda: plots.save_figures(
                {"big": plots.contact_sheet_figure(np.zeros((9, 64, 64), np.uint8), ["x"] * 9, title="")}, tmp_path
            ),
            "big",
        ),
        (lambda: write_parquet(tmp_path / "a.parquet", pd.DataFrame({"x": np.arange(1e5)}), {}), r"a\.parquet"),
    ):
        with pytest.raises(UserError, match=rf"{name}.* can't be written .*make room"), full_disk():
            write()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_can_be_written_is_known_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("")
    assert is_writable(tmp_path / "new" / "deeper")
    assert not is_writable(tmp_path / "file")
    assert not is_writable(tmp_path / "file" / "deeper")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_could_not_be_written_gives_its_room_back_while_it_is_open(tmp_path):
    with contextlib.suppress(UserError), atomic_write(tmp_path / "a") as partial:
        file = partial.open("wb")
        file.write(bytes(10_000))
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.fstat(file.fileno()).st_blocks == 0
    file.close()


def test_runs_are_named_after_their_job(tmp_path):
    config = CnnConfig(data=Path("data"), out=tmp_path)
    run = start_run(config, method="cnn-resnet18", identity={"a": 1}, stem="crossval-cnn-resnet18", job="crossval")
    assert run.name.startswith("crossval-cnn-resnet18-")
    assert (run.method, run.job) == ("cnn-resnet18", "crossval")
    assert start_run(config, method="compare", identity={"a": 1}).job == "compare"


def test_masks_that_were_moved_are_known_before_a_training(phantoms, tmp_path):
    manifest = read_manifest(phantoms)
    row = manifest.rows("test").iloc[0]
    table = manifest.table.replace({row["lung_mask"]: str(tmp_path / "gone.png")})
    (tmp_path / "images").symlink_to(phantoms / "images")
    write_manifest(tmp_path, dataclasses.replace(manifest, table=table))
    config = SegmentConfig(data=tmp_path, out=tmp_path / "runs", target="lung", weights="none", compute=HERE)
    with pytest.raises(UserError, match=r"1 masks are not where they were .*gone\.png first.* Put them back"):
        train_model(config, log=lambda text: None)
    assert not (tmp_path / "runs").exists()
    training_manifest(dataclasses.replace(config, data=phantoms))


def test_texts_to_choose_among_may_hold_commas():
    from clipcovid.commands.classify import ClassifyConfig

    assert ClassifyConfig(images=("x",), classes='a dog, "a cat, asleep" , 5" of rain').texts == [
        "a dog",
        "a cat, asleep",
        '5" of rain',
    ]
    with pytest.raises(UserError, match="quotes stand around a text"):
        ClassifyConfig(images=("x",), classes='a dog, "a cat, asleep')


def test_a_search_keeps_the_one_before_it_and_shows_how_names_end(phantoms, tmp_path, capsys):
    module, kind = config_type("search")
    flags = f"--data {phantoms} {TINY} --out {tmp_path}".split()
    for text in ("lungs", "heart"):
        module.main(from_cli(kind, "", [*flags, "--text", text]))
    assert len({path.parent for path in tmp_path.glob("search-*/found.csv")}) == 2
    table = pd.DataFrame(
        [{"rank": 1, "score": 1.0, "image_id": "site/" * 20 + "p1/view1.png", "label": "a", "caption": ""}]
    )
    Console(width=80).print(results_table(SearchResult(query="q", table=table)))
    assert "p1/view1.png" in capsys.readouterr().out
