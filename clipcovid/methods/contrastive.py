"""Contrastive learning on pairs of images and texts, whatever the towers: losses that know which pairs match too."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from clipcovid.config import ClipConfig
from clipcovid.data.packed import PackedImages
from clipcovid.distributed import all_gather
from clipcovid.methods.configs import ContrastiveConfig
from clipcovid.methods.task import Batch, Examples, StateT, Task, target_reader
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.models.clip_model import Clip, checkpoint_activations, cosine_logits

BIAS_SAMPLE_SIZE = 64  # training pairs from which SigLIP's bias is set
MAX_LOGIT_SCALE = float(np.log(100))  # as CLIP was trained (Radford et al. 2021)


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    """InfoNCE both ways of logits (n, n), image by text (CLIP, Radford et al. 2021)."""
    diagonal = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def multi_positive_loss(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """InfoNCE both ways with the target spread over all matches of each row (UniCL, Yang et al. 2022).

    `matches` (n, n) bool, symmetric, the diagonal true. Where the matching texts are the very same it equals `clip_loss`.
    """
    targets = matches / matches.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def siglip_loss(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """The sigmoid loss of all pairs, summed over a row, mean over rows (SigLIP, Zhai et al. 2023).

    The matches of a row weigh together as much as one: else every image is drawn to all texts alike by how often its class
    happens to be in the batch, which drowns what it should learn.
    """
    weights = torch.where(matches, 1 / matches.sum(dim=1, keepdim=True), 1.0)
    return -(weights * F.logsigmoid(torch.where(matches, logits, -logits))).sum() / len(logits)


def soft_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross entropy both ways with soft targets: the softmax of the mean of the images' and the texts' own similarities.

    (The simple CLIP of Shariatnia 2021, as published dual encoders of ResNet50 and ClinicalBERT use it.) `images` and
    `texts` (n, d) of L2 norm 1.
    """
    logits = scale * images @ texts.T
    with torch.no_grad():
        targets = (scale * (images @ images.T + texts @ texts.T) / 2).softmax(dim=-1)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def positive_matrix(keys: torch.Tensor) -> torch.Tensor:
    """Which pairs match, (n, n) bool, by keys (n,) int64; a negative key is unknown and matches only itself."""
    same = (keys.unsqueeze(0) == keys.unsqueeze(1)) & (keys >= 0)
    return same | torch.eye(len(keys), dtype=torch.bool, device=keys.device)


def contrastive_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    keys: torch.Tensor,
    loss: str,
) -> torch.Tensor:
    """The loss of the pairs of all processes together; `images`, `texts` (n, d) of L2 norm 1, `keys` as in `positive_matrix`.

    Each process computes the loss of the whole batch, so their mean, and the mean of their gradients, are those of one
    process that has all pairs.
    """
    images, texts, keys = all_gather(images.float()), all_gather(texts.float()), all_gather(keys)
    with torch.autocast(images.device.type, enabled=False):
        scale = scale.float()
        if loss == "soft":
            return soft_loss(images, texts, scale)
        logits = cosine_logits(scale, images, texts)
        if loss == "clip":
            return clip_loss(logits)
        if loss == "multi-positive":
            return multi_positive_loss(logits, positive_matrix(keys))
        assert bias is not None
        return siglip_loss(logits + bias, positive_matrix(keys))


