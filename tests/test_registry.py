"""A run's model in MLflow's registry, and what it answers to image files."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import HERE
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.data.masked import ApplyMasksConfig, apply_masks
from clipcovid.inference.export_model import export_model
from clipcovid.inference.image_models import ImageSegmenter, load_model
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.hybrid.config import HybridConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.tip_adapter.config import TipAdapterConfig
from clipcovid.tracking import registry
from clipcovid.tracking.datasets import describe_data
from clipcovid.tracking.registry import pinned_requirements, register_run
from clipcovid.tracking.runs import NOTE_TAG, track
from clipcovid.tracking.store import tracking_uri
from clipcovid.training.trainer import train_model
from clipcovid.workflows.train import embeddings_for

ROOT = Path(__file__).parents[1]
CLIP = ClipConfig(model="tiny", pretrained="none", precision="fp32")
OPTIM = OptimConfig(epochs=2, batch_size=16, lr=1e-3, precision="fp32")
CURL = next(line for line in (ROOT / "docs/how-to/mlflow.md").read_text().splitlines() if line.startswith("printf"))


GUARD = """
import sys
sys.modules["ray"] = None
def watch(event, args):
    if event == "open" and str(args[0]).startswith({folders!r}):
        raise SystemExit(f"{{args[0]}} was opened")
sys.addaudithook(watch)
"""  # a process in which Ray can't be imported, and nothing of the run or the data can be opened


def quiet(text):
    pass


def encode(data):
    return base64.b64encode(data).decode()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def trained(config):
    return train_model(config, embeddings=embeddings_for(config), log=quiet).run


@pytest.fixture(scope="module")
def cnn(phantoms, tmp_path_factory):
    """A small CNN's run, shown in MLflow, and its config."""
    out = tmp_path_factory.mktemp("outputs")
    config = CnnConfig(data=phantoms, weights="none", image_size=32, out=out, name="cnn", optim=OPTIM, compute=HERE)
    run = trained(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert track(run, config, tags={}, data=describe_data(read_manifest(phantoms), phantoms, ["train", "test"]))
        yield run, config


@pytest.fixture(scope="module")
def registered(cnn):
    """The CNN's version, and a client of its store; the trial in a process of its own had neither Ray nor the files."""
    run, config = cnn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            registry, "CHECK_SCRIPT", GUARD.format(folders=(str(config.data), str(run.folder))) + registry.CHECK_SCRIPT
        )
        version = register_run(run.folder, "covid", alias="champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri(config.out))
        mlflow.set_tracking_uri(None)
        yield version, MlflowClient(tracking_uri(config.out))
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def model(registered):
    return mlflow.pyfunc.load_model("models:/covid@champion")


@pytest.fixture(scope="module")
def scans(phantoms):
    """The test split's rows, and their files as the model takes them."""
    rows = read_manifest(phantoms).rows("test")
    return rows, pd.DataFrame({"image": [encode(Path(path).read_bytes()) for path in rows["path"]]})


def predictions(run):
    table = pd.read_parquet(run.folder / "predictions" / "test.parquet").set_index("image_id")
    return table.filter(like="prob_")


def test_a_registered_model_predicts_files_as_its_run_did(cnn, model, scans):
    rows, table = scans
    answer, expected = model.predict(table), predictions(cnn[0]).loc[rows["image_id"]]
    np.testing.assert_allclose(answer[expected.columns], expected, atol=1e-5)
    likeliest = expected.columns[expected.to_numpy().argmax(axis=1)].str.removeprefix("prob_")
    assert answer["predicted"].tolist() == list(likeliest)


def test_the_documented_request_is_answered(model, scans, tmp_path):
    """What curl would send goes to the server's own reader of requests."""
    from mlflow.pyfunc.scoring_server import invocations

    rows, table = scans
    shutil.copy(rows["path"][0], tmp_path / "scan.png")
    body = subprocess.check_output(["bash", "-c", CURL.partition(" | curl")[0]], cwd=tmp_path, text=True)
    answer = invocations(body, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    assert json.loads(answer.response)["predictions"] == model.predict(table[:1]).to_dict("records")


def test_a_model_has_weights_signature_example_code_and_pins(registered, model, tmp_path):
    version, _ = registered
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path)))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"artifacts/model/model.safetensors", "code/clipcovid/__init__.py", "served_model.py"} <= names
    assert not {name for name in names if name.endswith((".pt", ".pkl", ".parquet")) or "clipcovid/__pycache__" in name}
    assert model.metadata.get_input_schema().input_names() == ["image"]
    assert model.metadata.get_output_schema().input_names() == ["predicted", *[f"prob_{c}" for c in CLASSES]]
    example = model.input_example
    assert Image.open(io.BytesIO(base64.b64decode(example["image"][0]))).size == (128, 128)
    assert np.isclose(model.predict(example).filter(like="prob_").sum(axis=1), 1).all()
    pins = (folder / "requirements.txt").read_text().split()
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    assert {"mlflow", "torch", "timm", "numpy", "pillow"} <= installed
    assert not installed & {"ray", "clipcovid", "segmentation-models-pytorch", "faiss-cpu"}
    assert all("==" in line and "+" not in line for line in pins)


