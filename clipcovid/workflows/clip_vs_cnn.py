"""What CLIP against CNN is made of: predictions of the train split, paraphrased prompts, classes that nobody learned."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.errors import UserError
from clipcovid.evaluate.compare import CompareConfig
from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.inference.embed import EmbedConfig, embed, is_training_image
from clipcovid.inference.predict import PredictConfig
from clipcovid.inference.predict_zeroshot import is_zeroshot_run, zeroshot_encoder
from clipcovid.inference.zeroshot import classify_embeddings
from clipcovid.methods.registry import METHODS
from clipcovid.prompts import PHRASES, TEMPLATE, PromptsConfig, build_prompts
from clipcovid.report.clip_vs_cnn import NewClass, Paraphrases, Rival, compare_families
from clipcovid.report.findings import Finding
from clipcovid.runs import read_run_metadata
from clipcovid.workflows.predict import can_predict, predict_run
from clipcovid.workflows.prompt_search import MAX_SIMILARITIES, Candidate, PromptSpace, every_candidate, read_space

Log = Callable[[str], None]


def clip_against_cnn(config: CompareConfig, methods: Sequence[MethodPredictions], log: Log = print) -> list[Finding]:
    """The findings of `compare_families` for the methods of a comparison, which must be of one data set that is there still.

    Methods that can, predict its train split, in runs beside theirs. A comparison without a CLIP is a `UserError`.
    """
    if methods[0].metadata["task"] != "classification":
        raise UserError("--clip-vs-cnn is for classifications: segmentations and captions have no such classes.")
    families = {method.name: family for method in methods if (family := _family(method))}
    if "CLIP" not in families.values():
        raise UserError(
            "--clip-vs-cnn needs a method that starts from a CLIP among those compared, e.g. a zero-shot run."
        )
    data, manifest = _find_data(methods)
    has_train = bool((manifest.table["split"] == "train").any())
    if not has_train:
        log(f"note: {data} has no train split: nothing is said of over-fitting.")
    asked = [method for method in methods if is_zeroshot_run(method.folder)]
    untrained = [method.name for method in asked if not _learned_from(config, method, data, manifest)]
    asked.sort(key=lambda method: method.name not in untrained)  # a fine-tuned encoder's words come second
    rivals = [
        Rival(
            name=method.name,
            family=families[method.name],
            table=method.table,
            training=_training_predictions(config, method, data, log) if has_train else None,
            zero_shot=method.name in untrained,
        )
        for method in methods
        if method.name in families
    ]
    classes: list[str] = methods[0].metadata["classes"]
    return compare_families(
        rivals,
        classes,
        str(data),
        paraphrases=_paraphrases(config, asked[0], data, classes, log) if asked else (),
        new_classes=_new_classes(config, asked[0], classes, log) if untrained else (),
    )


def _find_data(methods: Sequence[MethodPredictions]) -> tuple[Path, Manifest]:
    """The prepared folder of the compared images, which a run names; none that is there: `UserError`."""
    names = {str(read_run_metadata(method.folder).get("config", {}).get("data", "")) for method in methods}
    for folder in (Path(name) for name in sorted(names) if (Path(name) / "manifest.parquet").is_file()):
        manifest = read_manifest(folder)
        if manifest.split_hash == methods[0].metadata["split_hash"]:
            return folder, manifest
    raise UserError(
        f"--clip-vs-cnn reads the compared images, and the data set that the runs name ({', '.join(sorted(names))}) is not "
        "there, or has other splits now."
    )


def _learned_from(config: CompareConfig, method: MethodPredictions, data: Path, manifest: Manifest) -> bool:
    """Whether a zero-shot run's encoder is one of ours that learned from images of the compared data set."""
    return bool(is_training_image(_encoder(config, method, data).clip, manifest)[0].any())


def _family(method: MethodPredictions) -> Literal["CLIP", "CNN"] | None:
    """The family of a method by what its config names: a CLIP, or an architecture; None for both, or neither."""
    if is_zeroshot_run(method.folder):
        return "CLIP"
    task = method.metadata["identity"].get("task", "")
    if task not in METHODS:
        return None
    names = {field.name for field in fields(METHODS[task].config)}
    has_clip, has_arch = "clip" in names, "arch" in names
    return None if has_clip == has_arch else "CLIP" if has_clip else "CNN"


def _training_predictions(
    config: CompareConfig, method: MethodPredictions, data: Path, log: Log
) -> pd.DataFrame | None:
    """A method's predictions of the train split, as it predicts and not as it was augmented; None where it makes none."""
    folder = method.folder
    if not can_predict(folder):
        return None
    predict = PredictConfig(run=folder, data=data, split="train", out=config.out, compute=config.compute)
    table, _ = read_predictions(predict_run(predict, log).run.folder / "predictions" / "train.parquet")
    return table.sort_values("image_id", ignore_index=True)


