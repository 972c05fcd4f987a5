"""Tables of made-up patients."""

import numpy as np
import pandas as pd

from clipcovid.data.manifest import normalize_columns

LABELS = ("COVID-19", "Non-COVID", "Normal")


def people(count, labels=LABELS, shares=(0.1, 0.3, 0.6)):
    """1 to 4 images each of `count` patients; what a patient has doesn't hang on how many there are."""
    rows = []
    for patient in range(count):
        rng = np.random.default_rng(patient)
        label = rng.choice(labels, p=shares)
        rows += [{"patient_id": f"p{patient}", "label": label} for _ in range(rng.integers(1, 5))]
    table = normalize_columns(pd.DataFrame(rows))
    table["path"] = table["patient_id"] + "_" + table.groupby("patient_id").cumcount().astype(str) + ".png"
    return table.assign(image_id=table["path"])
