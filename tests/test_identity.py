"""What tells one run, file or table from another."""

from pathlib import Path

import numpy as np
import pytest

from clipcovid.identity import digest


def test_a_digest_goes_by_value_whatever_the_type():
    plain = {"a": [1, 0.5, True], "path": "x/y", "grid": [[1, 2]]}
    same = {"grid": np.array([[1, 2]]), "path": Path("x/y"), "a": (np.int64(1), np.float32(0.5), np.bool_(True))}
    assert digest(plain) == digest(same)
    assert digest({"a": 1}) != digest({"a": "1"}) != digest({"a": np.int32(1)})
    with pytest.raises(TypeError, match="object"):
        digest({"a": object()})
