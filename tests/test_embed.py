import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import HERE, LOCAL

from clipcovid.config import ClipConfig, ComputeConfig, ImagesConfig, UserError, override
from clipcovid.data.images import decode_pixels, fit_image
from clipcovid.data.manifest import Manifest, read_manifest, write_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.inference import embed as module
from clipcovid.inference.embed import SUCCESS_MARKER, EmbedConfig, embed
from clipcovid.inference.search import text_embeddings
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.models.clip import load_clip

JOBS = Path(__file__).parents[1] / "jobs"
TINY = ClipConfig(model="tiny", pretrained="none", precision="fp32")  # on any machine, where values are compared


def quiet(text):
    pass


@pytest.fixture
def data(phantoms, tmp_path) -> Path:
    """Prepared phantoms of a test's own, without embeddings."""
    copy = tmp_path / "data"
    shutil.copytree(phantoms, copy, ignore=shutil.ignore_patterns("embeddings"))
    return copy


def config(data, **changes):
    return override(EmbedConfig(data=data, clip=TINY, compute=LOCAL), changes)


def here(data, **changes):
    """The same without Ray."""
    return config(data, **({"compute.workers": 0} | changes))


@pytest.fixture(scope="module")
def finished(phantoms):
    return embed(config(phantoms), quiet)


def ids_in(folder):
    return [name for path in sorted(folder.glob("*.parquet")) for name in pq.read_table(path)["image_id"].to_pylist()]


def test_every_image_is_embedded_once(finished, phantoms):
    manifest = read_manifest(phantoms)
    assert ids_in(finished.folder) == manifest.table["image_id"].tolist()


def test_embeddings_are_those_of_the_model_on_the_packed_pixels(finished, phantoms):
    packed = PackedImages(phantoms)
    rows = [70, 3, 41]
    expected = load_clip(TINY).encode_images(packed.images(rows)).numpy()
    found = finished.load(packed.manifest.table["image_id"].iloc[rows])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_raw_files_are_decoded_at_the_models_own_size(phantoms):
    embeddings = embed(here(phantoms, input="raw"), quiet)
    table = read_manifest(phantoms).table
    how = ImagesConfig(size=128)
    pixels = np.stack(
        [fit_image(decode_pixels(Path(p).read_bytes(), max_pixels=10**6), how) for p in table["path"][:4]]
    )
    expected = load_clip(TINY).encode_images(pixels).numpy()
    np.testing.assert_allclose(embeddings.load(table["image_id"][:4]), expected, atol=2e-3)
    assert embeddings.folder != embed(here(phantoms), quiet).folder


def test_a_second_run_does_not_even_start_ray(finished, phantoms, monkeypatch):
    monkeypatch.setattr(module, "connect", lambda config: pytest.fail("Ray was started"))
    again = embed(config(phantoms), quiet)
    assert not again.created
    assert again.folder == finished.folder


@pytest.mark.parametrize("change", [{"seed": 1}, {"clip.precision": "bf16"}])
def test_another_encoder_has_embeddings_of_its_own(finished, phantoms, change):
    other = embed(here(phantoms, **change), quiet)
    assert other.folder != finished.folder
    ids = read_manifest(phantoms).table["image_id"]
    assert np.abs(other.load(ids) - finished.load(ids)).max() > 0


def test_workers_threads_and_batches_change_nothing(finished, data):
    other = embed(config(data, **{"compute.workers": 2, "compute.batch_size": 7, "compute.threads": 2}), quiet)
    ids = read_manifest(data).table["image_id"]
    assert other.folder.name == finished.folder.name
    np.testing.assert_allclose(other.load(ids), finished.load(ids), atol=2e-3)


def test_only_what_is_missing_is_done_again(finished, data):
    first = embed(here(data), quiet)
    times = {path: path.stat().st_mtime_ns for path in first.folder.glob("*.parquet")}
    gone = sorted(times)[1]
    gone.unlink()
    (first.folder / SUCCESS_MARKER).unlink()
    (first.folder / f".{gone.name}.123").write_bytes(b"half a shard")
    assert embed(here(data), quiet).created
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {gone}
    assert ids_in(first.folder) == read_manifest(data).table["image_id"].tolist()


def test_a_run_goes_on_in_the_precision_and_shards_that_it_began_with(data):
    first = embed(here(data), quiet)
    about = first.folder / "_encoder.json"
    began = json.loads(about.read_text()) | {"precision": "bf16"}
    about.write_text(json.dumps(began))
    sorted(first.folder.glob("*.parquet"))[0].unlink()
    (first.folder / SUCCESS_MARKER).unlink()
    said = []
    again = embed(here(data, **{"compute.batch_size": 4}), said.append)
    assert again.encoder == began
    assert "bf16" in said[0]
    assert "are embedded" in said[1]


