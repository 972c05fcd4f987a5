"""A captioner that writes: a frozen encoder's embedding becomes the first words of a decoder, which goes on from there.

ClipCap (Mokady et al. 2021): the embedding is projected into a prefix of the decoder's input; both are trained.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from clipcovid.config import UserError, summarize_error
from clipcovid.data.manifest import Manifest
from clipcovid.evaluate.captions import retrieval_baselines
from clipcovid.io.files import atomic_write, write_json
from clipcovid.methods.task import Batch, Examples, Predictor, Task
from clipcovid.models.decoder import Decoder, build_decoder, build_untrained_decoder, load_or_train_tokenizer

KNOWN = "known"  # .safetensors and .json in a checkpoint: the training images' embeddings and captions


class ClipCap(Task):
    """A decoder on embeddings, judged by the likelihood of the true captions, and in the end by what it writes."""

    monitor: ClassVar[tuple[str, str]] = ("loss", "min")
    validation_metrics: ClassVar[dict[str, str]] = {"loss": "min", "perplexity": "min"}
    tokenizer: Any = None
    known: dict[str, np.ndarray] | None = None
    """`images` (m, d) float16 and `which` (m,) int64: the training embeddings, and which of `said` each has."""
    said: list[str] | None = None
    """The training captions, each once."""

    def examples(self, data: Path, manifest: Manifest, split: str, *, training: bool = False) -> Examples:
        """The split's images that have a caption, by their embeddings."""
        if self.embeddings is None:
            raise UserError("A captioner needs embeddings: run clipcovid embed first.")
        rows, notes = manifest.eligible(split, self.config.required_columns)
        features = self.embeddings.load(rows["image_id"])
        captions = rows["caption"].tolist()
        if training:
            self.said, which = (list(found) for found in np.unique(np.array(captions, str), return_inverse=True))
            self.said = [str(text) for text in self.said]
            self.known = {"images": features, "which": np.array(which, np.int64)}
            self.tokenizer = self._tokenizer(captions)
        tokens, cut = self._tokens(captions)
        if training and cut:
            notes["captions are longer than --context and cut off"] = cut
        values = features.astype(np.float32)

        def read(take: np.ndarray) -> Batch:
            longest = max(1, int((tokens[take] >= 0).sum(axis=1).max()))
            return {"embedding": values[take], "tokens": tokens[take, :longest], "row": [int(row) for row in take]}

        return Examples(rows=rows, notes=notes, read=read)

    def _tokenizer(self, captions: list[str]) -> Any:
        try:
            return load_or_train_tokenizer(self.config.decoder, captions, self.config.vocabulary)
        except UserError:
            raise
        except Exception as error:  # the hub and tokenizers each raise their own kinds
            raise UserError(
                f"--decoder {self.config.decoder} can't be had ({summarize_error(error)}): give mini, small or a folder."
            ) from error

    def _tokens(self, captions: list[str]) -> tuple[np.ndarray, int]:
        """Ids (n, context) int64 that end with the end mark, -1 behind; and how many captions are cut off."""
        ids = self.tokenizer(captions, add_special_tokens=False)["input_ids"]
        room, end = self.config.context, self.tokenizer.eos_token_id
        tokens = np.full((len(ids), room), -1, np.int64)
        for row, some in zip(tokens, ids, strict=True):
            kept = [*some[: room - 1], end]
            row[: len(kept)] = kept
        return tokens, sum(len(some) > room - 1 for some in ids)

    def build(self) -> Decoder:
        """The decoder with a fresh prefix; the training examples must be made before."""
        assert self.known is not None
        return build_decoder(
            self.config.decoder,
            self.tokenizer,
            features=self.known["images"].shape[1],
            prefix=self.config.prefix,
            context=self.config.context,
            dropout=self.config.dropout,
            seed=self.config.seed,
        )

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architecture, and the tokenizer that was saved."""
        module, self.tokenizer = build_untrained_decoder(folder, prefix=self.config.prefix)
        return module

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Cross entropy of the caption's words, a mean over each caption and then over captions."""
        return {"loss": self._each(module, batch).mean()}

    def _each(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        tokens = batch["tokens"]
        logits = module(batch["embedding"], tokens.clamp(min=0)).float()
        each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-1, reduction="none")
        return each.view(tokens.shape).sum(dim=1) / (tokens >= 0).sum(dim=1)

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """For validation: the loss of each caption (n, 1)."""
        return lambda batch: self._each(module, batch).unsqueeze(1)

    def validation_scores(self, examples: Examples, outputs: np.ndarray) -> dict[str, float]:
        """The mean loss of captions, and its exponential: the perplexity a token."""
        loss = float(outputs.mean())
        return {"loss": loss, "perplexity": float(np.exp(min(loss, 50)))}

    def test_predictor(self, module: Any) -> Predictor:
        """What is written of each image, an object array (n,) of (beam, greedy) texts, and its embedding."""

        def write(embeddings: torch.Tensor, beams: int) -> list[str]:
            ids = module.write(embeddings, beams=beams, length=self.config.context)
            return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

        def predict(batch: Batch) -> np.ndarray:
            greedy = write(batch["embedding"], 1)
            best = write(batch["embedding"], self.config.beams) if self.config.beams > 1 else greedy
            made = np.empty(len(greedy), object)
            made[:] = list(zip(best, greedy, batch["embedding"].cpu().numpy(), strict=True))
            return made

        return predict

    def table(self, examples: Examples, outputs: np.ndarray) -> pd.DataFrame:
        """image_id, hypothesis, what else could be said (see `retrieval_baselines`), and where it is known the reference."""
        assert self.known is not None
        assert self.said is not None
        images = np.stack([one[2] for one in outputs])
        found = {"image_id": examples.rows["image_id"].to_numpy(), "hypothesis": [one[0] for one in outputs]}
        found |= retrieval_baselines(images, self.known["images"], self.said, self.known["which"], self.config.seed)
        if self.config.beams > 1:
            found["hypothesis_greedy"] = [one[1] for one in outputs]
        table = pd.DataFrame(found)
        captions = examples.rows["caption"]
        return table.assign(reference=captions.to_numpy()) if (captions != "").all() else table

    def calibrate(self, module: torch.nn.Module, evaluate: Callable[[], dict[str, float]]) -> dict[str, Any]:
        """How many of the training captions there were to say."""
        assert self.said is not None
        return {"training_captions": len(self.said)}

    def save(self, module: Any, folder: Path) -> None:
        """The weights, the decoder's config and tokenizer as Hugging Face writes them, and what was learned from."""
        super().save(module, folder)
        module.save(folder, self.tokenizer)
        assert self.known is not None
        with atomic_write(folder / f"{KNOWN}.safetensors") as partial:
            save_file(self.known, partial)
        write_json(folder / f"{KNOWN}.json", self.said)

    def load(self, folder: Path) -> torch.nn.Module:
        """The module as it was saved."""
        self.said = json.loads((folder / f"{KNOWN}.json").read_text(encoding="utf-8"))
        self.known = dict(load_file(folder / f"{KNOWN}.safetensors"))
        return super().load(folder)
