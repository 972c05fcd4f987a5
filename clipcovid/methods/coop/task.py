"""CoOp: the words before a class's name, learned as vectors, while both towers of CLIP stay as they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clipcovid.config import UserError
from clipcovid.data.embeddings import Embeddings
from clipcovid.methods.classification import ClassificationTask
from clipcovid.methods.coop.config import CoopConfig
from clipcovid.methods.few_shot import FewShotTask
from clipcovid.methods.task import Examples, Predictor, save_weights
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import Clip, cosine_logits
from clipcovid.prompts import build_prompts

INIT_STD = 0.02  # of random vectors, as CLIP's own words are drawn


class PromptLearner(torch.nn.Module):
    """Logits (n, k) of image embeddings (n, d) against the texts of k classes, whose first words are learned.

    Zhou, Yang, Loy and Liu, "Learning to Prompt for Vision-Language Models", 2022. Without a CLIP the texts are those of
    `texts`, as they were when they were last encoded.
    """

    texts: torch.Tensor
    logit_scale: torch.Tensor
    tokens: torch.Tensor
    learned: torch.Tensor

    def __init__(self, words: torch.Tensor, texts: torch.Tensor, logit_scale: float = 0.0) -> None:
        """`words` (1 or k, m, w): the vectors to start from; `texts` (k, d): rows of L2 norm 1."""
        super().__init__()
        self.words = torch.nn.Parameter(words)
        self.register_buffer("texts", texts)
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        self.model: Any = None

    def attach(self, clip: Clip, suffixes: Sequence[str]) -> None:
        """Have the words followed by these texts, one a class, in this CLIP; where that is too long: `UserError`."""
        count = self.words.shape[1]
        marked = [[" ".join([mark] * count + [text]) for text in suffixes] for mark in ("x", "y")]
        if cut := clip.count_truncated(marked[0])["texts"]:
            raise UserError(
                f"{count} learned words are too many: with them {cut} class text(s) do not fit into the "
                f"{clip.tokenizer.context_length} tokens of {type(clip.model).__name__}. Give fewer --words."
            )
        self.model = clip.model.requires_grad_(False).eval()
        tokens, others = map(clip.tokenize, marked)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("learned", (tokens != others)[0], persistent=False)

    def train(self, mode: bool = True) -> "PromptLearner":
        """CLIP stays as it was trained."""
        super().train(mode)
        if self.model is not None:
            self.model.eval()
        return self

    def encode(self) -> torch.Tensor:
        """The texts' features (k, d), of L2 norm 1, with the words as they are now."""
        if self.model is None:
            return self.texts

        def insert_words(module: torch.nn.Module, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
            words = self.words.expand(len(embedded), -1, -1).to(embedded.dtype)
            return embedded.masked_scatter(self.learned[None, :, None], words)

        handle = word_embedding(self.model).register_forward_hook(insert_words)
        try:
            return F.normalize(self.model.encode_text(self.tokens).float(), dim=-1)
        finally:
            handle.remove()

    def forward(self, features: torch.Tensor, texts: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (n, k); `texts` (k, d): what `encode` gave, where it need not be done again."""
        texts = self.encode() if texts is None else texts
        return cosine_logits(self.logit_scale, F.normalize(features.float(), dim=-1), texts)


def word_embedding(model: Any) -> torch.nn.Embedding:
    """The token embedding of an open_clip model's text tower."""
    tower = getattr(model, "text", model)
    embedding: torch.nn.Embedding = (
        tower.token_embedding if hasattr(tower, "token_embedding") else tower.transformer.get_input_embeddings()
    )
    return embedding


def context_tokens(clip: Clip, text: str) -> torch.Tensor:
    """The vectors (m, w) of a text's tokens, without start and end marks, as CLIP's text tower reads them."""
    first = int((clip.tokenize(["x"]) != clip.tokenize(["y"])).nonzero()[0, 1])
    long, empty = clip.token_counts([text, ""])
    return word_embedding(clip.model).weight.detach().float()[clip.tokenize([text])[0, first : first + long - empty]]


class CoopTask(ClassificationTask[CoopConfig, Embeddings], FewShotTask[CoopConfig]):
    """Cross entropy of the images' embeddings against texts with learned words."""

    column = "embedding"

    def build(self, train: Examples, state: Embeddings) -> PromptLearner:
        """With the CLIP that the config names."""
        config = self.config
        clip = load_clip(config.clip, seed=config.seed)
        endings = [texts[0] for texts in build_prompts(config.prompts, self.classes).values()]
        module = PromptLearner(self._words(clip, len(endings)), clip.encode_texts(endings), clip.logit_scale)
        module.attach(clip, endings)
        return module

    def _words(self, clip: Clip, classes: int) -> torch.Tensor:
        config = self.config
        count = classes if config.per_class else 1
        if config.init.strip():
            return context_tokens(clip, config.init).expand(count, -1, -1).clone()
        generator = torch.Generator().manual_seed(config.seed)
        return (
            torch.randn(count, config.words, word_embedding(clip.model).embedding_dim, generator=generator) * INIT_STD
        )

    def predictor(self, module: Any) -> Predictor:
        """The softmax of the logits; the texts are encoded once for all batches."""
        with torch.no_grad():
            texts = module.encode()
        return lambda batch: module(batch["embedding"], texts).softmax(dim=-1)

    def save(self, module: Any, state: Embeddings, folder: Path) -> None:
        """The words, and the texts' embeddings: what predicts needs no CLIP."""
        with torch.no_grad():
            module.texts.copy_(module.encode())
        save_weights(PromptLearner(module.words.detach(), module.texts, float(module.logit_scale)), folder)

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """As many words and texts as the checkpoint has."""
        saved = load_file(folder / "model.safetensors")
        return PromptLearner(torch.zeros_like(saved["words"]), torch.zeros_like(saved["texts"]))
