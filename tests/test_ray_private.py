"""What is used of Ray's private names: when the next version drops one, this says which, and what it was for."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import ray

from clipcovid.config import UserError
from clipcovid.ray_backend import private

PACKAGE = Path(private.__file__).parents[1]


@pytest.mark.parametrize("name", private.PRIVATE_NAMES)
def test_this_ray_has_the_private_names_that_are_used(name):
    assert private.load_private(name) is not None


def test_this_ray_has_the_constants_that_are_copied_from_it():
    constants = importlib.import_module("ray._common.constants")
    utils = importlib.import_module("ray._private.utils")
    services = importlib.import_module("ray.core.generated.gcs_service_pb2").DESCRIPTOR.services_by_name
    trainer = importlib.import_module("ray.train.v2.api.data_parallel_trainer")
    exceptions = importlib.import_module("ray.train.v2._internal.exceptions")
    _, service, call = private.CHECK_ALIVE.split("/")
    assert call in services[service.rpartition(".")[2]].methods_by_name, "cluster heads answer another call"
    assert Path(utils.get_ray_address_file(None)).name == private.ADDRESS_FILE, "the last cluster is noted elsewhere"
    assert constants.HEAD_NODE_RESOURCE_NAME == private.HEAD_RESOURCE, "the head node's resource has another name"
    assert hasattr(trainer, private.CLEANER_CALLBACK), "Ray Train cleans up behind a dead driver otherwise"
    assert any(name.startswith(private.WORKER_START_ERROR_PREFIX) for name in vars(exceptions)), (
        "no room for workers is another error"
    )
    assert f'"{private.TEMP_DIR_OPTION}"' in inspect.getsource(inspect.unwrap(ray.init)), "sockets are put otherwise"
    for name in (private.PROGRESS_LOGGER, private.REPORT_LOGGER):
        assert importlib.util.find_spec(name), f"{name} no longer logs: what it logged comes from elsewhere"


@pytest.mark.parametrize("name", private.PRIVATE_NAMES)
def test_a_name_that_is_gone_is_a_sentence_that_says_what_is_lost(name, monkeypatch):
    module, _, path = name.partition(":")
    owner, _, last = path.rpartition(".")
    owner = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
    if module == "ray._raylet":
        monkeypatch.setattr(importlib.import_module(module), "Config", object())  # compiled: it can't be cut down
    else:
        while hasattr(owner, last):  # inherited ones too
            holder = next((each for each in getattr(owner, "__mro__", ()) if last in vars(each)), owner)
            monkeypatch.delattr(holder, last)
    with pytest.raises(
        UserError, match=rf"{re.escape(path)}, which {private.PRIVATE_NAMES[name]}: install the version of Ray"
    ):
        private.load_private(name)


def test_private_names_of_ray_stand_in_one_file():
    pattern = re.compile(r"\bray[\w.]*(?<=\.)_[a-z]\w*|_create_default_callbacks|_TorchBackend|\bimport _raylet")
    files = [path for path in PACKAGE.rglob("*.py") if path != Path(private.__file__)]
    assert {path.name: found for path in files if (found := pattern.findall(path.read_text(encoding="utf-8")))} == {}
