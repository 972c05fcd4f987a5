"""A job reads its manifest once, and the content of each weights file."""

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import HERE

from clipcovid import identity
from clipcovid.commands import embed, search, zeroshot
from clipcovid.config import ClipConfig, OptimConfig
from clipcovid.data.manifest import read_manifest
from clipcovid.inference.embed import EmbedConfig
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.inference.search import SearchConfig
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.workflows.train import train


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint that is older than its files' times of change could hide a change of."""
    folder = tmp_path_factory.mktemp("weights")
    save_clip(folder, load_clip(ClipConfig(model="tiny", pretrained="none")), hf=False)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Counts the manifests that are read, by their folder, and the files that are hashed, by their path."""
    manifests, files = Counter(), Counter()
    digest_file = hashlib.file_digest

    def read(folder):
        manifests[str(folder)] += 1
        return read_manifest(folder)

    def count(file, kind):
        files[Path(file.name)] += 1
        return digest_file(file, kind)

    for name, module in list(sys.modules.items()):
        if name.startswith("clipcovid.") and getattr(module, "read_manifest", None) is read_manifest:
            monkeypatch.setattr(module, "read_manifest", read)
    monkeypatch.setattr(hashlib, "file_digest", count)
    identity._read_hash.cache_clear()
    return manifests, files


def zero_shot(**common):
    zeroshot.main(ZeroshotConfig(**common))


def embedding(**common):
    embed.main(EmbedConfig(**common))


def searching(**common):
    search.main(SearchConfig(text=("pneumonia",), **common))


def training(**common):
    train(ProbeConfig(optim=OptimConfig(epochs=1, batch_size=32), **common))


@pytest.mark.parametrize("job", [zero_shot, embedding, searching, training])
def test_a_job_reads_its_manifest_and_each_weights_file_once(job, reads, weights, phantoms, tmp_path):
    clip = ClipConfig(model="tiny", pretrained=str(weights))
    job(data=phantoms, clip=clip, out=tmp_path, embeddings=tmp_path / "embeddings", compute=HERE)
    manifests, files = reads
    hashed = {path.name: count for path, count in files.items() if weights in path.parents}
    assert dict(manifests) == {str(phantoms): 1}
    assert hashed.keys() >= {"model.safetensors", "open_clip_config.json"}
    assert set(hashed.values()) == {1}


def test_a_prediction_reads_them_once(reads, weights, phantoms, tmp_path):
    common = {"data": phantoms, "out": tmp_path, "embeddings": tmp_path / "embeddings", "compute": HERE}
    run = train(
        ProbeConfig(
            clip=ClipConfig(model="tiny", pretrained=str(weights)),
            optim=OptimConfig(epochs=1, batch_size=32),
            **common,
        )
    ).run
    for counts in reads:
        counts.clear()
    identity._read_hash.cache_clear()
    predict_split(PredictConfig(run=run.folder, **common))
    manifests, files = reads
    assert dict(manifests) == {str(phantoms): 1}
    assert {count for path, count in files.items() if weights in path.parents} == {1}


class TestFileHash:
    def test_a_changed_file_has_another_hash_whatever_its_size_and_times(self, tmp_path):
        path = tmp_path / "weights"
        path.write_bytes(b"before")
        os.utime(path, (1e9, 1e9))
        before = identity.file_hash(path)
        assert identity.file_hash(path) == before
        path.write_bytes(b"after!")
        assert identity.file_hash(path) != before
        other = tmp_path / "other"
        other.write_bytes(b"else..")
        os.utime(other, (1e9, 1e9))
        other.replace(path)
        assert identity.file_hash(path) == hashlib.sha256(b"else..").hexdigest()[:16]

    def test_a_file_that_was_just_written_is_read_again(self, tmp_path, reads):
        path = tmp_path / "weights"
        for number in range(50):  # faster than the clock of a file system ticks
            path.write_bytes(bytes([number]))
            assert identity.file_hash(path) == hashlib.sha256(bytes([number])).hexdigest()[:16]
        assert reads[1][path] == 50

    def test_two_paths_to_a_file_are_one(self, tmp_path, reads):
        path = tmp_path / "weights"
        path.write_bytes(b"content")
        os.utime(path, (1e9, 1e9))
        (tmp_path / "link").symlink_to(path)
        assert identity.file_hash(path) == identity.file_hash(tmp_path / "link")
        assert reads[1].total() == 1
