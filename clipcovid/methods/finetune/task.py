"""CLIP fine-tuned on captions: all of it, adapters, or one tower; judged by zero-shot classification."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.methods.contrastive import MAX_LOGIT_SCALE, Contrastive, DualEncoder
from clipcovid.methods.task import Batch, Examples, Predictor
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import Clip, class_embeddings, cosine_logits
from clipcovid.models.lora import add_adapters, check_targets, merge
from clipcovid.prompts import build_prompts

MIXTURES = tuple(step / 10 for step in range(11))


class Finetune(Contrastive):
    """A CLIP trained further."""

    adapted: Any = None
    """peft's handle, while there are adapters."""

    def load_towers(self) -> Clip:
        """The CLIP that the config names."""
        return load_clip(self.config.clip, seed=self.config.seed)

    def choose(self) -> None:
        """What the method trains."""
        config, model = self.config, self.clip.model
        text = [weight for name, weight in model.named_parameters() if not name.startswith("visual.")]
        if config.method == "lora":
            settings = config.lora
            self.adapted = add_adapters(
                model, r=settings.r, alpha=settings.alpha, dropout=settings.dropout, targets=settings.targets
            )
        elif config.method == "text":
            model.visual.requires_grad_(False)
        elif config.method == "vision":
            for weight in text:
                weight.requires_grad_(False)

    def build(self) -> torch.nn.Module:
        """The towers; adapters that get no gradient are an error."""
        module = super().build()
        if self.adapted is not None:
            side = self.clip.image_size
            seen, read, *_ = module(torch.rand(2, side, side) * 255, self.clip.tokens(["a b", "c"]))
            check_targets(module, (seen * read).sum())
        return module

    def examples(self, data: Path, manifest: Manifest, split: str, *, training: bool = False) -> Examples:
        """Labelled images to predict; to train on, images with a caption."""
        if not training:
            return super().examples(data, manifest, split)
        rows, notes = self._captioned(manifest, split)
        read = self.pairs(PackedImages(data, manifest), rows, training=True)
        return Examples(rows=rows, notes=notes | self.cut(rows["caption"]), read=read)

    def _captioned(self, manifest: Manifest, split: str) -> tuple[pd.DataFrame, dict[str, int]]:
        """Rows that have a caption, which stands in `caption`, and how many have none."""
        kind = self.config.captions
        if kind == "labels":
            rows, notes = manifest.eligible(split, self.config.required_columns)
            prompts = build_prompts(self.config.prompts, self.classes)
            named = [prompts[label] for label in rows["label"]]
            return rows.assign(caption=[texts[number % len(texts)] for number, texts in enumerate(named)]), notes
        rows = manifest.rows(split)
        known = rows["caption"] != ""
        if not known.any():
            raise UserError(f"--captions {kind}: no image of the {split} split of {manifest.dataset} has a caption.")
        notes = {"images without a caption are left out": int((~known).sum())} if not known.all() else {}
        return rows[known].reset_index(drop=True), notes

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """Zero-shot: the softmax over the classes' prompts, embedded once."""
        return self._zero_shot(module, self._class_features(self.clip))

    def _class_features(self, clip: Clip) -> torch.Tensor:
        return torch.from_numpy(class_embeddings(clip, build_prompts(self.config.prompts, self.classes)))

    def _zero_shot(self, module: Any, texts: torch.Tensor) -> Predictor:
        scale = float(module.clip.logit_scale.detach().clamp(max=MAX_LOGIT_SCALE).exp())

        def predict(batch: Batch) -> torch.Tensor:
            seen = F.normalize(module.clip.encode_image(module.to_input(batch["image"])).float(), dim=-1)
            return cosine_logits(scale, seen, texts.to(seen.device)).softmax(dim=-1)

        return predict

    def calibrate(self, module: Any, evaluate: Callable[[], dict[str, float]]) -> dict[str, Any]:
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
            "before": self._zero_shot(DualEncoder(before).eval(), texts),
            "frozen-texts": self._zero_shot(module, texts),
        }
