"""CLIP fine-tuned on captions: all of it, adapters, or one tower; judged by zero-shot classification."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from clipcovid.config import UserError
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.methods.contrastive import MAX_LOGIT_SCALE, ContrastiveModule, ContrastiveTask
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.task import Batch, Examples, Predictor, ValidateFn
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import Clip, class_embeddings, cosine_logits
from clipcovid.models.lora import add_adapters, check_targets, merge_adapters
from clipcovid.prompts import build_prompts

WISE_FT_ALPHAS = tuple(step / 10 for step in range(11))


class FinetuneTask(ContrastiveTask[FinetuneConfig, Clip]):
    """A CLIP trained further, which is the state too: its tokenizer reads the captions."""

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> Clip:
        """The CLIP that the config names."""
        return load_clip(self.config.clip, seed=self.config.seed)

    def towers(self, state: Clip) -> Clip:
        """The CLIP."""
        return state

    def freeze(self, module: ContrastiveModule) -> None:
        """Leave trainable the part that `--method` names, or low-rank adapters."""
        config, model = self.config, module.clip
        text = [weight for name, weight in model.named_parameters() if not name.startswith("visual.")]
        if config.method == "lora":
            settings = config.lora
            module.adapters = (
                add_adapters(
                    model, r=settings.r, alpha=settings.alpha, dropout=settings.dropout, targets=settings.targets
                ),
            )
        elif config.method == "text":
            model.visual.requires_grad_(False)
        elif config.method == "vision":
            for weight in text:
                weight.requires_grad_(False)

    def build(self, train: Examples, state: Clip) -> ContrastiveModule:
        """The towers; adapters that get no gradient are a `UserError`."""
        module = super().build(train, state)
        if module.adapters:
            side = state.image_size
            images, texts, *_ = module(torch.rand(2, side, side) * 255, state.tokenize(["a b", "c"]))
            check_targets(module, (images * texts).sum())
        return module

    def examples(self, data: Path, manifest: Manifest, split: str, state: Clip, *, training: bool = False) -> Examples:
        """Labelled images to predict; to train on, images with a caption."""
        if not training:
            return super().examples(data, manifest, split, state)
        rows, notes = self._captioned_rows(manifest, split)
        read = self.pair_reader(PackedImages(data, manifest), rows, state)
        return Examples(rows=rows, notes=notes | self.truncation_notes(rows["caption"], state), read=read)

    def _captioned_rows(self, manifest: Manifest, split: str) -> tuple[pd.DataFrame, dict[str, int]]:
        """Rows that have a caption, which stands in `caption`, and how many have none."""
        kind = self.config.captions
        if kind == "labels":
            rows, notes = manifest.rows_with(split, self.config.required_columns)
            prompts = build_prompts(self.config.prompts, self.classes)
            texts = [prompts[label] for label in rows["label"]]
            return rows.assign(caption=[choices[row % len(choices)] for row, choices in enumerate(texts)]), notes
        rows = manifest.rows(split)
        captioned = rows["caption"] != ""
        if not captioned.any():
            raise UserError(f"--captions {kind}: no image of the {split} split of {manifest.dataset} has a caption.")
        notes = {"images without a caption are left out": int((~captioned).sum())} if not captioned.all() else {}
        return rows[captioned].reset_index(drop=True), notes

    def predictor(self, module: Any) -> Predictor:
        """Zero-shot: the softmax over the classes' prompts, embedded once."""
        return self._zero_shot(module, self._class_features(module.source))

    def _class_features(self, clip: Clip) -> torch.Tensor:
        return torch.from_numpy(class_embeddings(clip, build_prompts(self.config.prompts, self.classes)))

    def _zero_shot(self, module: Any, texts: torch.Tensor) -> Predictor:
        scale = float(module.clip.logit_scale.detach().clamp(max=MAX_LOGIT_SCALE).exp())

        def predict(batch: Batch) -> torch.Tensor:
            images = F.normalize(module.clip.encode_image(module.to_input(batch["image"])).float(), dim=-1)
            return cosine_logits(scale, images, texts.to(images.device)).softmax(dim=-1)

        return predict

    def select_on_validation(
        self, module: Any, train: Examples, state: Clip, validate: ValidateFn
    ) -> tuple[dict[str, Any], Clip]:
        """Merge the adapters; for `wise_ft`, mix initial and tuned weights by validation score, ties to the tuned."""
        if module.adapters:
            merge_adapters(*module.adapters)
            module.adapters = ()
        if not self.config.wise_ft:
            return {}, state
        after = {name: value.detach().clone() for name, value in module.clip.state_dict().items()}
        before = self._initial_clip(module).model.state_dict()
        scores = {}

        def mix(share: float) -> None:
            for name, value in module.clip.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(before.get(name, after[name]).to(value), after[name], share))

        for share in WISE_FT_ALPHAS:
            mix(share)
            scores[share] = validate(self.predictor(module))[self.monitor[0]]
        best = max(WISE_FT_ALPHAS, key=lambda share: (scores[share], share))
        mix(best)
        return {"wise_ft": best, "wise_ft_scores": {f"{share:g}": score for share, score in scores.items()}}, state

    def _initial_clip(self, module: Any) -> Clip:
        """The CLIP as it was before training, on the module's device."""
        device = str(next(module.parameters()).device)
        return load_clip(self.config.clip, seed=self.config.seed, device=device)

    def load(self, folder: Path) -> tuple[torch.nn.Module, Clip]:
        """The CLIP that was saved."""
        clip = self.load_towers(folder)
        return ContrastiveModule(clip).eval(), clip

    def variants(self, module: torch.nn.Module, state: Clip) -> dict[str, Predictor]:
        """Beside the method itself: the model before, and the image tower after with the texts as they were before."""
        before = self._initial_clip(module)
        texts = self._class_features(before)
        return {
            "": self.predictor(module),
            "before": self._zero_shot(ContrastiveModule(before).eval(), texts),
            "frozen-texts": self._zero_shot(module, texts),
        }
