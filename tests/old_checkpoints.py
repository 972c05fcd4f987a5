"""Checkpoints as earlier versions wrote them, kept without their weights, which are drawn anew from their names."""

import gzip
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CHECKPOINTS = Path(__file__).parent / "data" / "checkpoints"
STATES = "states.json"  # safetensors file → tensor name → dtype and shape
PREDICTIONS = "predictions.json.gz"  # the table that was predicted with the drawn weights, a list a column


def draw_tensor(name, dtype, shape):
    """A tensor of the scale that trained ones have, from a generator that its name seeds."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if np.issubdtype(np.dtype(dtype), np.integer):
        return np.asarray(np.arange(int(np.prod(shape))).reshape(shape) % 2, dtype)
    if "running_var" in name or name.endswith("std"):
        return (1 + rng.random(shape)).astype(dtype)
    if name.endswith("logit_scale"):
        return np.full(shape, 4, dtype)
    if name.endswith("thresholds"):
        return np.full(shape, 0.5, dtype)
    if len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        return (rng.normal(size=shape) / np.sqrt(fan_in)).astype(dtype)
    return np.asarray(
        1 + 0.1 * rng.normal(size=shape) if name.endswith("weight") else 0.1 * rng.normal(size=shape), dtype
    )


def draw_weights(states, folder):
    """Write the safetensors files that `states` lists."""
    for file, tensors in states.items():
        drawn = {name: draw_tensor(name, dtype, shape) for name, (dtype, shape) in tensors.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})


def read_states(folder):
    """What `draw_weights` needs to write files of the same names, dtypes and shapes as those in `folder`."""
    return {
        path.relative_to(folder).as_posix(): {
            name: (str(values.dtype), list(values.shape)) for name, values in load_file(path).items()
        }
        for path in sorted(folder.rglob("*.safetensors"))
    }


def restore(method, folder):
    """Make the checkpoint of a method in `folder`; the columns that it is to predict."""
    kept = CHECKPOINTS / method
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns(STATES, PREDICTIONS))
    draw_weights(json.loads((kept / STATES).read_text(encoding="utf-8")), folder)
    return json.loads(gzip.decompress((kept / PREDICTIONS).read_bytes()))
