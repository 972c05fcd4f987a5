"""Small folders laid out as COVID-QU-Ex and MedPix are."""

import json

from pictures import mask, picture


def quex(root, name="a", split="Train", label="Normal", kinds=("lung masks", "infection masks"), seed=0, **how):
    picture(root / split / label / "images" / f"{name}.png", seed, **how)
    for kind in kinds:
        mask(root / split / label / kind / f"{name}.png")


def medpix(root, **splits):
    for split, made in splits.items():
        lines = []
        for number, (case, caption) in enumerate(made):
            name = f"{case}_{split}{number}"
            picture(root / "images" / f"{name}.jpg", number)
            what = {"Plane": "Axial", "Caption": caption, "Modality": "CT - noncontrast", "Age": 27, "Sex": "male"}
            row = {"Type": "CT", "U_id": case, "image": name, "Description": what, "Location": "Head"}
            lines.append(json.dumps(row | {"Location Category": "Brain"}))
        (root / f"descriptions_{split}.jsonl").write_text("\n".join(lines))
    topics = [{"U_id": "MPX1", "Case": {"Title": "A case", "Case Diagnosis": "Stroke"}}, {"U_id": "MPX2", "Case": None}]
    (root / "Case_topic.json").write_text(json.dumps(topics))
