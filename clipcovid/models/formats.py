"""What a weights file is, by its first bytes and not by its name: no torch here, so that a driver knows it at once."""

import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal

from clipcovid.config import UserError

Format = Literal["safetensors", "torch", "legacy", "torchscript"]
"""safetensors; an archive of `torch.save`; its older form, without an archive; an archive of TorchScript."""

_HEADER = 100 * 2**20  # bytes, the most that safetensors allows its header
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, as the first pickle of its older files
_TENSORFLOW = bytes.fromhex("57fb808b247547db")  # the end of a table file: TensorFlow's checkpoints and their indexes
_TENSORFLOW_NAME = re.compile(r"\.data-\d+-of-\d+$")
_DOWNLOAD_AGAIN = "download it again"
_OTHER_FORMATS = (  # first bytes, what such a file is, and the way out
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "fetch them with git lfs pull"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes it", "give weights of PyTorch"),
    (b"GGUF", "a GGUF file, for llama.cpp", "give the model's safetensors"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\xfd7zXZ", "an xz archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x93NUMPY", "a NumPy array", "give weights that torch.save or safetensors wrote"),
    (b"\x89PNG", "a picture", "give weights that torch.save or safetensors wrote"),
    (b"\xff\xd8\xff", "a picture", "give weights that torch.save or safetensors wrote"),
)


def weights_format(path: Path) -> Format:
    """How the tensors in a file are stored; what holds none, or is cut off, is a `UserError` that says what it is."""
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, path.stat().st_size - 8))
        tail = file.read()
    if not head:
        raise _format_error(path, "empty", _DOWNLOAD_AGAIN)
    for start, what, way_out in _OTHER_FORMATS:
        if head.startswith(start):
            raise _format_error(path, what, way_out)
    if head[257:262] == b"ustar":
        raise _format_error(path, "a tar archive", "unpack it")
    if tail == _TENSORFLOW or _TENSORFLOW_NAME.search(path.name):
        raise _format_error(path, "a checkpoint of TensorFlow", "give weights of PyTorch")
    if head.startswith(b"PK"):
        return _zip_format(path)
    if re.match(rb"\s*<(!doctype|html|\?xml|head|!--)", head, re.IGNORECASE):
        raise _format_error(path, "a web page", f"{_DOWNLOAD_AGAIN}, from the address of the file itself")
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _HEADER:
        safetensors_shapes(path)
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        if _LEGACY in head[:20]:
            return "legacy"
        raise _format_error(
            path, "a pickle that torch.save did not write", "give what torch.save(model.state_dict(), …) wrote"
        )
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x20]\x12[\x01-\x40][\x20-\x7e]", head):
        raise _format_error(path, "an ONNX graph", "give the weights that it was exported from")
    if text := _text(head):
        raise _format_error(path, f"text ({text})", "give weights that torch.save or safetensors wrote")
    if path.suffix == ".msgpack":
        raise _format_error(path, "a Flax checkpoint", "give weights of PyTorch")
    raise _format_error(path, f"no weights file (its first bytes are {head[:8].hex(' ')})", _DOWNLOAD_AGAIN)


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of each tensor in a safetensors file, read from its header; a damaged one is a `UserError`."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header: dict[str, Any] = json.loads(file.read(length)) if length <= min(_HEADER, size) else {}
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise _format_error(path, "a damaged safetensors file", _DOWNLOAD_AGAIN) from None
    if size < end or length > size:
        raise _format_error(path, f"cut off after {size:,} bytes", _DOWNLOAD_AGAIN)
    if not shapes:
        raise _format_error(path, "a safetensors file without a tensor", _DOWNLOAD_AGAIN)
    return shapes


def is_openai_clip(path: Path) -> bool:
    """Whether a file is CLIP as OpenAI published it: a TorchScript archive that also holds the sizes of its inputs."""
    if weights_format(path) != "torchscript":
        return False
    with zipfile.ZipFile(path) as archive:
        module = archive.read(next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"))
    return all(word in module for word in (b"input_resolution", b"context_length", b"vocab_size"))


def hugging_face_folder(path: Path, names: Any) -> str:
    """What to give in place of a single file of a Hugging Face CLIPModel; empty where the tensors' names are of none."""
    kinds = {str(name).partition(".")[0] for name in names}
    if not {"vision_model", "text_model"} <= kinds:
        return ""
    return (
        f"{path} is the weights file of a Hugging Face CLIPModel, which says nothing of its architecture: give its folder, "
        f"{path.parent}, with the config.json that belongs to it."
    )


def _zip_format(path: Path) -> Format:
    """What kind of zip archive it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            first = archive.namelist()[:1]
    except (zipfile.BadZipFile, OSError, ValueError):
        raise _format_error(path, f"cut off or damaged after {path.stat().st_size:,} bytes", _DOWNLOAD_AGAIN) from None
    if "data.pkl" in names:
        return "torchscript" if "constants.pkl" in names else "torch"
    if path.suffix == ".npz" or all(name.endswith(".npy") for name in first):
        raise _format_error(path, "an archive of NumPy arrays", "give weights of PyTorch")
    if path.suffix == ".keras" or "model.weights.h5" in first:
        raise _format_error(path, "a model of Keras", "give weights of PyTorch")
    raise _format_error(
        path, f"a zip archive that torch did not write ({', '.join(first) or 'empty'} first)", "unpack it"
    )


def _text(head: bytes) -> str:
    """The beginning of a text, in quotes; empty where the bytes are none."""
    try:
        text = head[: 4096 - 4].decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if any(not letter.isprintable() and not letter.isspace() for letter in text):
        return ""
    first = " ".join(text.split())
    return repr(first[:40] + ("…" if len(first) > 40 else ""))


def _format_error(path: Path, what: str, way_out: str) -> UserError:
    return UserError(f"{path} is {what}: {way_out}.")
