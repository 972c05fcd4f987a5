"""ClipCap, a decoder on a frozen encoder's embeddings: the config."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from clipcovid.config import AugmentConfig, ClipConfig, EmbeddingsConfig, OptimConfig, UserError
from clipcovid.methods.configs import NO_AUGMENT, CaptionedConfig, ClipTrainConfig
from clipcovid.methods.method import Method
from clipcovid.models.availability import check_clip_available, check_hub_model_available
from clipcovid.models.presets import DECODERS


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig(EmbeddingsConfig, CaptionedConfig, ClipTrainConfig):
    """A decoder that writes a caption from the embedding of a frozen encoder."""

    task: ClassVar[str] = "captioner"
    clip: ClipConfig = ClipConfig()
    """The encoder: published, a checkpoint, or a run of ours (finetune, caption)."""
    decoder: str = "mini"
    """mini or small: of random weights, with a tokenizer trained on the training captions. Or a GPT-2 of Hugging Face: a
    folder, or a model of its hub."""
    prefix: int = 8
    """How many words' room the embedding gets before the caption (ClipCap, Mokady et al. 2021)."""
    context: int = 96
    """The most tokens of a caption."""
    vocabulary: int = 8000
    """The most tokens of a tokenizer trained on the training captions."""
    beams: int = 4
    """Captions followed at once by beam search. 1: greedy search, which is shown beside it in any case."""
    dropout: float = 0.1
    """Of the decoder."""
    input: Literal["packed", "raw"] = "packed"
    """packed: embeddings of the prepared pixels. raw: of the original files at the encoder's own size."""
    optim: OptimConfig = OptimConfig(epochs=20, lr=5e-4)
    """How it is trained."""
    augment: AugmentConfig = field(default=NO_AUGMENT)
    """Not used: embeddings are made beforehand."""

    def __post_init__(self) -> None:
        if min(self.prefix, self.beams) < 1 or min(self.context, self.vocabulary) < 8 or not 0 <= self.dropout < 1:
            raise UserError("--prefix and --beams must be at least 1, --context and --vocabulary 8, --dropout below 1.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"captioner-{Path(self.decoder).name}"

    def check_initial_weights(self) -> None:
        """Raise `UserError` if the initial weights are missing or unreadable, without loading them."""
        check_clip_available(self.clip)
        if self.decoder not in DECODERS:
            check_hub_model_available(self.decoder, "--decoder")


METHOD = Method(CaptionerConfig, task="CaptionerTask", kind="captions", uses_embeddings=True)
