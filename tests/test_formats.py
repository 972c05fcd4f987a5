"""What a weights file is, by its bytes."""

import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from clipcovid.config import UserError
from clipcovid.models.formats import hugging_face_folder, is_openai_clip, safetensors_shapes, weights_format

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 45\n"


def saved(content, **settings):
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def arrays(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


TENSORS = {"a.weight": torch.ones(30, 40), "b": torch.zeros(())}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (save(TENSORS), "safetensors"),
        (saved(TENSORS), "torch"),
        (saved(TENSORS, _use_new_zipfile_serialization=False), "legacy"),
        (saved(TENSORS, pickle_protocol=4), "torch"),
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.h5", "weights"])
def test_weights_are_known_by_their_bytes(tmp_path, data, kind, name):
    (tmp_path / name).write_bytes(data)
    assert weights_format(tmp_path / name) == kind


FOREIGN = {
    "empty": (b"", "is empty: download it again"),
    "LFS": (LFS, "is a Git LFS pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "is a web page: download it again"),
    "text": ("Größe: 3\nkeine Gewichte\n".encode(), "is text .'Größe: 3 keine Gewichte'"),
    "index": (b'{"weight_map": {"a": "model-1.safetensors"}}', "is text"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(80), "is an HDF5 file"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(50), "is a GGUF file"),
    "gzip": (gzip.compress(b"x" * 90), "is a gzip archive: unpack it"),
    "tar": (bytes(257) + b"ustar\x00" + bytes(300), "is a tar archive"),
    "zip": (
        zipped(**{"weights/model.pt": "x"}),
        "is a zip archive that torch did not write .weights/model.pt first.: unpack it",
    ),
    "npz": (arrays(lambda file: np.savez(file, a=np.ones(3))), "is an archive of NumPy arrays"),
    "npy": (arrays(lambda file: np.save(file, np.ones(3))), "is a NumPy array"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x052.3.0" + bytes(50), "is an ONNX graph"),
    "TensorFlow": (bytes(100) + bytes.fromhex("57fb808b247547db"), "is a checkpoint of TensorFlow"),
    "pickle": (pickle.dumps({"a": 1}), "is a pickle that torch.save did not write"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(60), "is a picture"),
    "noise": (bytes(range(200, 256)), "is no weights file .its first bytes are c8 c9"),
    "cut safetensors": (save(TENSORS)[:-100], "is cut off after .* bytes: download it again"),
    "cut header": (save(TENSORS)[:40], "is cut off|is a damaged safetensors"),
    "no tensors": (save({}), "is a safetensors file without a tensor"),
    "cut archive": (saved(TENSORS)[:-300], "is cut off or damaged after"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_holds_no_weights_is_named_for_what_it_is(tmp_path, kind, name):
    data, says = FOREIGN[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as error:
        weights_format(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_a_header_tells_names_and_shapes(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert safetensors_shapes(tmp_path / "a.safetensors") == {"a.weight": (30, 40), "b": ()}


def test_a_hugging_face_clip_is_known_by_its_names(tmp_path):
    names = ["logit_scale", "vision_model.embeddings.class_embedding", "text_model.final_layer_norm.weight"]
    assert f"give its folder, {tmp_path}," in hugging_face_folder(tmp_path / "model.safetensors", names)
    assert hugging_face_folder(tmp_path / "model.safetensors", ["visual.conv1.weight"]) == ""


def test_a_plain_file_is_not_openais(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    assert not is_openai_clip(tmp_path / "a.pt")
