"""Contrastive learning on pairs of images and texts, whatever the towers: losses that know which pairs match too."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from clipcovid.config import ClipConfig
from clipcovid.data.packed import PackedImages
from clipcovid.distributed import all_gather
from clipcovid.methods.task import Batch, Task, get_targets
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.models.clip_model import Clip, checkpoint_activations, cosine_logits

SAMPLE = 64  # training pairs from which SigLIP's bias is set
MAX_LOGIT_SCALE = float(np.log(100))  # as CLIP was trained (Radford et al. 2021)


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    """InfoNCE both ways of logits (n, n), image by text (CLIP, Radford et al. 2021)."""
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def multi_positive_loss(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """InfoNCE both ways with the target spread over all matches of each row (UniCL, Yang et al. 2022).

    `matches` (n, n) bool, symmetric, the diagonal true. Where the matching texts are the very same it equals `clip_loss`.
    """
    shares = matches / matches.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)) / 2


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
        shares = (scale * (images @ images.T + texts @ texts.T) / 2).softmax(dim=-1)
    return (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)) / 2


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
    kind: str,
) -> torch.Tensor:
    """The loss of the pairs of all processes together; `images`, `texts` (n, d) of L2 norm 1, `keys` as in `positive_matrix`.

    Each process computes the loss of the whole batch, so their mean, and the mean of their gradients, are those of one
    process that has all pairs.
    """
    images, texts, keys = all_gather(images.float()), all_gather(texts.float()), all_gather(keys)
    with torch.autocast(images.device.type, enabled=False):
        scale = scale.float()
        if kind == "soft":
            return soft_loss(images, texts, scale)
        logits = cosine_logits(scale, images, texts)
        if kind == "clip":
            return clip_loss(logits)
        if kind == "multi-positive":
            return multi_positive_loss(logits, positive_matrix(keys))
        assert bias is not None
        return siglip_loss(logits + bias, positive_matrix(keys))


class DualEncoder(torch.nn.Module):
    """Two towers: image features (n, d), text features (u, d), the temperature and the bias."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip, self.to_input = clip.model, clip.to_input

    def train(self, mode: bool = True) -> "DualEncoder":
        """What is frozen stays as it was: its batch norms keep their statistics, and nothing is dropped out."""
        super().train(mode)
        for part in self.clip.modules():
            weights = list(part.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                part.eval()
        return self

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of L2 norm 1 of images of 0–255 and of tokens (u, context)."""
        seen, read = self.clip(self.to_input(images), tokens)[:2]
        scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        bias = self.clip.logit_bias
        return (seen, read, scale) if bias is None else (seen, read, scale, bias)


class Contrastive(Task):
    """Two towers trained on pairs. What they are, what is trained, and how it is judged are for each kind to say."""

    match_share: float = 0.0
    """How probable it is that two training images match."""
    sample: Callable[[], Batch] | None = None
    """Reads some training pairs; None where the training examples were not asked for."""

    @cached_property
    def clip(self) -> Clip:
        """The model that is trained."""
        return self.load_towers()

    @abstractmethod
    def load_towers(self) -> Clip:
        """The model before training."""

    @abstractmethod
    def choose(self) -> None:
        """Leave trainable what is to be trained; all is, until now."""

    def build(self) -> torch.nn.Module:
        """The towers, with only what is to be trained left trainable."""
        model, siglip = self.clip.model, self.config.loss == "siglip"
        if siglip and model.logit_bias is None:
            model.logit_bias = torch.nn.Parameter(torch.tensor(self._first_bias()))
        self.choose()
        model.logit_scale.requires_grad_(True)
        if model.logit_bias is not None:
            model.logit_bias.requires_grad_(siglip)  # DDP waits for a gradient of all
        if self.config.grad_checkpointing:
            checkpoint_activations(model)
        return DualEncoder(self.clip)

    @torch.no_grad()
    def _first_bias(self) -> float:
        """Log odds of a row's one match among its others, less the mean logit before: SigLIP has no wrong prior to unlearn.

        (SigLIP's own −10 is about that of its batches of 32,768 pairs without equal texts, whose cosines are around zero. A
        trained CLIP's are around .2, times a scale of 100: with −10 it would take all pairs to match.)
        """
        odds = -float(np.log(max((self.config.optim.batch_size - 1) * (1 - self.match_share), 1e-6)))
        if self.sample is None:
            return odds
        batch = self.sample()
        seen, read, scale = DualEncoder(self.clip).eval()(
            torch.from_numpy(batch["image"]), torch.from_numpy(batch["tokens"])
        )
        return odds - float(scale * seen.mean(dim=0) @ read[batch["place"]].mean(dim=0))

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """Not needed: a checkpoint is a whole CLIP."""
        raise NotImplementedError

    def pairs(
        self, packed: PackedImages, rows: pd.DataFrame, *, training: bool = False
    ) -> Callable[[np.ndarray], Batch]:
        """What reads batches of these rows of the manifest: images, the unique tokens of `caption`, and where each stands."""
        at, about = packed.manifest.positions(rows["image_id"]), get_targets(rows, self.classes, "none")
        unique, which = np.unique(rows["caption"].to_numpy(str), return_inverse=True)
        tokens = self.clip.tokens(list(unique))
        labels = about(np.arange(len(rows)))["label"]
        keys = {"none": np.full(len(rows), -1), "caption": which, "label": labels}[self.config.positives]
        if training:
            _, counts = np.unique(keys[keys >= 0], return_counts=True)
            self.match_share = float((counts / len(keys)) @ (counts / len(keys)))

        def read(take: np.ndarray) -> Batch:
            used, place = np.unique(which[take], return_inverse=True)
            texts = {"tokens": self.clip.trim_padding(tokens[used]).numpy(), "place": place.astype(np.int64)}
            return {"image": packed.images(at[take])} | texts | {"key": keys[take].astype(np.int64)} | about(take)

        if training:
            self.sample = lambda: read(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
        return read

    def cut(self, captions: pd.Series) -> dict[str, int]:
        """How many captions are cut off by the model's context, and how many tokens of them, as notes."""
        counts = captions.value_counts()
        found = [self.clip.count_truncated([text]) for text in counts.index]
        texts = sum(one["texts"] * int(count) for one, count in zip(found, counts, strict=True))
        tokens = sum(one["tokens"] * int(count) for one, count in zip(found, counts, strict=True))
        if not texts:
            return {}
        return {"captions are longer than the model's context and cut off": texts, "caption tokens are cut off": tokens}

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The contrastive loss of the pairs of all processes together."""
        seen, read, scale, *bias = module(batch["image"], batch["tokens"])
        loss = contrastive_loss(
            seen, read[batch["place"]], scale, bias[0] if bias else None, batch["key"], self.config.loss
        )
        return {"loss": loss, "logit_scale": scale.detach()}

    def save(self, module: torch.nn.Module, folder: Path) -> None:
        """As open_clip and, where it can express the model, Hugging Face write a CLIP."""
        save_clip(folder, self.clip, hf=getattr(self.config, "hf", False))

    def load(self, folder: Path) -> torch.nn.Module:
        """The CLIP that was saved."""
        self.clip = load_clip(ClipConfig(model=self.config.clip.model, pretrained=str(folder)))
        return DualEncoder(self.clip).eval()
