"""Captions by BLIP, of a tiny one in its real format."""

import pandas as pd
import pytest
import torch
from conftest import HERE
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest, normalize_columns, read_manifest
from clipcovid.inference.generate import GenerateConfig, class_name_leaks, generate
from clipcovid.models.dual_encoder import train_tokenizer


def quiet(text):
    pass


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A folder as Salesforce/blip-image-captioning-base is one, of random weights."""
    folder = tmp_path_factory.mktemp("blip")
    tokenizer = train_tokenizer(["a chest x-ray of normal lungs", "covid-19 pneumonia"], 200)
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = size | ids | {"vocab_size": len(tokenizer), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    vision = size | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    BlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizerFast.from_pretrained(folder)
    ).save_pretrained(folder)
    return folder


def made(phantoms, blip, **settings):
    return generate(GenerateConfig(data=phantoms, model=str(blip), tokens=6, compute=HERE, **settings), log=quiet)


def test_the_train_split_is_captioned_once(phantoms, blip):
    first = made(phantoms, blip)
    assert first.table["image_id"].tolist() == read_manifest(phantoms).rows("train")["image_id"].tolist()
    assert (first.table["caption"] == first.table["generated"]).all()
    assert first.created
    again = made(phantoms, blip)
    assert not again.created
    assert again.path == first.path
    pd.testing.assert_frame_equal(again.table, first.table)


def test_what_others_put_beside_unfinished_captions_stays(phantoms, blip):
    path = made(phantoms, blip, split="test").path
    path.unlink()
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "mine.parquet").write_text("theirs")
    assert made(phantoms, blip, split="test").created
    assert [left.name for left in path.with_suffix("").iterdir()] == ["mine.parquet"]


def test_the_label_stands_behind_where_it_is_asked_for(phantoms, blip):
    found = made(phantoms, blip, label="append", split="val")
    labels = read_manifest(phantoms).table.set_index("image_id")["label"]
    for row in found.table.to_dict("records"):
        assert row["caption"] == f"{row['generated']}, {labels[row['image_id']]}"
    prompted = made(phantoms, blip, split="val", prompt="a chest")
    assert prompted.table["generated"].str.startswith("a chest").all()


def test_classes_that_captions_name_are_counted(phantoms):
    manifest = read_manifest(phantoms)
    rows = manifest.rows("train")
    texts = [f"lungs, {label.upper()}!" if label == "Normal" else "abnormality" for label in rows["label"]]
    found = class_name_leaks(pd.DataFrame({"image_id": rows["image_id"], "generated": texts}), manifest)
    assert found == {"COVID-19": 0, "Non-COVID": 0, "Normal": int((rows["label"] == "Normal").sum())}


def test_what_is_no_blip_is_a_sentence(phantoms, tmp_path):
    with pytest.raises(UserError, match="there is no such folder; give a local folder"):
        made(phantoms, tmp_path / "nowhere")


def test_a_class_is_found_as_decoders_write_it_and_not_within_another():
    rows = pd.DataFrame({"image_id": list("abcde"), "label": ["COVID-19", "COVID-19", "COVID-19", "COVID", "COVID"]})
    manifest = Manifest(table=normalize_columns(rows.assign(split="train")), classes=("COVID-19", "COVID"), dataset="d")
    texts = ["signs of covid - 19 .", "COVID-19", "covid 1 9", "non - covid pneumonia", "non-COVID and covid"]
    assert class_name_leaks(pd.DataFrame({"image_id": rows["image_id"], "generated": texts}), manifest) == {
        "COVID-19": 2,
        "COVID": 1,
    }
