"""A captioner that writes: a frozen encoder's embedding becomes the first words of a decoder, which goes on from there.

ClipCap (Mokady et al. 2021): the embedding is projected into a prefix of the decoder's input; both are trained.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from clipcovid.config import UserError, summarize_error
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest
from clipcovid.evaluate.captions import retrieval_baselines
from clipcovid.io.files import atomic_write, write_json
from clipcovid.methods.captioner.config import CaptionerConfig
from clipcovid.methods.task import Batch, Examples, Predictor, Task, ValidateFn
from clipcovid.models.decoder import Decoder, build_decoder, build_untrained_decoder, load_or_train_tokenizer

PAIRS_FILE = "known"  # .safetensors and .json in a checkpoint: the training images' embeddings and captions


@dataclass(frozen=True, kw_only=True)
class CaptionerState:
    """The tokenizer, and the training pairs, from which the baselines take their captions."""

    tokenizer: Any
    captions: list[str]
    """The training captions, each once."""
    images: np.ndarray
    """Embeddings of the training images (m, d) float16."""
    caption_index: np.ndarray
    """Each training image's caption (m,) int64."""
    embeddings: Embeddings | None = None
    """All images' embeddings; None in a checkpoint."""


class CaptionerTask(Task[CaptionerConfig, CaptionerState]):
    """A decoder on embeddings, judged by the likelihood of the true captions, and in the end by the captions it writes."""

    monitor: ClassVar[tuple[str, str]] = ("loss", "min")
    validation_metrics: ClassVar[dict[str, str]] = {"loss": "min", "perplexity": "min"}

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> CaptionerState:
        """The tokenizer and the training pairs; without embeddings a `UserError`."""
        embeddings = _require_embeddings(embeddings)
        rows, _ = manifest.rows_with("train", self.config.required_columns)
        captions, caption_index = np.unique(rows["caption"].to_numpy(str), return_inverse=True)
        return CaptionerState(
            tokenizer=self._tokenizer(rows["caption"].tolist()),
            captions=[str(caption) for caption in captions],
            images=embeddings.load(rows["image_id"]),
            caption_index=caption_index.astype(np.int64),
            embeddings=embeddings,
        )

    def _tokenizer(self, captions: list[str]) -> Any:
        try:
            return load_or_train_tokenizer(self.config.decoder, captions, self.config.vocabulary)
        except UserError:
            raise
        except Exception as error:  # the hub and tokenizers each raise their own kinds
            raise UserError(
                f"--decoder {self.config.decoder} can't be had ({summarize_error(error)}): give mini, small or a folder."
            ) from error

    def examples(
        self, data: Path, manifest: Manifest, split: str, state: CaptionerState, *, training: bool = False
    ) -> Examples:
        """The split's images that have a caption, by their embeddings."""
        rows, notes = manifest.rows_with(split, self.config.required_columns)
        features = _require_embeddings(state.embeddings).load(rows["image_id"]).astype(np.float32)
        tokens, truncated = tokenize(state.tokenizer, rows["caption"].tolist(), self.config.context)
        if training and truncated:
            notes["captions are longer than --context and cut off"] = truncated

        def read(indices: np.ndarray) -> Batch:
            longest = max(1, int((tokens[indices] >= 0).sum(axis=1).max()))
            rows = [int(index) for index in indices]
            return {"embedding": features[indices], "tokens": tokens[indices, :longest], "row": rows}

        return Examples(rows=rows, notes=notes, read=read)

    def build(self, train: Examples, state: CaptionerState) -> Decoder:
        """The decoder with a fresh prefix."""
        return build_decoder(
            self.config.decoder,
            state.tokenizer,
            feature_dim=state.images.shape[1],
            prefix=self.config.prefix,
            context=self.config.context,
            dropout=self.config.dropout,
            seed=self.config.seed,
        )

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architecture at random."""
        return build_untrained_decoder(folder, prefix=self.config.prefix)[0]

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Cross entropy of the caption's words, a mean over each caption and then over captions."""
        return {"loss": self._losses(module, batch).mean()}

    def _losses(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        tokens = batch["tokens"]
        logits = module(batch["embedding"], tokens.clamp(min=0)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-1, reduction="none")
        return losses.view(tokens.shape).sum(dim=1) / (tokens >= 0).sum(dim=1)

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """For validation: the loss of each caption (n, 1)."""
        return lambda batch: self._losses(module, batch).unsqueeze(1)

    def validation_scores(self, examples: Examples, outputs: np.ndarray) -> dict[str, float]:
        """The mean loss of captions, and its exponential: the perplexity a token."""
        loss = float(outputs.mean())
        return {"loss": loss, "perplexity": float(np.exp(min(loss, 50)))}

    def test_predictor(self, module: Any, state: CaptionerState) -> Predictor:
        """Captions and embeddings: an object array (n,) of (beam search's text, greedy search's text, embedding)."""

        def write(embeddings: torch.Tensor, beams: int) -> list[str]:
            ids = module.generate(embeddings, beams=beams, length=self.config.context)
            return [text.strip() for text in state.tokenizer.batch_decode(ids, skip_special_tokens=True)]

        def predict(batch: Batch) -> np.ndarray:
            greedy = write(batch["embedding"], 1)
            best = write(batch["embedding"], self.config.beams) if self.config.beams > 1 else greedy
            outputs = np.empty(len(greedy), object)
            outputs[:] = list(zip(best, greedy, batch["embedding"].cpu().numpy(), strict=True))
            return outputs

        return predict

    def predictions_table(self, examples: Examples, outputs: np.ndarray, state: CaptionerState) -> pd.DataFrame:
        """image_id, hypothesis, the baselines' captions (see `retrieval_baselines`), and where it is known the reference."""
        best, greedy, images = zip(*outputs, strict=True)
        columns = {"image_id": examples.rows["image_id"].to_numpy(), "hypothesis": list(best)}
        columns |= retrieval_baselines(
            np.stack(images), state.images, state.captions, state.caption_index, self.config.seed
        )
        if self.config.beams > 1:
            columns["hypothesis_greedy"] = list(greedy)
        table = pd.DataFrame(columns)
        references = examples.rows["caption"]
        return table.assign(reference=references.to_numpy()) if (references != "").all() else table

    def select_on_validation(
        self, module: torch.nn.Module, train: Examples, state: CaptionerState, validate: ValidateFn
    ) -> tuple[dict[str, Any], CaptionerState]:
        """Nothing is chosen; the number of different training captions is told."""
        return {"training_captions": len(state.captions)}, state

    def save(self, module: Any, state: CaptionerState, folder: Path) -> None:
        """The weights, the decoder's config and tokenizer as Hugging Face writes them, and the training pairs."""
        super().save(module, state, folder)
        module.save(folder, state.tokenizer)
        with atomic_write(folder / f"{PAIRS_FILE}.safetensors") as partial:
            save_file({"images": state.images, "which": state.caption_index}, partial)
        write_json(folder / f"{PAIRS_FILE}.json", state.captions)

    def load(self, folder: Path) -> tuple[torch.nn.Module, CaptionerState]:
        """The decoder, the tokenizer and the training pairs."""
        module, tokenizer = build_untrained_decoder(folder, prefix=self.config.prefix)
        pairs = load_file(folder / f"{PAIRS_FILE}.safetensors")
        captions = json.loads((folder / f"{PAIRS_FILE}.json").read_text(encoding="utf-8"))
        state = CaptionerState(
            tokenizer=tokenizer, captions=captions, images=pairs["images"], caption_index=pairs["which"]
        )
        return self.load_weights(module, folder), state


def tokenize(tokenizer: Any, captions: list[str], context: int) -> tuple[np.ndarray, int]:
    """Ids (n, context) int64 that end with the end mark, padded with -1; and how many captions are cut off."""
    ids, end = tokenizer(captions, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    tokens = np.full((len(ids), context), -1, np.int64)
    for row, caption in zip(tokens, ids, strict=True):
        marked = [*caption[: context - 1], end]
        row[: len(marked)] = marked
    return tokens, sum(len(caption) > context - 1 for caption in ids)


def _require_embeddings(embeddings: Embeddings | None) -> Embeddings:
    if embeddings is None:
        raise UserError("A captioner needs embeddings: run clipcovid embed first.")
    return embeddings
