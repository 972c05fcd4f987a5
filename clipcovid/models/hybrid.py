"""A CNN beside a frozen CLIP image tower: their features added, or put side by side."""

import torch
import torch.nn.functional as F

from clipcovid.models.clip_model import Clip, cosine_logits
from clipcovid.models.cnn import TimmClassifier


class CnnClipHybrid(torch.nn.Module):
    """Logits (n, k) of images (n, h, w) or (n, h, w, 3) of 0–255 from a frozen CLIP image tower and a trained CNN.

    With `texts` (k, d), rows of L2 norm 1, the sum of both embeddings is compared with them, as cosines times CLIP's
    own `logit_scale`; without, a linear layer reads both embeddings.
    """

    texts: torch.Tensor
    logit_scale: torch.Tensor

    def __init__(self, clip: Clip, cnn: TimmClassifier, texts: torch.Tensor, join: str) -> None:
        super().__init__()
        self.clip = clip
        self.tower, self.to_input, self.cnn = clip.model.visual.requires_grad_(False).eval(), clip.to_input, cnn
        self.register_buffer("texts", texts)
        self.register_buffer("logit_scale", torch.tensor(clip.logit_scale))
        classes, width = texts.shape
        self.head = torch.nn.Linear(2 * width, classes) if join == "concat" else None

    def train(self, mode: bool = True) -> "CnnClipHybrid":
        """The CLIP tower stays as it was trained."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, k)."""
        with torch.no_grad():
            features = F.normalize(self.tower(self.to_input(images)).float(), dim=-1)
        learned = self.cnn(images).float()
        if self.head is not None:
            return self.head(torch.cat([features, learned], dim=-1))
        return cosine_logits(self.logit_scale, F.normalize(features + learned, dim=-1), self.texts)
