"""Two encoders of anybody's choice as one CLIP: an image encoder of timm, a text encoder of Hugging Face, by open_clip."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from clipcovid.config import UserError
from clipcovid.io.files import write_json
from clipcovid.models.availability import check_hub_model_available, check_timm_available
from clipcovid.models.clip_model import Clip, build_untrained_clip, silence_logging
from clipcovid.models.cnn import load_backbone, timm_input_defaults
from clipcovid.models.presets import TEXT_ENCODERS
from clipcovid.models.state_dicts import check_weights, error_reason
from clipcovid.models.weights import OPENCLIP_CONFIG, TEXT_TOWER_FOLDER

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualEncoderSpec:
    """Two encoders, and where their weights come from."""

    arch: str
    """A timm architecture."""
    weights: str
    """Of the image encoder: pretrained, a file, or none."""
    text: str
    """A preset, a folder of Hugging Face's, or a model of its hub."""
    text_weights: str
    """Of the text encoder: pretrained, those that `text` names, or none."""
    width: int
    """Of the space that both are projected into."""
    projection: str
    """linear or mlp."""
    image_size: int
    """Side of the image encoder's input, in pixels."""
    context: int
    """The most tokens of a text."""
    vocabulary: int
    """The most tokens that a tokenizer trained here knows."""


def build_dual_encoder(towers: DualEncoderSpec, texts: Sequence[str], seed: int) -> Clip:
    """The two encoders with fresh projections; random numbers follow from `seed`.

    A preset's tokenizer is trained on `texts`. What can't be loaded, whole, is a `UserError`.
    """
    import open_clip

    if towers.text in TEXT_ENCODERS and towers.text_weights != "none":
        raise UserError(f"--text {towers.text} has no published weights: add --text-weights none.")
    check_timm_available(towers.arch, towers.weights)
    if towers.text not in TEXT_ENCODERS:
        check_hub_model_available(towers.text, "--text", weights=towers.text_weights != "none")
    defaults = timm_input_defaults(towers.arch, towers.weights)
    torch.manual_seed(seed)
    with TemporaryDirectory() as temporary, silence_logging():
        folder = Path(temporary)
        try:
            _write_text_tower(folder, towers, texts)
            cfg = {"model_cfg": _model_cfg(towers), "preprocess_cfg": {"size": towers.image_size}}
            if defaults and towers.weights != "none":
                cfg["preprocess_cfg"] |= {"mean": list(defaults.mean), "std": list(defaults.std)}
            write_json(folder / OPENCLIP_CONFIG, cfg)
            clip = build_untrained_clip(folder, timm_weights=towers.weights == "pretrained")
            if towers.weights not in ("pretrained", "none"):
                load_backbone(clip.model.visual.trunk, towers.arch, towers.weights)
            if towers.text_weights != "none":
                _load_text(clip.model.text.transformer, towers.text)
            if (longest := clip.model.text.context_length) and longest < towers.context:
                clip.tokenizer.context_length = clip.model_cfg["text_cfg"]["context_length"] = longest
        except UserError:
            raise
        except Exception as error:  # the hub, tokenizers, pickle and torch each raise their own kinds
            raise UserError(
                f"{towers.arch} and {towers.text} with the weights {towers.weights!r} and {towers.text_weights!r} can't be "
                f"had ({error_reason(error)}): give local files or folders, or --weights none."
            ) from error
    check_weights(clip.model.state_dict(), f"--weights {towers.weights} and --text {towers.text}")
    assert isinstance(clip.model, open_clip.CustomTextCLIP)
    return clip


def _model_cfg(towers: DualEncoderSpec) -> dict[str, Any]:
    return {
        "embed_dim": towers.width,
        "vision_cfg": {
            "timm_model_name": towers.arch,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": towers.projection,
            "image_size": towers.image_size,
        },
        "text_cfg": {
            "hf_model_name": TEXT_TOWER_FOLDER,
            "hf_tokenizer_name": TEXT_TOWER_FOLDER,
            "hf_proj_type": towers.projection,
            "hf_pooler_type": "mean_pooler",
            "context_length": towers.context,
        },
    }


def _write_text_tower(folder: Path, towers: DualEncoderSpec, texts: Sequence[str]) -> None:
    """Write the text encoder's config and its tokenizer, as a checkpoint has them."""
    from transformers import AutoConfig, AutoTokenizer, BertConfig

    if towers.text not in TEXT_ENCODERS:
        AutoConfig.from_pretrained(towers.text).save_pretrained(folder / TEXT_TOWER_FOLDER)
        AutoTokenizer.from_pretrained(towers.text).save_pretrained(folder)
        return
    layers, width, heads = TEXT_ENCODERS[towers.text]
    tokenizer = train_tokenizer(texts, towers.vocabulary)
    tokenizer.save_pretrained(folder)
    BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=towers.context,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder / TEXT_TOWER_FOLDER)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A lower-casing WordPiece tokenizer of BERT's make, trained on `texts`: a fast tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    # The trainer numbers letters within words as a hash map has them, another way in each process: so they come numbered.
    letters = sorted({letter for text in texts for letter in trained.normalizer.normalize_str(text)} - {" "})
    numbered = [*SPECIAL_TOKENS, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=numbered, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    first, last = ((token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(last, first)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL_TOKENS, strict=True)))


def _load_text(encoder: torch.nn.Module, name: str) -> None:
    """Load the published weights of a text encoder; any that are missing are a `UserError`."""
    from transformers import AutoModel

    pooler = {"add_pooling_layer": False} if getattr(encoder, "pooler", "no such part") is None else {}
    with contextlib.redirect_stdout(None):
        loaded, report = AutoModel.from_pretrained(name, output_loading_info=True, **pooler)
    lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacking:
        raise UserError(
            f"--text {name} lacks {len(lacking)} of its encoder's weights, for example {sorted(lacking)[0]}."
        )
    encoder.load_state_dict(loaded.state_dict())


def write_text_tower(folder: Path, clip: Clip) -> None:
    """Write into a checkpoint what its Hugging Face text encoder is built from, if it has one: config and tokenizer."""
    text = getattr(clip.model, "text", None)
    if text is not None and hasattr(text, "config"):
        text.config.save_pretrained(folder / TEXT_TOWER_FOLDER)
        clip.tokenizer.tokenizer.save_pretrained(folder)
