"""Weights files as people have them, each against the plain state dict of the same model."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Evil
from safetensors.torch import save_file
from torchscript_files import scripted

from clipcovid.config import UserError
from clipcovid.models import state_dicts
from clipcovid.models.state_dicts import (
    check_weights,
    largest_state_dict,
    load_weights,
    match_state_dict,
    read_state_dicts,
)


class Block(torch.nn.Module):
    """A convolution and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)


class Net(torch.nn.Module):
    """Numbered layers, buffers, a head and a scalar: all that state dicts have."""

    def __init__(self, seed: int = 0, layers: int = 2, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.ModuleList([Block() for _ in range(layers)])
        self.head = torch.nn.Linear(4, classes)
        self.scale = torch.nn.Parameter(torch.randn(()))


def state(seed=0, **settings):
    return dict(Net(seed, **settings).state_dict())


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def written(path, content):
    torch.save(content, path)
    return path


def loaded(path, **settings):
    net = Net(99)
    load_weights(net, path, "net", "--weights", **settings)
    return net.state_dict()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


WRAPPERS = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(0.1)},
    "model_state": lambda s: {"model_state": s},
    "module": lambda s: {"module": s},
    "net": lambda s: {"net": s},
    "network": lambda s: {"network": s},
    "nested": lambda s: {"checkpoint": {"model": {"weights": s}}},
    "DataParallel": lambda s: prefixed("module.", s),
    "torch.compile": lambda s: prefixed("_orig_mod.", s),
    "both": lambda s: prefixed("module._orig_mod.", s),
    "Lightning": lambda s: {
        "state_dict": prefixed("model.", s) | {"criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best": torch.tensor(0.3)}},
    },
    "Lightning net": lambda s: {"state_dict": prefixed("net.", s)},
    "a part of a larger model": lambda s: prefixed("clip.encoder.", s) | {"classifier.weight": torch.ones(2, 2)},
    "NumPy scalar": lambda s: {"state_dict": s, "best": np.float64(0.9), "size": np.int64(4)},
    "NumPy array": lambda s: {"state_dict": s, "curve": np.arange(3.0)},
    "arguments": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, out=Path("runs"))},
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "without counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "scalars as vectors": lambda s: s | {"scale": s["scale"].reshape(1)},
    "constants of old": lambda s: s | {"embeddings.position_ids": torch.arange(4), "attn_mask": torch.ones(2)},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_wrapped_weights_are_the_plain_ones(tmp_path, wrapper, legacy):
    path = tmp_path / "weights.pt"
    content = WRAPPERS[wrapper](state())
    if legacy and wrapper == "NumPy array":
        pytest.skip("whose names can't be listed in a file without an archive")
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    expected = state() | {key: value for key, value in state(99).items() if "num_batches" in key}
    if wrapper == "half precision":
        expected = {k: v.half().float() if v.is_floating_point() else v for k, v in expected.items()}
    assert_same(loaded(path), expected)


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    save_file(prefixed("module.", state()), tmp_path / "weights.pt")
    assert_same(loaded(tmp_path / "weights.pt"), state())


@pytest.mark.parametrize(
    "content",
    [
        lambda own, mean: {"state_dict": own, "state_dict_ema": mean},
        lambda own, mean: {"model": own, "model_ema": {"module": mean}},
        lambda own, mean: {"model": own, "ema": mean},
        lambda own, mean: {"student": own, "teacher": mean},
        lambda own, mean: prefixed("student.", own) | prefixed("teacher.", mean),
        lambda own, mean: {"state_dict": prefixed("model.", own) | prefixed("ema_model.", mean)},
    ],
)
def test_a_running_average_is_taken_and_said(tmp_path, content, capsys):
    state_dicts.print_note.cache_clear()
    path = written(tmp_path / "weights.pt", content(state(1), state(2)))
    assert_same(loaded(path), state(2) | {"layers.0.norm.num_batches_tracked": torch.tensor(0)})
    said = capsys.readouterr().err
    assert said.startswith("note: ")
    assert said.count("\n") == 1
    assert "ema" in said or "teacher" in said


@pytest.mark.parametrize("first", ["frontal.", "module.encoder_q.", "", "net."])
@pytest.mark.parametrize("allow_extra", [False, True])
def test_of_two_sets_of_weights_the_one_that_is_taken_is_said(tmp_path, first, allow_extra, capsys):
    state_dicts.print_note.cache_clear()
    second = {"frontal.": "lateral.", "module.encoder_q.": "module.encoder_k."}.get(first, "module.")
    path = written(tmp_path / "weights.pt", prefixed(first, state(1)) | prefixed(second, state(2)))
    settings = {"allow_extra": allow_extra}
    taken = state(1) if first or allow_extra else state(2)  # at the top, those of the copy belong to no model
    assert_same(loaded(path, **settings), taken | {"layers.0.norm.num_batches_tracked": torch.tensor(0)})
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert second.removesuffix(".") in note
    assert "taken" in note or "17 other tensors (" in note
    same = written(tmp_path / "same.pt", prefixed(first, state(1)) | prefixed(second, state(1)))
    assert_same(loaded(same, allow_extra=True), state(1))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_whole_numbers_are_no_weights(tmp_path, dtype):
    quantized = {k: (100 * v).to(dtype) if v.ndim > 1 else v for k, v in state().items()}
    with pytest.raises(
        UserError, match=r"layers\.0\.conv\.weight as whole numbers .*quantized.*: give the weights that"
    ):
        loaded(written(tmp_path / "weights.pt", quantized))


