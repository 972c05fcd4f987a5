"""Real X-rays, where CLIPCOVID_REAL_DATA names the folder that holds them: known counts come out of `prepare`."""

from pathlib import Path

import numpy as np
import pytest
from conftest import LOCAL

from clipcovid.audit.associations import check_associations
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, read_prepared_set
from clipcovid.audit.shortcuts import check_shortcuts
from clipcovid.config import ImagesConfig
from clipcovid.data.packed import PackedImages
from clipcovid.data.prepare import PrepareConfig, count_by_split, prepare
from clipcovid.data.sources import ColumnsConfig

CLASSES = ["COVID-19", "Non-COVID", "Normal"]
SEG100 = ColumnsConfig(path="image", label="finding", caption="report")
RENAMED = {"seg100/{}": ("COVID-19, ARDS=COVID-19",)}  # six images have both findings


def counts(done, *columns):
    return count_by_split(done.manifest).set_index("split")[list(columns)].to_dict("list")


def covidquex_real(done, folder):
    asked = {"COVID-19": [32, 12, 21, 65], "Non-COVID": [43, 9, 28, 80], "Normal": [49, 7, 24, 80]}
    assert counts(done, *CLASSES) == asked
    packed = PackedImages(folder)
    masks = packed.masks("infection_mask", range(225))
    assert sum(not mask.any() for mask in masks) == 165
    lungs = np.array([mask is not None for mask in packed.masks("lung_mask", range(225))])
    assert set(done.manifest.table.loc[lungs, "label"]) == {"COVID-19"}


def covidquex_sample(done, folder):
    assert counts(done, "images", "lung masks", "infection masks") == {
        "images": [0, 0, 12, 12],
        "lung masks": [0, 0, 12, 12],
        "infection masks": [0, 0, 12, 12],
    }


def seg100(done, folder):
    assert counts(done, "images", "patients", "lung masks", "infection masks")["patients"][-1] == 73
    assert "age" in done.manifest.table


def cxr3(done, folder):
    table = done.manifest.table
    assert table["label"].value_counts().to_dict() == {"Non-COVID": 500, "Normal": 500, "COVID-19": 124}
    assert table["patient_id"].nunique() == 764
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    shares = table.groupby("label")["split"].value_counts(normalize=True).unstack()
    np.testing.assert_allclose(shares[["train", "val", "test"]], [[0.7, 0.1, 0.2]] * 3, atol=0.04)
    audited, config = AuditData(main=read_prepared_set(folder, "cxr3")), AuditConfig(data=folder)
    found = {one.check: one for one in [*check_associations(audited, config), *check_shortcuts(audited, config)]}
    assert "all 124 images of COVID-19 come from the source cohen" in found["class × source"].summary
    assert "122 of the 124 images of COVID-19 are not square" in found["class × file shape"].summary
    assert {found[f"class from {what}"].severity for what in ("file properties", "borders")} == {"high"}


def medpix2(done, folder):
    asked = {"images": [1653, 197, 200, 2050]}
    assert counts(done, "images") == asked
    assert counts(done, "captions")["captions"][-1] == 2029
    assert (done.manifest.table[["modality", "diagnosis"]] != "").any().all()


@pytest.mark.parametrize(
    ("source", "root", "columns", "images", "check"),
    [
        ("covidquex", "covidquex-real", ColumnsConfig(), 225, covidquex_real),
        ("covidquex", "covidquex-sample", ColumnsConfig(), 12, covidquex_sample),
        ("table", "seg100/{}", SEG100, 100, seg100),
        ("imagefolder", "cxr3", ColumnsConfig(), 1124, cxr3),
        ("medpix2", "medpix2", ColumnsConfig(), 2050, medpix2),
    ],
    ids=["covidquex-real", "covidquex-sample", "seg100", "cxr3", "medpix2"],
)
def test_known_counts_come_out(real_data, cluster, tmp_path, source, root, columns, images, check):
    place = real_data / root.format("")
    if root.endswith("{}"):
        place = next(Path(place).glob("*.csv"))
    config = PrepareConfig(
        source=source,
        root=str(place),
        out=tmp_path,
        columns=columns,
        rename=RENAMED.get(root, ()),
        images=ImagesConfig(size=64),
        max_bad=0,
        compute=LOCAL,
    )
    done = prepare(config, log=lambda text: None)
    assert (len(done.manifest.table), len(done.quarantine)) == (images, 0)
    assert len(PackedImages(tmp_path).images(range(3))) == 3
    check(done, tmp_path)
