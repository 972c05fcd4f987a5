"""Contrastive learning on pairs of images and texts: losses that know which pairs match too, and fine-tuned CLIP."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from clipcovid.collective import gather
from clipcovid.config import ClipConfig, UserError
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate.foreign import read_table
from clipcovid.labels import build_prompts
from clipcovid.models.clip import Clip, class_embeddings, load_clip, save_clip
from clipcovid.models.lora import add_adapters, check_targets, merge
from clipcovid.tasks.base import Batch, Examples, Predictor, Task, targets

MAX_LOGIT_SCALE = float(np.log(100))  # as CLIP was trained (Radford et al. 2021)
MIXTURES = tuple(step / 10 for step in range(11))


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
    """The sigmoid loss of all pairs, summed over a row, mean over rows (SigLIP, Zhai et al. 2023)."""
    return -F.logsigmoid(torch.where(matches, logits, -logits)).sum() / len(logits)


def matching(keys: torch.Tensor) -> torch.Tensor:
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
    """The loss of the pairs of all processes together; `images` and `texts` (n, d) of L2 norm 1, `keys` as in `matching`.

    Each process computes the loss of the whole batch, so their mean, and the mean of their gradients, are those of one
    process that has all pairs.
    """
    images, texts, keys = gather(images.float()), gather(texts.float()), gather(keys)
    logits = scale * images @ texts.T
    if kind == "clip":
        return clip_loss(logits)
    if kind == "multi-positive":
        return multi_positive_loss(logits, matching(keys))
    assert bias is not None
    return siglip_loss(logits + bias, matching(keys))


class Pair(torch.nn.Module):
    """Two towers: image features (n, d), text features (u, d), the temperature and the bias."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip, self.to_input = clip.model, clip.to_input

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of L2 norm 1 of images of 0–255 and of tokens (u, context)."""
        seen, read = self.clip(self.to_input(images), tokens)[:2]
        scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        bias = self.clip.logit_bias
        return (seen, read, scale) if bias is None else (seen, read, scale, bias)


class Contrastive(Task):
    """CLIP fine-tuned on captions, and judged by zero-shot classification."""

    adapted: Any = None
    """peft's handle, while there are adapters."""
    match_share: float = 0.0
    """How probable it is that two training images match."""

    @cached_property
    def clip(self) -> Clip:
        """The CLIP that is trained."""
        return load_clip(self.config.clip, seed=self.config.seed)

    def build(self) -> torch.nn.Module:
        """The CLIP that the config names, with only what its method trains left trainable."""
        config = self.config
        if config.loss == "siglip" and self.clip.model.logit_bias is None:
            self.clip.model.logit_bias = torch.nn.Parameter(torch.tensor(self._prior_bias()))
        text = [weight for name, weight in self.clip.model.named_parameters() if not name.startswith("visual.")]
        if config.method == "lora":
            settings = config.lora
            self.adapted = add_adapters(
                self.clip.model, r=settings.r, alpha=settings.alpha, dropout=settings.dropout, targets=settings.targets
            )
        elif config.method == "text":
            self.clip.model.visual.requires_grad_(False)
        elif config.method == "vision":
            for weight in text:
                weight.requires_grad_(False)
        self.clip.model.logit_scale.requires_grad_(True)
        if self.clip.model.logit_bias is not None:
            self.clip.model.logit_bias.requires_grad_(config.loss == "siglip")  # DDP waits for a gradient of all
        module = Pair(self.clip)
        if self.adapted is not None:
            side = self.clip.image_size
            seen, read, *_ = module(torch.rand(2, side, side) * 255, self.clip.tokenizer(["a b", "c"]))
            check_targets(module, (seen * read).sum())
        if config.grad_checkpointing:
            self.clip.model.set_grad_checkpointing()
        return module

    def _prior_bias(self) -> float:
        """The log odds that a pair of a batch matches: started there, SigLIP's loss has no wrong prior to unlearn.

        (SigLIP's own −10 is about that of its batches of 32,768 pairs without equal texts.)
        """
        share = (1 + (self.config.optim.batch_size - 1) * self.match_share) / self.config.optim.batch_size
        return float(np.log(share / max(1 - share, 1e-6)))

    def skeleton(self, folder: Path) -> torch.nn.Module:
        """Not needed: a checkpoint is a whole CLIP."""
        raise NotImplementedError

    def examples(self, data: Path, manifest: Manifest, split: str, *, training: bool = False) -> Examples:
        """Labelled images to predict; to train on, images with a caption, as unique tokens and where each stands."""
        if not training:
            return super().examples(data, manifest, split)
        rows, captions, notes = self._captions(manifest, split)
        packed, at = PackedImages(data, manifest), manifest.positions(rows["image_id"])
        about = targets(rows, self.classes, "none")
        unique, which = np.unique(captions, return_inverse=True)
        cut = np.array([self.clip.overflow([text])["texts"] for text in unique], bool)
        if cut.any():
            notes["captions are longer than the model's context and cut off"] = int(cut[which].sum())
        tokens = self.clip.tokenizer(list(unique)).numpy()
        labels = about(np.arange(len(rows)))["label"]
        keys = {"none": np.full(len(rows), -1), "caption": which, "label": labels}[self.config.positives]
        _, counts = np.unique(keys[keys >= 0], return_counts=True)
        self.match_share = float((counts / len(keys)) @ (counts / len(keys)))

        def read(take: np.ndarray) -> Batch:
            used, place = np.unique(which[take], return_inverse=True)
            texts = {"tokens": tokens[used], "place": place.astype(np.int64), "key": keys[take].astype(np.int64)}
            return {"image": packed.images(at[take])} | texts | about(take)

        return Examples(rows=rows, notes=notes, read=read)

    def _captions(self, manifest: Manifest, split: str) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
        """Rows that have a caption, their captions, and how many have none."""
        kind = self.config.captions
        if kind == "labels":
            rows, notes = manifest.eligible(split, self.config.needs)
            prompts = build_prompts(self.config.prompts, self.classes)
            named = [prompts[label] for label in rows["label"]]
            return rows, [texts[number % len(texts)] for number, texts in enumerate(named)], notes
        rows = manifest.rows(split)
        if kind == "dataset":
            captions = rows["caption"]
        else:
            table = read_table(kind)
            if missing := {"image_id", "caption"} - set(table):
                raise UserError(f"--captions {kind} lacks the columns {', '.join(sorted(missing))}.")
            by_id = table.drop_duplicates("image_id").set_index("image_id")["caption"].fillna("").astype(str)
            captions = rows["image_id"].map(by_id).fillna("").str.strip()
        known = captions != ""
        if not known.any():
            raise UserError(f"--captions {kind}: no image of the {split} split of {manifest.dataset} has a caption.")
        return (
            rows[known].reset_index(drop=True),
            captions[known].tolist(),
            {"images without a caption are left out": int((~known).sum())} if not known.all() else {},
        )

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The contrastive loss of the pairs of all processes together."""
        seen, read, scale, *bias = module(batch["image"], batch["tokens"])
        loss = contrastive_loss(
            seen, read[batch["place"]], scale, bias[0] if bias else None, batch["key"], self.config.loss
        )
        return {"loss": loss, "logit_scale": scale.detach()}

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """Zero-shot: the softmax over the classes' prompts, embedded once."""
        return self._zero_shot(module, self._class_features(self.clip))

    def _class_features(self, clip: Clip) -> torch.Tensor:
        return torch.from_numpy(class_embeddings(clip, build_prompts(self.config.prompts, self.classes)))

    def _zero_shot(self, module: Any, texts: torch.Tensor) -> Predictor:
        scale = float(module.clip.logit_scale.detach().clamp(max=MAX_LOGIT_SCALE).exp())

        def predict(batch: Batch) -> torch.Tensor:
            seen = F.normalize(module.clip.encode_image(module.to_input(batch["image"])).float(), dim=-1)
            return (scale * seen @ texts.to(seen.device).T).softmax(dim=-1)

        return predict

    def finish(self, module: Any, evaluate: Callable[[], dict[str, float]]) -> dict[str, Any]:
        """Merge the adapters; where asked, mix the weights before and after, of equal scores the most of after."""
        if self.adapted is not None:
            merge(self.adapted)
            self.adapted = None
        if not self.config.wise_ft:
            return {}
        after = {name: value.detach().clone() for name, value in module.clip.state_dict().items()}
        before = self._before(module).model.state_dict()
        found = {}

        def mix(share: float) -> None:
            for name, value in module.clip.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(before.get(name, after[name]).to(value), after[name], share))

        for share in MIXTURES:
            mix(share)
            found[share] = evaluate()[self.monitor[0]]
        best = max(MIXTURES, key=lambda share: (found[share], share))
        mix(best)
        return {"wise_ft": best, "wise_ft_scores": {f"{share:g}": score for share, score in found.items()}}

    def _before(self, module: Any) -> Clip:
        """The CLIP as it was before training, on the module's device."""
        device = str(next(module.parameters()).device)
        return load_clip(self.config.clip, seed=self.config.seed, device=device)

    def variants(self, module: torch.nn.Module) -> dict[str, Predictor]:
        """Beside the method itself: the model before, and the image tower after with the texts as they were before."""
        before = self._before(module)
        texts = self._class_features(before)
        return {
            "": self.predictor(module),
            "before": self._zero_shot(Pair(before).eval(), texts),
            "frozen-texts": self._zero_shot(module, texts),
        }

    def save(self, module: torch.nn.Module, folder: Path) -> None:
        """As open_clip and, where it can express the model, Hugging Face write a CLIP."""
        save_clip(folder, self.clip, hf=self.config.hf)

    def load(self, folder: Path) -> torch.nn.Module:
        """The CLIP that was saved."""
        self.clip = load_clip(ClipConfig(model=self.config.clip.model, pretrained=str(folder)))
        return Pair(self.clip).eval()
