"""Train, compare and trust CLIP on chest X-rays, at scale, on Ray. Research use only, not for diagnosis.

What the commands do, from Python: each takes a config, a frozen dataclass whose fields are the command's flags.

    from clipcovid import ClipConfig, PrepareConfig, ZeroshotConfig, prepare, zeroshot

    prepare(PrepareConfig(source="imagefolder", root="my-xrays", out=Path("data/mine")))
    result = zeroshot(ZeroshotConfig(data=Path("data/mine"), clip=ClipConfig(model="ViT-B-32")))
    result.scores.metrics["macro_f1"]

Names are imported when they are first used, so that `import clipcovid` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipcovid.config import ClipConfig, ComputeConfig, ImagesConfig, OptimConfig, override
    from clipcovid.data.manifest import Manifest, read_manifest
    from clipcovid.data.prepare import PrepareConfig, prepare
    from clipcovid.errors import UserError
    from clipcovid.evaluate.compare import CompareConfig
    from clipcovid.inference.embed import EmbedConfig, embed
    from clipcovid.inference.predict import PredictConfig, predict_split
    from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
    from clipcovid.methods.cnn.config import CnnConfig
    from clipcovid.methods.finetune.config import FinetuneConfig
    from clipcovid.methods.probe.config import ProbeConfig
    from clipcovid.models.clip import load_clip
    from clipcovid.workflows.compare import compare_runs
    from clipcovid.workflows.train import train

__version__ = "0.1.0"
__all__ = [
    "ClipConfig",
    "CnnConfig",
    "CompareConfig",
    "ComputeConfig",
    "EmbedConfig",
    "FinetuneConfig",
    "ImagesConfig",
    "Manifest",
    "OptimConfig",
    "PredictConfig",
    "PrepareConfig",
    "ProbeConfig",
    "UserError",
    "ZeroshotConfig",
    "__version__",
    "compare_runs",
    "embed",
    "load_clip",
    "override",
    "predict_split",
    "prepare",
    "read_manifest",
    "train",
    "zeroshot",
]
_MODULES = {  # as above, for `__getattr__`
    "clipcovid.config": ("ClipConfig", "ComputeConfig", "ImagesConfig", "OptimConfig", "override"),
    "clipcovid.data.manifest": ("Manifest", "read_manifest"),
    "clipcovid.data.prepare": ("PrepareConfig", "prepare"),
    "clipcovid.errors": ("UserError",),
    "clipcovid.evaluate.compare": ("CompareConfig",),
    "clipcovid.inference.embed": ("EmbedConfig", "embed"),
    "clipcovid.inference.predict": ("PredictConfig", "predict_split"),
    "clipcovid.inference.zeroshot": ("ZeroshotConfig", "zeroshot"),
    "clipcovid.methods.cnn.config": ("CnnConfig",),
    "clipcovid.methods.finetune.config": ("FinetuneConfig",),
    "clipcovid.methods.probe.config": ("ProbeConfig",),
    "clipcovid.models.clip": ("load_clip",),
    "clipcovid.workflows.compare": ("compare_runs",),
    "clipcovid.workflows.train": ("train",),
}
_OWNERS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(_OWNERS[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