def test_a_data_set_prepared_anew_is_embedded_anew(finished, data):
    embed(here(data), quiet)
    manifest = read_manifest(data)
    table = manifest.table.iloc[::-1].reset_index(drop=True)
    write_manifest(data, Manifest(table=table, classes=manifest.classes, dataset="x", info=manifest.info))
    again = embed(here(data), quiet)
    assert again.created
    assert ids_in(again.folder) == table["image_id"].tolist()


def test_asking_for_more_than_there_is_ends_before_anything_starts(data):
    began = time.monotonic()
    with pytest.raises(UserError, match="do not fit"):
        embed(config(data, **{"compute.gpus_per_worker": 4.0}), quiet)
    assert time.monotonic() - began < 5
    assert not (data / "embeddings").exists()


def test_weights_that_cannot_be_had_end_the_job_with_their_sentence(data):
    broken = data / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken\.safetensors is text"):
        embed(config(data, **{"clip.pretrained": str(broken)}), quiet)


def test_an_image_that_vanished_is_named(data):
    path = Path(read_manifest(data).table["path"].iloc[0])
    kept = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(UserError, match=f"{path.name} can't be read any more"):
            embed(here(data, input="raw"), quiet)
    finally:
        path.write_bytes(kept)


def test_a_folder_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(UserError, match=r"clipcovid prepare"):
        embed(config(tmp_path), quiet)


@pytest.mark.faults
def test_killed_midway_and_run_again_no_image_is_missing_or_double(tmp_path):
    data = tmp_path / "data"
    local = ["--compute.address", "local"]
    subprocess.run(
        [
            sys.executable,
            JOBS / "prepare.py",
            "--out",
            data,
            "--phantom.images",
            "3000",
            "--phantom.size",
            "96",
            *local,
        ],
        check=True,
    )
    command = [
        sys.executable,
        JOBS / "embed.py",
        "--data",
        data,
        "--clip.model",
        "tiny",
        "--clip.pretrained",
        "none",
        *local,
    ]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(data.glob("embeddings/*/*.parquet"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = data.glob("embeddings/*")
    assert not (folder / SUCCESS_MARKER).exists()
    assert 0 < len(ids_in(folder)) < 3000
    subprocess.run(command, check=True)
    assert (folder / SUCCESS_MARKER).exists()
    assert ids_in(folder) == read_manifest(data).table["image_id"].tolist()
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.startswith("Already embedded")


def test_compute_asks_are_checked_before_ray_is_asked():
    with pytest.raises(UserError, match=r"--compute\.workers"):
        ComputeConfig(workers=-1)


def sealed(data):
    """The same folder, in which no embeddings can be kept (a mode would not stop the superuser)."""
    (data / "embeddings").write_text("in the way")
    return data


def test_where_the_data_can_not_be_written_embeddings_go_beside_the_runs(data, tmp_path):
    said, out = [], tmp_path / "runs"
    made = embed(here(sealed(data), out=out), said.append)
    assert made.folder.parent == out / "embeddings"
    (note,) = (text for text in said if text.startswith("note: "))
    assert f"{data} can't be written: embeddings are kept in {out / 'embeddings'}" in note
    assert not embed(here(data, out=out), quiet).created
    scored = zeroshot(ZeroshotConfig(data=data, clip=TINY, out=out, compute=HERE), quiet)
    assert scored.scores.n > 0
    assert [path.name for path in (out / "embeddings").iterdir()] == [made.folder.name]


def test_embeddings_go_where_they_are_told_to(data, tmp_path):
    place = tmp_path / "own"
    made = embed(here(sealed(data), embeddings=place), quiet)
    assert made.folder.parent == place
    assert len(ids_in(made.folder)) == 90
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--embeddings .*file can't be written: give a folder that can be"):
        embed(here(data, embeddings=tmp_path / "file"), quiet)
    with pytest.raises(UserError, match=r"Neither .*data nor .*file can be written: give --embeddings a folder"):
        embed(here(data, out=tmp_path / "file"), quiet)


def test_what_is_made_of_sealed_embeddings_goes_beside_the_runs(data, tmp_path, monkeypatch):
    made = embed(here(data), quiet)
    monkeypatch.setattr(module, "is_writable", lambda folder: tmp_path / "runs" in folder.parents)
    store = embed(here(data, out=tmp_path / "runs"), quiet)
    assert (store.folder, store.created) == (made.folder, False)
    before = sorted(made.folder.rglob("*"))
    text_embeddings(store, load_clip(TINY), ["clear lungs"])
    assert sorted(made.folder.rglob("*")) == before
    assert len(list((tmp_path / "runs" / "embeddings" / made.folder.name).rglob("*.parquet"))) == 1