CLASSES = ("COVID-19", "Non-COVID", "Normal")


def test_a_model_has_its_runs_scores_on_their_data(cnn, registered, phantoms):
    version, client = registered
    found = client.get_model_version("covid", version.version)
    run = client.get_run(found.run_id)
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert found.source == logged.artifact_location
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "covid", "version": version.version}]
    scores = {metric.key: metric for metric in logged.metrics}
    accuracy, data = cnn[0].metrics()["test"]["metrics"]["accuracy"], read_manifest(phantoms)
    assert scores["test/accuracy"].value == pytest.approx(accuracy)
    assert (scores["test/accuracy"].dataset_name, scores["test/accuracy"].dataset_digest) == (
        f"{data.dataset} test",
        data.content_hash,
    )
    assert "epoch/loss/val" in scores
    assert "not for diagnosis" in found.description
    assert "macro F1" in found.description
    assert run.info.status == "FINISHED"


def test_registering_again_finds_the_version_and_moves_the_alias(cnn, registered, monkeypatch):
    version, client = registered
    again = register_run(cnn[0].folder, "covid", alias="challenger")
    assert (again.version, again.created) == (version.version, False)
    assert len(client.search_model_versions("name = 'covid'")) == 1
    assert set(client.get_registered_model("covid").aliases) == {"champion", "challenger"}
    monkeypatch.setattr(registry, "_try_model", lambda path: ["torch"])  # it was tried before
    other = register_run(cnn[0].folder, "other")
    assert (other.version, other.created) == ("1", True)


