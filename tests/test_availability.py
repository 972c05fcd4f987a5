"""Published weights, looked for in the cache and asked of the hub, without torch."""

import subprocess
import sys
import time

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from clipcovid.config import ClipConfig, UserError
from clipcovid.models import availability

CHECKS = {
    "openai": lambda: availability.check_clip_available(ClipConfig()),
    "hub": lambda: availability.check_clip_available(ClipConfig(model="hf-hub:org/clip")),
    "timm": lambda: availability.check_timm_available("resnet18", "pretrained"),
    "smp": lambda: availability.check_smp_encoder_available("resnet34", "imagenet"),
    "smp with timm": lambda: availability.check_smp_encoder_available("tu-resnet18", "imagenet"),
    "text": lambda: availability.check_hub_model_available("org/bert", "--text"),
}
REPOSITORIES = {
    "openai": "timm/vit_base_patch32_clip_224.openai",
    "hub": "org/clip",
    "timm": "timm/resnet18.a1_in1k",
    "smp": "smp-hub/resnet34.imagenet",
    "smp with timm": "timm/resnet18.a1_in1k",
    "text": "org/bert",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and a hub that gives or raises what is put in here."""
    availability._hub_problem.cache_clear()
    asked, answer = [], {"error": None}

    def metadata(url, **_):
        asked.append(url)
        if answer["error"]:
            raise answer["error"]

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    yield asked, answer
    availability._hub_problem.cache_clear()


def error_of(kind):
    return kind("no", response=type("Response", (), {"headers": {}, "request": None})())


@pytest.mark.parametrize("which", CHECKS)
def test_offline_they_are_refused_with_what_to_fetch(which, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"HF_HUB_OFFLINE is set.*`hf download {REPOSITORIES[which]}`.*local") as error:
        CHECKS[which]()
    assert "\n" not in str(error.value)
    assert hub[0] == []


@pytest.mark.parametrize("which", CHECKS)
def test_what_is_in_the_cache_needs_no_hub(which, hub, tmp_path):
    folder = tmp_path / f"models--{REPOSITORIES[which].replace('/', '--')}" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (folder / ("open_clip_pytorch_model.bin" if which in ("openai", "hub") else "model.safetensors")).touch()
    CHECKS[which]()
    assert hub[0] == []


@pytest.mark.parametrize("which", CHECKS)
def test_what_the_hub_has_is_fine(which, hub):
    CHECKS[which]()
    assert len(hub[0]) == 1
    assert REPOSITORIES[which] in hub[0][0]
    hub[1]["error"] = EntryNotFoundError("another file than the first one")
    CHECKS[which]()


@pytest.mark.parametrize("which", CHECKS)
def test_a_hub_that_does_not_answer_is_asked_once(which, hub):
    hub[1]["error"] = OSError("Name or service not known")
    for _ in range(3):
        with pytest.raises(UserError, match=r"the hub does not answer \(Name or service not known"):
            CHECKS[which]()
    assert len(hub[0]) == 1


def test_a_hub_that_hangs_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(availability, "HUB_TIMEOUT_S", 0.1)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: time.sleep(2))
    began = time.time()
    with pytest.raises(UserError, match=r"does not answer within 0\.1 s"):
        CHECKS["openai"]()
    assert time.time() - began < 1


def test_a_model_that_the_hub_does_not_have(hub):
    hub[1]["error"] = error_of(RepositoryNotFoundError)
    with pytest.raises(UserError, match="has no such model, or only for those who are logged in"):
        CHECKS["hub"]()
    CHECKS["timm"]()  # whose very repository timm chooses


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (
            lambda: availability.check_clip_available(ClipConfig(pretrained="opanai")),
            "is no weights tag of ViT-B-32: use openai",
        ),
        (lambda: availability.check_clip_available(ClipConfig(model="ViT-B-31")), "is unknown: use ViT-B-32"),
        (lambda: availability.check_timm_available("resnet_18", "none"), "is not a timm architecture: use resnet18"),
        (
            lambda: availability.check_timm_available("resnet18", "gone.pt"),
            "gone.pt: no such file; or use pretrained or none",
        ),
        (
            lambda: availability.check_hub_model_available("/data/bert", "--text"),
            "--text /data/bert can't be had: there is no such folder",
        ),
        (
            lambda: availability.check_smp_encoder_available("resnet18", "gone.pt"),
            "gone.pt: no such file; or use imagenet or none",
        ),
    ],
)
def test_names_that_cannot_be_meant(check, says, hub):
    with pytest.raises(UserError, match=says):
        check()
    assert hub[0] == []


def test_random_weights_need_nothing(hub):
    availability.check_clip_available(ClipConfig(model="tiny", pretrained="none"))
    availability.check_timm_available("resnet18", "none")
    availability.check_smp_encoder_available("resnet18", "none")
    assert hub[0] == []


def test_files_and_folders_are_looked_into(tmp_path, hub):
    (tmp_path / "weights.pt").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    for check in (
        lambda: availability.check_clip_available(ClipConfig(pretrained=str(tmp_path / "weights.pt"))),
        lambda: availability.check_timm_available("resnet18", str(tmp_path / "weights.pt")),
        lambda: availability.check_smp_encoder_available("resnet18", str(tmp_path / "weights.pt")),
    ):
        with pytest.raises(UserError, match="is a Git LFS pointer"):
            check()
    with pytest.raises(UserError, match="is empty"):
        availability.check_clip_available(ClipConfig(pretrained=str(tmp_path)))
    with pytest.raises(UserError, match="is empty"):
        availability.check_hub_model_available(str(tmp_path), "--decoder")


def test_a_driver_knows_without_torch():
    code = (
        "import sys; from clipcovid.config import ClipConfig; from clipcovid.models import availability as p\n"
        "p._hub_problem = lambda *_: ''\n"
        "p.check_clip_available(ClipConfig()); p.check_timm_available('resnet18', 'pretrained')\n"
        "p.check_smp_encoder_available('tu-resnet18', 'imagenet')\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
