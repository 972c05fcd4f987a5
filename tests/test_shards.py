from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipcovid.config import ComputeConfig
from clipcovid.io.files import atomic_write
from clipcovid.ray_backend.resources import plan_resources
from clipcovid.ray_backend.shards import read_shards, sharded_map, split_rows

HERE = plan_resources(ComputeConfig(workers=0), [], gpu=False)
ROWS = np.arange(10)[::-1]


class Square:
    """Writes a shard of squares; dies, as if killed, at the item that begins with `dies`."""

    def __init__(self, *, dies=None):
        self.dies = dies

    def __call__(self, item):
        if item["rows"][0] == self.dies:
            raise KeyboardInterrupt
        with atomic_write(Path(item["path"])) as partial:
            pd.DataFrame({"row": item["rows"], "square": np.square(item["rows"])}).to_parquet(partial)
        return {"images": len(item["rows"])}


def run(folder, lines, **settings):
    return sharded_map(
        folder,
        split_rows(ROWS, 3),
        Square,
        HERE,
        label="Squaring",
        settings=settings,
        resume_message="{done} of {shards} shards, {images_done} of {images} images",
        log=lines.append,
    )


def test_shards_hold_every_row_once_and_in_order(tmp_path):
    lines = []
    paths = run(tmp_path, lines)
    assert [path.name for path in paths] == [f"{number:05}.parquet" for number in range(4)]
    assert read_shards(paths).to_dict("list") == {"row": ROWS.tolist(), "square": (ROWS**2).tolist()}
    assert lines == []


def test_a_killed_job_does_only_what_is_missing_and_counts_it(tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [], dies=3)
    paths, lines = sorted(tmp_path.iterdir()), []
    times = [path.stat().st_mtime_ns for path in paths]
    assert len(paths) == 2
    capfd.readouterr()
    assert len(run(tmp_path, lines)) == 4
    assert lines == ["Going on: 2 of 4 shards, 6 of 10 images."]
    assert "4/4" in capfd.readouterr().err, "the bar ends at the images that were missing"
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_a_shard_counts_wherever_it_stands_among_the_others(tmp_path):
    paths, lines = run(tmp_path, []), []
    paths[1].unlink()
    run(tmp_path, lines)
    assert lines == ["Going on: 3 of 4 shards, 7 of 10 images."]
    assert read_shards(paths)["row"].tolist() == ROWS.tolist()


def test_nothing_is_worked_on_where_all_shards_exist(tmp_path):
    run(tmp_path, [])
    lines = []
    run(tmp_path, lines, dies=9)
    assert lines == ["Going on: 4 of 4 shards, 10 of 10 images."]