def _paraphrases(
    config: CompareConfig, method: MethodPredictions, data: Path, classes: Sequence[str], log: Log
) -> list[Paraphrases]:
    """A zero-shot run's encoder with every template and one phrase a class, and with one template and all phrases."""
    encoder, space = _encoder(config, method, data), read_space(None, classes)
    embeddings = embed(encoder, log)
    from clipcovid.inference.search import text_embeddings
    from clipcovid.models.clip import load_clip  # torch, which a comparison does not need before

    clip = load_clip(encoder.clip, seed=encoder.seed, precision=embeddings.encoder["precision"])
    images = embeddings.load(method.table["image_id"]).astype(np.float32)
    usual: dict[str, tuple[str, ...]] = {
        name: (usual_phrase(name, phrases),) for name, phrases in space.phrases.items()
    }
    spaces = {
        "templates": PromptSpace(space.templates, space.parts, usual),
        "names of the classes": PromptSpace((TEMPLATE,), (1,), space.phrases),
    }
    found = []
    for varied, part in spaces.items():
        candidates = list(every_candidate(part))
        features = text_embeddings(embeddings, clip, part.texts).astype(np.float32)
        said = tuple(describe_candidate(part, one, names=varied != "templates") for one in candidates)
        predicted = predict_candidates(
            images, features.reshape(len(part.templates), -1, features.shape[1]), part, candidates
        )
        if len(candidates) > 1:
            found.append(Paraphrases(method=method.name, varied_noun=varied, texts=said, predicted=predicted))
    return found


def usual_phrase(name: str, phrases: Sequence[str]) -> str:
    """The phrase that stands for a class where none is asked for, or the first."""
    return next((phrase for phrase in PHRASES.get(name, (name,)) if phrase in phrases), phrases[0])


def describe_candidate(space: PromptSpace, candidate: Candidate, *, names: bool) -> str:
    """A candidate's template, or the names that it gives the classes."""
    if not names:
        return space.templates[candidate.templates[0]]
    chosen = zip(space.phrases.values(), candidate.phrases, strict=True)
    return " / ".join(phrases[indices[0]] for phrases, indices in chosen)


def predict_candidates(
    images: np.ndarray, texts: np.ndarray, space: PromptSpace, candidates: Sequence[Candidate]
) -> np.ndarray:
    """The class of each image with each candidate of one template and one phrase a class, indices (candidates, n) int64.

    `images` (n, d) and `texts` (templates, phrases of all classes, d) float32, of L2 norm 1.
    """
    sizes = [len(phrases) for phrases in space.phrases.values()]
    offsets = np.cumsum([0, *sizes[:-1]])
    rows = np.array([candidate.templates[0] for candidate in candidates])
    columns = np.array([[offset + of[0] for offset, of in zip(offsets, c.phrases, strict=True)] for c in candidates])
    chunk = max(1, MAX_SIMILARITIES // (len(images) * len(sizes)))
    parts = []
    for start in range(0, len(candidates), chunk):
        part = slice(start, start + chunk)
        features = texts[rows[part, None], columns[part]]  # (chunk, k, d)
        similar = images @ features.reshape(-1, features.shape[2]).T
        parts.append(similar.reshape(len(images), -1, len(sizes)).argmax(axis=2).T)
    return np.concatenate(parts)


def _new_classes(config: CompareConfig, method: MethodPredictions, classes: Sequence[str], log: Log) -> list[NewClass]:
    """The classes of the external sets that are none of the methods', each told by its name by a zero-shot run's encoder."""
    found = []
    for data in config.external:
        manifest = read_manifest(data)
        new = [name for name in manifest.classes if name not in classes]
        rows = manifest.table[manifest.table["label"] != ""].reset_index(drop=True)
        if not new or rows["label"].nunique() < 2:
            continue
        encoder = _encoder(config, method, data)
        prompts = build_prompts(PromptsConfig(), manifest.classes)
        embeddings = embed(encoder, log, manifest=manifest)
        table, _ = classify_embeddings(encoder, embeddings, rows["image_id"], prompts, log)
        found += [
            NewClass(
                name=name,
                data=str(data),
                is_class=(rows["label"] == name).to_numpy(),
                scores=table[f"prob_{name}"].to_numpy(),
                patients=tuple(rows["patient_id"]),
            )
            for name in new
            if (rows["label"] == name).any()
        ]
    return found


def _encoder(config: CompareConfig, method: MethodPredictions, data: Path) -> EmbedConfig:
    return zeroshot_encoder(PredictConfig(run=method.folder, data=data, out=config.out, compute=config.compute))
