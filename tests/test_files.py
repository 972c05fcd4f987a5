"""Files that appear whole or not at all."""

import datetime
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipcovid.files import read_parquet, write_json, write_parquet


def test_numbers_of_numpy_stay_numbers_in_json(tmp_path):
    given = {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "a": np.arange(2), "p": Path("x/y")}
    same = {"f": 0.5, "i": 3, "b": True, "a": [0, 1], "p": "x/y"}
    write_json(tmp_path / "a.json", given)
    assert json.loads((tmp_path / "a.json").read_text()) == same
    write_parquet(tmp_path / "a.parquet", pd.DataFrame({"x": [1]}), given)
    assert read_parquet(tmp_path / "a.parquet")[1] == same


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 1), {1, 2}, object()])
def test_what_json_has_no_form_for_is_refused_and_leaves_no_file(tmp_path, value):
    with pytest.raises(TypeError, match="has no form in JSON"):
        write_json(tmp_path / "a.json", {"a": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": np.float32("nan")})
    assert not list(tmp_path.iterdir())