NOISE = png(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8))
HEADER = b"IHDR" + struct.pack(">II", 65536, 65536) + NOISE[24:29]
BOMB = NOISE[:12] + HEADER + struct.pack(">I", zlib.crc32(HEADER)) + NOISE[33:]
LONG_METHODS = ("finetune", "hybrid", "probe", "tip_adapter")
HOSTILE = {
    "not base64": ("ümläut & spaces!", "is not base64"),
    "nothing": ("", "empty file"),
    "text": (encode(b"hello, I am no image" * 9), "is a text file, not an image"),
    "a page": (encode(b"<html><script>alert(1)</script></html>"), "HTML page"),
    "a pickle": (encode(b"\x80\x04\x95cos\nsystem\n."), "unknown format"),
    "half a file": (encode(NOISE[: len(NOISE) // 2]), "truncated PNG"),
    "a bomb": (encode(BOMB), "65536x65536"),
    "one colour": (encode(png(np.zeros((50, 50), np.uint8))), "constant"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_image_is_refused_with_its_number(model, scans, kind):
    text, reason = HOSTILE[kind]
    with pytest.raises(MlflowException, match=rf"Image 2 of 2: .*({reason})") as refused:
        model.predict(pd.DataFrame({"image": [scans[1]["image"][0], text]}))
    assert refused.value.get_http_status_code() == 400


def test_a_file_that_is_too_large_is_refused_before_it_is_decoded(model, scans, monkeypatch):
    served = sys.modules[type(model.unwrap_python_model()).__module__]
    monkeypatch.setattr(served, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(served, "decode_base64", None)
    with pytest.raises(MlflowException, match="Image 1 of 1: larger than 1 MiB"):
        model.predict(pd.DataFrame({"image": ["A" * (2 << 20)]}))


def test_many_images_are_one_request_and_wrapped_base64_is_read(model, scans):
    text = scans[1]["image"][0]
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    answer = model.predict(pd.DataFrame({"image": [wrapped, *[text] * 40]}))
    assert len(answer) == 41
    assert (
        np.ptp(answer.select_dtypes("number").to_numpy(), axis=0).max() < 1e-5
    )  # batches of other sizes round otherwise


def test_a_request_without_images_is_answered_with_none(model):
    answer = model.predict(pd.DataFrame({"image": pd.Series([], dtype=object)}))
    assert len(answer) == 0


def test_a_model_that_reads_the_run_is_not_registered(cnn, registered, monkeypatch):
    """The guard under which the other was tried does see what is opened."""
    run, config = cnn
    looks = f"\nopen({str(run.folder / 'config.json')!r})"
    monkeypatch.setattr(registry, "CHECK_SCRIPT", GUARD.format(folders=(str(config.data), str(run.folder))) + looks)
    with pytest.raises(RuntimeError, match=r"the packaged model does not answer: .*config.json was opened"):
        registry._try_model(run.folder)


@pytest.mark.parametrize(
    "method",
    ["raw probe", "zeroshot", *(pytest.param(name, marks=pytest.mark.faults) for name in LONG_METHODS)],
)
def test_an_exported_classifier_predicts_files_as_its_run_did(phantoms, scans, tmp_path, method):
    common = {"data": phantoms, "out": tmp_path, "compute": HERE, "clip": CLIP}
    tmp_embeddings = {"embeddings": tmp_path / "embeddings"}
    if method == "zeroshot":
        run = zeroshot(ZeroshotConfig(**common, **tmp_embeddings), quiet).run
    else:
        configs = {
            "finetune": lambda: FinetuneConfig(**common, optim=OPTIM),
            "hybrid": lambda: HybridConfig(**common, weights="none", arch="resnet18", optim=OPTIM),
            "probe": lambda: ProbeConfig(**common, **tmp_embeddings),
            "raw probe": lambda: ProbeConfig(**common, **tmp_embeddings, input="raw"),
            "tip_adapter": lambda: TipAdapterConfig(**common, **tmp_embeddings),
        }
        run = trained(configs[method]())
    export_model(run.folder, tmp_path / "model")
    assert list(registry._output_columns(run.folder)) == ["predicted", *[f"prob_{name}" for name in CLASSES]]
    shutil.rmtree(run.folder / "checkpoint", ignore_errors=True)
    rows, _ = scans
    pixels = [np.asarray(Image.open(path)) for path in rows["path"]]
    expected = predictions(run).loc[rows["image_id"]]
    np.testing.assert_allclose(load_model(tmp_path / "model").probabilities(pixels), expected, atol=2e-3)
    assert not list((tmp_path / "model").rglob("*.parquet"))


@pytest.mark.faults
def test_an_exported_segmenter_finds_what_its_run_found(phantoms, scans, tmp_path):
    config = SegmentConfig(
        data=phantoms, target="both", weights="none", image_size=64, out=tmp_path, optim=OPTIM, compute=HERE
    )
    run = trained(config)
    export_model(run.folder, tmp_path / "model")
    rows, _ = scans
    pixels = [np.asarray(Image.open(path)) for path in rows["path"]]
    table = pd.read_parquet(run.folder / "predictions" / "test.parquet").set_index(["image_id", "region"])
    for image_id, masks in zip(rows["image_id"], load_model(tmp_path / "model").masks(pixels), strict=True):
        for region, mask in masks.items():
            assert mask.shape == (96, 96)
            assert mask.sum() == table.loc[(image_id, region), ["tp", "fp"]].sum()


def test_a_segmenter_answers_with_masks_and_shares(model):
    """In the order of the images, whatever their sizes."""
    images = [np.zeros(size, np.uint8) for size in ((30, 40), (20, 10))]
    table = sys.modules[type(model.unwrap_python_model()).__module__].predict_table(Halves(), images)
    assert list(table) == ["lung_mask", "lung_share", "infection_mask", "infection_share"]
    assert table["lung_share"].tolist() == [0.5, 0.5]
    for image, text in zip(images, table["infection_mask"], strict=True):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        assert mask.shape == image.shape
        assert not mask.any()


class Halves(ImageSegmenter):
    """Says that the lungs are the upper half, and healthy."""

    def __init__(self):
        super().__init__(regions=("lung", "infection"), task=None, module=None)

    def masks(self, images):
        rows = [np.arange(len(image))[:, None] + 0 * image for image in images]
        return [{"lung": row < len(row) / 2, "infection": row < 0} for row in rows]


def test_what_can_not_be_served_is_refused_with_the_way_out(phantoms, cnn, tmp_path):
    run, _ = cnn
    unfinished = shutil.copytree(run.folder, tmp_path / "unfinished")
    (unfinished / "_SUCCESS").unlink()
    apply_masks(ApplyMasksConfig(data=phantoms, out=tmp_path / "lungs"), quiet)
    masked = trained(
        CnnConfig(
            data=tmp_path / "lungs", weights="none", image_size=32, out=tmp_path, name="m", optim=OPTIM, compute=HERE
        )
    )
    captions = shutil.copytree(run.folder, tmp_path / "captions")
    stored = json.loads((captions / "checkpoint/config.json").read_text()) | {"task": "captioner", "config": {}}
    (captions / "checkpoint/config.json").write_text(json.dumps(stored | {"config": {"data": "x"}}))
    for folder, reason in {
        tmp_path / "nothing": "is no finished run",
        unfinished: "is no finished run",
        masked.folder: "use clipcovid cascade",
        captions: "clipcovid search",
    }.items():
        with pytest.raises(UserError, match=reason):
            register_run(folder, "covid")


@pytest.mark.parametrize(("name", "alias"), [("", ""), ("a/b", ""), ("a", "latest"), ("a", "v2"), ("a", "b c")])
def test_names_that_the_registry_would_refuse_are_known_first(cnn, name, alias):
    with pytest.raises(UserError, match=r"registered as|--alias"):
        register_run(cnn[0].folder, name, alias=alias)


def test_a_store_that_takes_no_model_is_one_sentence(cnn, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"did not take .* as covid .*run clipcovid register again") as refused:
        register_run(cnn[0].folder, "covid")
    assert "secret" not in str(refused.value)


def test_a_run_that_no_store_has_seen_needs_one_or_is_shown_first(cnn, tmp_path, monkeypatch):
    run = shutil.copytree(cnn[0].folder, tmp_path / "runs" / "cnn")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="give --out"):
        register_run(run, "covid")
    monkeypatch.setattr(registry, "_create_version", lambda client, name, folder, tracked: tracked.info.run_id)
    version = register_run(run, "covid", out=tmp_path)
    found = MlflowClient(tracking_uri(tmp_path)).get_run(version.version)
    assert (found.info.run_name, found.info.status) == ("cnn", "FINISHED")
    assert NOTE_TAG in found.data.tags


def test_a_zero_shot_run_that_no_store_has_seen_is_shown_too(phantoms, tmp_path, monkeypatch):
    config = ZeroshotConfig(data=phantoms, out=tmp_path, compute=HERE, clip=CLIP, embeddings=tmp_path / "embeddings")
    run = zeroshot(config, quiet).run
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(registry, "_create_version", lambda client, name, folder, tracked: tracked.info.run_id)
    version = register_run(run.folder, "covid", out=tmp_path)
    found = MlflowClient(tracking_uri(tmp_path)).get_run(version.version)
    assert (found.data.params["clip.model"], found.data.tags["clipcovid.job"]) == ("tiny", "zeroshot")
    stored = json.loads((run.folder / "config.json").read_text())
    stored["identity"]["clip.weights"] = "others"
    (run.folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="made with other weights"):
        export_model(run.folder, tmp_path / "model")


def test_requirements_are_those_of_ours_that_are_imported():
    pins = pinned_requirements(["torch", "PIL", "json", "sqlalchemy", "no_such_module"])
    assert [line.partition("==")[0].lower() for line in pins] == ["pillow", "torch"]
    assert pinned_requirements([]) == []


@pytest.mark.faults
def test_mlflow_serves_the_model_and_the_documented_line_is_answered(cnn, scans, tmp_path):
    """The commands as the documentation has them, on a port that is free."""
    run, _ = cnn
    page = (ROOT / "docs/how-to/mlflow.md").read_text()
    (serve,) = re.findall(r"^mlflow models serve .*$", page, re.MULTILINE)
    version = register_run(run.folder, "covid-cnn", alias="champion")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shutil.copy(scans[0]["path"][0], tmp_path / "scan.png")
    serve, curl = (line.replace("5001", str(port)) for line in (serve, CURL))
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": version.store,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    server = subprocess.Popen(shlex.split(serve), cwd=tmp_path, env=environment, start_new_session=True)
    try:
        for _ in range(120):
            time.sleep(1)
            assert server.poll() is None, "the server ended"
            done = subprocess.run(["bash", "-c", curl], cwd=tmp_path, capture_output=True, text=True)
            if done.returncode == 0:
                break
        (answer,) = json.loads(done.stdout)["predictions"]
        expected = predictions(run).loc[scans[0]["image_id"][0]]
        assert {name: answer[name] for name in expected.index} == pytest.approx(expected.to_dict(), abs=1e-5)
        refused = curl.replace("$(base64 < scan.png | tr -d '\\n')", "no image").replace(
            "curl -s", "curl -s -w %{http_code}"
        )
        told = subprocess.run(["bash", "-c", refused], capture_output=True, text=True).stdout
        assert told.endswith("400")
        assert "Image 1 of 1: is not base64" in told
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
