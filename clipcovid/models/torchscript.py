"""The tensors of a TorchScript archive, as OpenAI published CLIP, read without running the program that is in it.

`torch.jit.load` compiles and may run what the archive says, which can read and write files. Here the pickle of its module is
read with a closed list of names: storages, the function that makes tensors of them, and modules as bare attributes.
"""

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}  # of torch.jit._pickle
_STATE_DECLARATION = re.compile(
    r"^class (\w+)\(Module\):\n\s+__parameters__ = \[(.*?)\]\n\s+__buffers__ = \[(.*?)\]", re.M
)


class _Module:
    """A module of the archive: its attributes and nothing else."""

    name = ""


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Name → tensor of every parameter and buffer, as the archive's module would give them in its state dict.

    What is not of this form raises `pickle.UnpicklingError` or another error of the zip, pickle or torch.
    """
    with zipfile.ZipFile(path) as archive:
        places = {name.partition("/")[2]: name for name in archive.namelist()}
        with archive.open(places["data.pkl"]) as file:
            module = _Reader(file, archive, places).load()
        registered = _state_names(archive, places)
    return dict(_tensors(module, registered))


class _Reader(pickle.Unpickler):
    """An unpickler that makes tensors and bare modules, and refuses every other name."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, places: dict[str, str]) -> None:
        super().__init__(file)
        self.archive, self.places = archive, places

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_Module", (_Module,), {"name": f"{module}.{name}"})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _view if name == "_rebuild_tensor_v2" else _parameter
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return _parameter
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch" and name == "device":
            return str
        raise pickle.UnpicklingError(f"{module}.{name} is not read")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """All numbers (n,) of a storage."""
        _, dtype, key, _, count = pid
        data = self.archive.read(self.places[f"data/{key}"])
        if not isinstance(dtype, torch.dtype) or len(data) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"the storage {key} has another size than is said")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _view(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A tensor over a storage; beyond its end is torch's error."""
    if math.prod(size) == 0:
        return storage.new_empty(size)
    return storage.as_strided(size, stride, offset)


def _parameter(value: Any, *_: Any) -> Any:
    return value


def _state_names(archive: zipfile.ZipFile, places: dict[str, str]) -> dict[str, set[str]]:
    """Class → the names of its parameters and buffers, from the text of the archive's program: other tensors are no state."""
    names = {}
    for place, full in places.items():
        if place.startswith("code/") and place.endswith(".py"):
            package = place.removeprefix("code/").removesuffix(".py").replace("/", ".")
            for kind, parameters, buffers in _STATE_DECLARATION.findall(archive.read(full).decode("utf-8", "replace")):
                names[f"{package}.{kind}"] = set(re.findall(r'"([^"]+)"', parameters + buffers))
    return names


def _tensors(module: Any, registered: dict[str, set[str]], prefix: str = "") -> Any:
    """Pairs of a dotted name and its tensor."""
    if prefix.count(".") > 50:
        raise pickle.UnpicklingError("its modules hold each other")
    names = registered.get(module.name) if isinstance(module, _Module) else None
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        if isinstance(value, torch.Tensor) and (names is None or name in names):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, registered, f"{prefix}{name}.")