class ContrastiveModule(torch.nn.Module):
    """Two towers: image features (n, d), text features (u, d), the temperature and the bias."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip, self.to_input = clip.model, clip.to_input
        self.source = clip
        self.adapters: tuple[Any, ...] = ()
        """peft's handle on the adapters, while there are some; in a tuple, so that it is no submodule."""

    def train(self, mode: bool = True) -> "ContrastiveModule":
        """What is frozen stays as it was: its batch norms keep their statistics, and nothing is dropped out."""
        super().train(mode)
        for part in self.clip.modules():
            weights = list(part.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                part.eval()
        return self

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of L2 norm 1 of images of 0–255 and of tokens (u, context)."""
        image_features, text_features = self.clip(self.to_input(images), tokens)[:2]
        scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        bias = self.clip.logit_bias
        return (image_features, text_features, scale, *([] if bias is None else [bias]))


ContrastiveConfigT = TypeVar("ContrastiveConfigT", bound=ContrastiveConfig)


class ContrastiveTask(Task[ContrastiveConfigT, StateT]):
    """Two towers trained on pairs. The towers, the part of them that is trained, and the validation are the methods'."""

    @abstractmethod
    def towers(self, state: StateT) -> Clip:
        """The model that is trained, and whose tokenizer reads the captions."""

    @abstractmethod
    def freeze(self, module: ContrastiveModule) -> None:
        """Leave trainable only the part that is to be trained."""

    def build(self, train: Examples, state: StateT) -> ContrastiveModule:
        """The towers, with only the part that is to be trained left trainable."""
        module, siglip = ContrastiveModule(self.towers(state)), self.config.loss == "siglip"
        model = module.clip
        if siglip and model.logit_bias is None:
            model.logit_bias = torch.nn.Parameter(torch.tensor(self._initial_bias(module, train)))
        self.freeze(module)
        model.logit_scale.requires_grad_(True)
        if model.logit_bias is not None:
            model.logit_bias.requires_grad_(siglip)  # DDP waits for a gradient of all
        if self.config.grad_checkpointing:
            checkpoint_activations(model)
        return module

    @torch.no_grad()
    def _initial_bias(self, module: ContrastiveModule, train: Examples) -> float:
        """Log odds of a row's one match among its others, less the mean logit before: SigLIP has no wrong prior to unlearn.

        (SigLIP's own −10 is about that of its batches of 32,768 pairs without equal texts, whose cosines are around zero. A
        trained CLIP's are around .2, times a scale of 100: with −10 it would take all pairs to match.)
        """
        keys = self._keys(train.rows)
        _, counts = np.unique(keys[keys >= 0], return_counts=True)
        shares = counts / max(1, len(keys))
        others = (self.config.optim.batch_size - 1) * (1 - float(shares @ shares))
        odds = -float(np.log(max(others, 1e-6)))
        if not len(train):
            return odds
        batch = train.read(np.linspace(0, len(train) - 1, min(BIAS_SAMPLE_SIZE, len(train))).astype(int))
        images, texts, scale = module.eval()(torch.from_numpy(batch["image"]), torch.from_numpy(batch["tokens"]))
        return odds - float(scale * images.mean(dim=0) @ texts[batch["text_index"]].mean(dim=0))

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """Not needed: a checkpoint is a whole CLIP."""
        raise NotImplementedError

    def _keys(self, rows: pd.DataFrame) -> np.ndarray:
        """The keys of pairs (n,) int64, equal where pairs match: see `positive_matrix`."""
        if self.config.positives == "none":
            return np.full(len(rows), -1)
        if self.config.positives == "label":
            labels: np.ndarray = target_reader(rows, self.classes, "none")(np.arange(len(rows)))["label"]
            return labels
        return np.unique(rows["caption"].to_numpy(str), return_inverse=True)[1].astype(np.int64)

    def pair_reader(self, packed: PackedImages, rows: pd.DataFrame, clip: Clip) -> Callable[[np.ndarray], Batch]:
        """A reader of batches of these rows of the manifest: images, and each `caption`'s tokens once.

        `tokens` (u, context) are those of the batch's different captions, and `text_index` (n,) says which is each image's.
        """
        positions, targets = packed.manifest.positions(rows["image_id"]), target_reader(rows, self.classes, "none")
        captions, caption_index = np.unique(rows["caption"].to_numpy(str), return_inverse=True)
        tokens, keys = clip.tokenize(list(captions)), self._keys(rows)

        def read(indices: np.ndarray) -> Batch:
            used, text_index = np.unique(caption_index[indices], return_inverse=True)
            texts = {"tokens": clip.trim_padding(tokens[used]).numpy(), "text_index": text_index.astype(np.int64)}
            pairs = {"image": packed.images(positions[indices]), "key": keys[indices].astype(np.int64)}
            return pairs | texts | targets(indices)

        return read

    def truncation_notes(self, captions: pd.Series, clip: Clip) -> dict[str, int]:
        """How many captions are cut off by the model's context, and how many tokens of them, as notes."""
        counts = captions.value_counts()
        truncated = [clip.count_truncated([text]) for text in counts.index]
        texts = sum(cut["texts"] * int(count) for cut, count in zip(truncated, counts, strict=True))
        tokens = sum(cut["tokens"] * int(count) for cut, count in zip(truncated, counts, strict=True))
        if not texts:
            return {}
        return {"captions are longer than the model's context and cut off": texts, "caption tokens are cut off": tokens}

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The contrastive loss of the pairs of all processes together."""
        images, texts, scale, *bias = module(batch["image"], batch["tokens"])
        loss = contrastive_loss(
            images, texts[batch["text_index"]], scale, bias[0] if bias else None, batch["key"], self.config.loss
        )
        return {"loss": loss, "logit_scale": scale.detach()}

    def save(self, module: Any, state: StateT, folder: Path) -> None:
        """As open_clip and, where it can express the model, Hugging Face write a CLIP."""
        save_clip(folder, module.source, hf=getattr(self.config, "hf", False))

    def load_towers(self, folder: Path) -> Clip:
        """The CLIP that was saved."""
        return load_clip(ClipConfig(model=self.config.clip.model, pretrained=str(folder)))
