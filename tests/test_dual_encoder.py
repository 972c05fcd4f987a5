"""Two encoders of anybody's choice as one CLIP."""

import json
import shutil

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from clipcovid.config import ClipConfig, UserError
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.models.clip_model import build_untrained_clip, checkpoint_activations
from clipcovid.models.dual_encoder import DualEncoderSpec, build_dual_encoder, train_tokenizer

TEXTS = ["axial CT of the chest with a mass", "sagittal MR of the brain", "a normal chest X-ray, PA view"]


def towers(**changes):
    given = {"arch": "resnet18", "weights": "none", "text": "mini", "text_weights": "none", "width": 32}
    given |= {"projection": "linear", "image_size": 48, "context": 40, "vocabulary": 300}
    return DualEncoderSpec(**(given | changes))


def clinical_bert(folder, *, cut=False):
    """A tiny model as emilyalsentzer/Bio_ClinicalBERT is published: BERT with its pretraining heads, and a tokenizer."""
    tokenizer = train_tokenizer(TEXTS, 300)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(7)
    model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    if cut:
        state = {key: value.clone() for key, value in model.state_dict().items() if "layer.1" not in key}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return model


def test_a_published_text_encoder_is_loaded_whole(tmp_path):
    model = clinical_bert(tmp_path)
    clip = build_dual_encoder(towers(text=str(tmp_path), text_weights="pretrained"), [], seed=0)
    own, theirs = clip.model.text.transformer.state_dict(), model.bert.state_dict()
    assert own.keys() == theirs.keys()
    for key, value in theirs.items():
        assert own[key].equal(value), key
    random = build_dual_encoder(towers(text=str(tmp_path)), [], seed=0).model.text.transformer.state_dict()
    assert not random["encoder.layer.0.output.dense.weight"].equal(theirs["encoder.layer.0.output.dense.weight"])


def test_text_weights_that_lack_a_layer_are_refused(tmp_path):
    clinical_bert(tmp_path, cut=True)
    with pytest.raises(UserError, match=r"layer\.1"):
        build_dual_encoder(towers(text=str(tmp_path), text_weights="pretrained"), [], seed=0)


def test_what_is_not_there_is_no_random_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="Bio_ClinicalBERT"):
        build_dual_encoder(towers(text="emilyalsentzer/Bio_ClinicalBERT", text_weights="pretrained"), [], seed=0)
    with pytest.raises(UserError, match="resnet18"):
        build_dual_encoder(towers(weights="pretrained"), TEXTS, seed=0)
    with pytest.raises(UserError, match="no published weights"):
        build_dual_encoder(towers(text_weights="pretrained"), TEXTS, seed=0)
    with pytest.raises(UserError, match="not a timm"):
        build_dual_encoder(towers(arch="resnet19"), TEXTS, seed=0)


def test_an_image_encoders_file_is_loaded(tmp_path):
    made = timm.create_model("resnet18").state_dict()
    save_file(
        {key: value + 0.01 if value.is_floating_point() else value for key, value in made.items()}, tmp_path / "a"
    )
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    trunk = build_dual_encoder(towers(weights=str(tmp_path / "a.safetensors")), TEXTS, seed=0).model.visual.trunk
    assert trunk.conv1.weight.allclose(made["conv1.weight"] + 0.01)


def test_a_checkpoint_loads_here_and_in_open_clip(tmp_path, monkeypatch):
    clip = build_dual_encoder(towers(projection="mlp"), TEXTS, seed=3)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.01)
    save_clip(tmp_path, clip)
    again = load_clip(ClipConfig(model="ignored", pretrained=str(tmp_path)))
    images = torch.randint(0, 256, (2, 48, 48), dtype=torch.uint8).numpy()
    assert again.encode_images(images).allclose(clip.encode_images(images), atol=1e-6)
    assert again.encode_texts(TEXTS).allclose(clip.encode_texts(TEXTS), atol=1e-6)
    monkeypatch.chdir(tmp_path)  # where open_clip alone finds the text encoder's config
    plain = open_clip.create_model(f"local-dir:{tmp_path}", pretrained_text=False).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(plain.encode_text(tokens), dim=-1)
    assert theirs.allclose(clip.encode_texts(TEXTS), atol=1e-6)


def test_tokenizers_are_the_same_in_every_process_and_know_other_letters():
    one, other = train_tokenizer(TEXTS, 300), train_tokenizer(TEXTS, 300)
    assert one.get_vocab() == other.get_vocab()
    ids = one(["胸部 CT", ""])["input_ids"]
    assert ids[0][0] == one.cls_token_id
    assert len(ids[1]) == 2
    assert one.decode(one(TEXTS[0])["input_ids"], skip_special_tokens=True) == TEXTS[0].lower()


def test_padding_is_no_text():
    clip = build_dual_encoder(towers(), TEXTS, seed=0)
    alone, padded = clip.encode_texts(TEXTS[1:2]), clip.encode_texts([TEXTS[1], "the " * 30])[:1]
    assert alone.allclose(padded, atol=1e-5)
    assert clip.count_truncated(["the " * 100, "short"])["texts"] == 1
    assert clip.tokenize(TEXTS).shape[1] < 40


def test_open_clips_own_text_encoders_get_their_whole_context(tmp_path):
    """Also with a tokenizer of Hugging Face, as SigLIP has it."""
    save_clip(tmp_path, build_dual_encoder(towers(), TEXTS, seed=0))
    cfg = json.loads((tmp_path / "open_clip_config.json").read_text())
    text = {"context_length": 40, "vocab_size": 400, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "text"}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps(cfg | {"model_cfg": cfg["model_cfg"] | {"text_cfg": text, "custom_text": True}})
    )
    shutil.rmtree(tmp_path / "text")
    clip = build_untrained_clip(tmp_path)
    assert clip.tokenize(TEXTS).shape == (3, 40)
    assert clip.encode_texts(TEXTS).shape == (3, 32)


def test_the_full_pair_of_resnet50_and_twelve_layers_trains_a_step():
    from clipcovid.methods.contrastive import ContrastiveModule, contrastive_loss

    clip = build_dual_encoder(towers(arch="resnet50", text="base", image_size=64), TEXTS, seed=0)
    assert len(clip.model.text.transformer.encoder.layer) == 12
    assert clip.model.text.transformer.config.hidden_size == 768
    checkpoint_activations(clip.model)
    module = ContrastiveModule(clip).train()
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    seen, read, scale = module(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), clip.tokenize(TEXTS))
    contrastive_loss(seen, read, scale, None, torch.arange(3), "multi-positive").backward()
    optimizer.step()
    assert all(weight.grad is not None for weight in module.parameters())
    changed = {name for name, weight in module.named_parameters() if not weight.equal(before[name])}
    layers = [f"clip.text.transformer.encoder.layer.{layer}.output.dense.weight" for layer in range(12)]
    assert {
        "clip.visual.trunk.conv1.weight",
        "clip.visual.head.proj.weight",
        "clip.text.proj.weight",
        *layers,
    } <= changed
