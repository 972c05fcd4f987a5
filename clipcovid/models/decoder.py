"""Text decoders of GPT-2's make that begin with an image's embedding, through Hugging Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clipcovid.config import UserError
from clipcovid.models.availability import check_hub_model_available
from clipcovid.models.presets import DECODERS
from clipcovid.models.state_dicts import check_weights, error_reason

DECODER_FOLDER = "decoder"  # of a checkpoint, as Hugging Face writes a config and a tokenizer
END_TOKEN = "<|endoftext|>"


class Decoder(torch.nn.Module):
    """Logits (n, t, vocabulary) of the next word, from embeddings (n, d) and words (n, t)."""

    def __init__(self, body: Any, feature_dim: int, prefix_length: int) -> None:
        super().__init__()
        self.body, self.width = body, int(body.config.n_embd)
        self.to_prefix = torch.nn.Sequential(
            torch.nn.Linear(feature_dim, self.width * prefix_length // 2),
            torch.nn.Tanh(),
            torch.nn.Linear(self.width * prefix_length // 2, self.width * prefix_length),
        )

    def forward(self, embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits at each of `tokens` (n, t), each by those before it and the embedding."""
        first = self._first(embeddings)
        words = self.body.get_input_embeddings()(tokens[:, :-1])
        logits: torch.Tensor = self.body(inputs_embeds=torch.cat([first, words.to(first.dtype)], dim=1)).logits
        return logits[:, first.shape[1] - 1 :]

    def _first(self, embeddings: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.to_prefix(embeddings).unflatten(1, (-1, self.width))
        return found

    @torch.no_grad()
    def generate(self, embeddings: torch.Tensor, *, beams: int, length: int) -> torch.Tensor:
        """Ids (n, at most length) of captions: greedy with 1 beam, else by beam search the likeliest a word."""
        first = self._first(embeddings)
        ones = torch.ones(first.shape[:2], dtype=torch.long, device=first.device)
        ids: torch.Tensor = self.body.generate(
            inputs_embeds=first, attention_mask=ones, num_beams=beams, max_new_tokens=length, do_sample=False
        )
        return ids

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write what `build_untrained_decoder` reads."""
        self.body.config.save_pretrained(folder / DECODER_FOLDER)
        tokenizer.save_pretrained(folder / DECODER_FOLDER)


def load_or_train_tokenizer(decoder: str, texts: Sequence[str], vocabulary: int) -> Any:
    """A published decoder's tokenizer, or for a preset a byte-level BPE trained on `texts`, which knows every letter."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if decoder not in DECODERS:
        found = AutoTokenizer.from_pretrained(decoder)
        if found.eos_token_id is None:
            raise UserError(f"--decoder {decoder} has a tokenizer without an end mark: captions would never end.")
        return found
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_TOKEN], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END_TOKEN, bos_token=END_TOKEN, pad_token=END_TOKEN)


def build_decoder(
    decoder: str, tokenizer: Any, *, feature_dim: int, prefix: int, context: int, dropout: float, seed: int
) -> Decoder:
    """A decoder with a fresh prefix of `prefix` places; random numbers follow from `seed`.

    A preset has random weights; anything else is loaded, whole, or a `UserError`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    rates: dict[str, Any] = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    if decoder in DECODERS:
        layers, width, heads = DECODERS[decoder]
        ends: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=prefix + context + 1,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            **ends,
            **rates,
        )
        body: Any = GPT2LMHeadModel(config)
    else:
        check_hub_model_available(decoder, "--decoder")
        loader: Any = GPT2LMHeadModel
        try:
            body, about = loader.from_pretrained(decoder, dtype=torch.float32, output_loading_info=True, **rates)
        except Exception as error:  # the hub and torch each raise their own kinds
            raise UserError(
                f"--decoder {decoder} can't be had ({error_reason(error)}): give mini, small, or a local folder of a GPT-2."
            ) from error
        if lacking := sorted(about["missing_keys"]):
            raise UserError(f"--decoder {decoder} lacks weights of a GPT-2, {lacking[0]} first.")
        check_weights(body.state_dict(), f"--decoder {decoder}")
        places = body.config.n_positions
        if places < prefix + context + 1:
            raise UserError(
                f"--decoder {decoder} has {places} places, too few for --prefix {prefix} and --context {context}."
            )
    return Decoder(_set_end_token(body, tokenizer), feature_dim, prefix)


def _set_end_token(body: Any, tokenizer: Any) -> Any:
    """A decoder that ends where the tokenizer says, and has no settings of its own for how captions are searched for."""
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    body.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    return body


def build_untrained_decoder(folder: Path, *, prefix: int) -> tuple[Decoder, Any]:
    """The decoder and tokenizer of a checkpoint, with random weights."""
    from safetensors import safe_open
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    with safe_open(folder / "model.safetensors", "pt") as file:
        features = file.get_slice("to_prefix.0.weight").get_shape()[1]
    body: Any = GPT2LMHeadModel(GPT2Config.from_pretrained(folder / DECODER_FOLDER))
    tokenizer = AutoTokenizer.from_pretrained(folder / DECODER_FOLDER)
    return Decoder(_set_end_token(body, tokenizer), features, prefix), tokenizer