def test_weights_of_zeros_alone_are_refused(tmp_path):
    zeros = {k: torch.zeros_like(v) for k, v in state().items()}
    with pytest.raises(UserError, match="nothing but zeros in its 3 matrices"):
        loaded(written(tmp_path / "weights.pt", zeros))
    path = written(tmp_path / "weights.pt", zeros | {"head.weight": state()["head.weight"]})
    assert not loaded(path)["layers.0.conv.weight"].any()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_of_torch_that_is_called_safetensors_is_read(tmp_path, legacy):
    torch.save(state(), tmp_path / "weights.safetensors", _use_new_zipfile_serialization=not legacy)
    assert_same(loaded(tmp_path / "weights.safetensors"), state())


def test_of_a_student_and_a_larger_teacher_the_one_that_fits_is_taken(tmp_path):
    path = written(tmp_path / "weights.pt", {"student": state(1), "teacher": state(2, layers=3)})
    assert_same(loaded(path), state(1))


def test_a_head_may_differ_where_a_part_is_wanted_but_not_the_depth(tmp_path):
    encoder = {name: value for name, value in state().items() if not name.startswith("head")}
    fine = written(tmp_path / "fine.pt", state() | {"head.weight": torch.ones(9, 4), "head.bias": torch.ones(9)})
    found = state_dicts.load_matching(fine, encoder, "net", "--weights", allow_extra=True)
    assert_same(found, {name: value for name, value in state().items() if name in encoder})
    deeper = written(tmp_path / "deeper.pt", state(layers=3))
    with pytest.raises(UserError, match="does not fit net"):
        state_dicts.load_matching(deeper, encoder, "net", "--weights", allow_extra=True)


def test_extractors_that_write_a_dot_as_an_underscore_get_the_plain_names():
    shapes = {"model.stages_0.blocks.0.weight": (2, 2), "model.stem_1.bias": (2,)}
    plain = {
        "stages.0.blocks.0.weight": torch.ones(2, 2),
        "stem.1.bias": torch.zeros(2),
        "head.fc.weight": torch.ones(5, 2),
    }
    for names in (plain, prefixed("model.", plain), prefixed("encoder.model.", plain)):
        found = match_state_dict(names, shapes)[0]
        assert found.state.keys() == shapes.keys()
        assert not found.missing
        assert not found.extra_layers


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: {k: v for k, v in s.items() if "1.norm" not in k},
            "4 of its 17 tensors are missing .layers.1.norm.weight first",
        ),
        (lambda s: s | {"extra.weight": torch.ones(2)}, "1 in the file are not the model's .extra.weight first"),
        (
            lambda s: s | {"head.weight": torch.ones(9, 4)},
            "1 have another shape .head.weight: .9, 4. in the file, .3, 4. in the model",
        ),
        (lambda s: {"a.b": torch.ones(2)}, "15 of its 17 tensors are missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, says):
    with pytest.raises(UserError, match=says) as error:
        loaded(written(tmp_path / "weights.pt", change(state())))
    assert "\n" not in str(error.value)
    assert "--weights" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, ending):
    tensors = state()
    tensors["layers.1.conv.weight"][0, 0, 0, :2] = value
    path = tmp_path / f"weights.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    with pytest.raises(UserError, match=r"2 numbers that are not finite in layers\.1\.conv"):
        loaded(path)


def test_numbers_that_are_not_read_may_be_anything(tmp_path):
    path = written(tmp_path / "weights.pt", {"model": state(), "best": torch.tensor(float("nan"))})
    assert_same(loaded(path), state())
    check_weights({"ids": torch.tensor([1, 2])}, "whole numbers")


@pytest.mark.parametrize("place", ["beside the weights", "in their place", "as the file"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_not_run(tmp_path, place, legacy):
    evil = Evil(str(tmp_path / "ran"))
    content = {
        "beside the weights": {"model": state(), "args": evil},
        "in their place": {"model": evil},
        "as the file": evil,
    }
    path = tmp_path / "weights.pt"
    torch.save(content[place], path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as error:
        loaded(path)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_as_an_object_is_named_for_what_it_is(tmp_path):
    with pytest.raises(UserError, match=r"holds no tensors by name, but a whole model.*torch.save\(model.state_dict"):
        loaded(written(tmp_path / "weights.pt", Net()))


def test_objects_of_other_libraries_beside_the_weights_are_passed_over(tmp_path):
    path = written(tmp_path / "weights.pt", {"state_dict": state(), "config": Block, "epoch": np.int64(3)})
    assert_same(loaded(path), state())


def test_a_torchscript_archive_is_read_as_its_state_dict(tmp_path):
    path = scripted(tmp_path / "weights.pt", state() | {"input_resolution": torch.tensor(224)})
    assert_same(largest_state_dict(path), dict(torch.jit.load(path).state_dict()))
    assert_same(loaded(path), state())


def test_a_torchscript_archive_is_not_run(tmp_path, monkeypatch):
    path = scripted(tmp_path / "weights.pt", state())
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("ran the archive"))
    assert_same(loaded(path), state())


@pytest.mark.parametrize("harm", ["code", "beyond the end", "cut storage"])
def test_a_harmful_torchscript_archive_is_refused(tmp_path, harm):
    import zipfile

    good = scripted(tmp_path / "good.pt", state())
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in archive.namelist():
            data = archive.read(name)
            if harm == "code" and name.endswith("/data.pkl"):
                data = pickle.dumps(Evil(str(tmp_path / "ran")), protocol=2)
            elif harm == "beyond the end" and name.endswith("/data.pkl"):
                data = data.replace(b"K\x04K\x03K\x03K\x03t", b"K\x7fK\x7fK\x03K\x03t")
            elif harm == "cut storage" and name.endswith("/data/0"):
                data = data[:-4]
            bad.writestr(name, data)
    with pytest.raises(UserError):
        list(read_state_dicts(tmp_path / "bad.pt"))
    assert not (tmp_path / "ran").exists()
