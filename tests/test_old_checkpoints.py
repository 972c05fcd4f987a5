import numpy as np
import pytest
from conftest import HERE
from old_checkpoints import CHECKPOINTS, restore

from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.evaluate import captions
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.methods.registry import METHODS

TOLERANCES = dict.fromkeys(("tp", "fp", "fn", "tn"), 3)  # pixels, where arithmetic's order decides at a threshold


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A prepared folder of phantoms: the one that the checkpoints' predictions are of."""
    out = tmp_path_factory.mktemp("images")
    prepare(PrepareConfig(out=out, phantom=PhantomConfig(images=60, size=64), compute=HERE), log=lambda text: None)
    return out


def test_every_method_has_a_checkpoint_of_an_earlier_version():
    assert {folder.name for folder in CHECKPOINTS.iterdir()} == set(METHODS)


@pytest.mark.parametrize("method", sorted(folder.name for folder in CHECKPOINTS.iterdir()))
def test_a_checkpoint_of_an_earlier_version_predicts_what_it_did(method, images, tmp_path, monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)  # METEOR takes many seconds to start
    expected = restore(method, tmp_path / "run" / "checkpoint")
    config = PredictConfig(run=tmp_path / "run", data=images, split="all", out=tmp_path, compute=HERE)
    run = predict_split(config, log=lambda text: None).run
    table, _ = read_predictions(run.folder / "predictions" / "all.parquet")
    assert len(table) >= 60
    for column, values in expected.items():
        if isinstance(values[0], str):
            assert table[column].tolist() == values, column
        else:
            tolerance = TOLERANCES.get(column, 1e-5)
            np.testing.assert_allclose(table[column], values, atol=tolerance, rtol=1e-5, err_msg=column)
