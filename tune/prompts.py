"""Search for the words that let CLIP classify best without training, on the validation split's cached embeddings.

    python tune/prompts.py --data data/quex --clip.model ViT-B-32 --clip.pretrained openai
    python tune/prompts.py --data data/quex --search evolve --candidates 20000 --objective macro_auroc
    python tune/prompts.py --data data/quex --space my-words.yaml --search exhaustive

A candidate is an ensemble of templates with a choice of phrases for each class. No image is encoded twice, and the test
split is looked at once, by the winner. Killed and run again, it goes on with the trials that are missing.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console

from clipcovid.config import ClipConfig, ComputeConfig, EmbeddingsConfig, UserError, run_job
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.evaluate import plots
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.prompt_scoring import Objective, score_candidates
from clipcovid.identity import prompts_identity
from clipcovid.inference.embed import EmbedConfig, Embeddings, embed
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.io.files import atomic_write, write_json
from clipcovid.io.mappings import read_mapping
from clipcovid.models.recognition import clip_defaults
from clipcovid.prompts import PHRASES, PromptsConfig, build_prompts, texts_of
from clipcovid.randomness import stream_seed
from clipcovid.ray_backend.tune import Trial, run_trials
from clipcovid.runs import Run, finish_run, start_run
from clipcovid.tracking import Status, track, ui_command

OPENINGS = ("", "a ", "an image of a ", "findings of a ")
KINDS = ("chest X-ray", "chest radiograph", "frontal chest X-ray", "PA chest radiograph", "X-ray of the lungs", "photo")
LINKS = (" of ", " showing ", " with ", " of a patient with ", " consistent with ", " suggesting ", ": ")
ENDINGS = ("", ".", ", radiology report")
SYNONYMS = {
    "COVID-19": (
        "COVID-19",
        "COVID-19 pneumonia",
        "SARS-CoV-2 infection",
        "bilateral ground-glass opacities",
        "coronavirus",
    ),
    "Non-COVID": (
        "pneumonia",
        "viral or bacterial pneumonia",
        "bacterial pneumonia",
        "lobar consolidation",
        "lung infection",
    ),
    "Normal": ("normal lungs", "no findings", "healthy lungs", "clear lungs", "no acute disease"),
}
ELITES = 0.2  # the share of a generation that the next one is bred from
Search = Literal["random", "exhaustive", "optuna", "evolve"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSweepConfig(EmbeddingsConfig):
    """What to search, where, and how long."""

    data: Path
    """A prepared folder."""
    clip: ClipConfig = ClipConfig()
    """The encoder."""
    search: Search = "random"
    """random. exhaustive: every template with every choice of one phrase a class. optuna: TPE. evolve: the best candidates
    of a generation are crossed, and parts of their templates and their phrases changed."""
    candidates: int = 2000
    """How many to score; exhaustive scores all that there are, or refuses."""
    batch: int = 500
    """Candidates a trial. optuna and evolve learn within a trial, so that trials are independent tries."""
    ensemble: int = 3
    """The most templates of a candidate, and the most phrases of a class."""
    objective: Objective = "macro_f1"
    """What is best on the validation split."""
    space: Path | None = None
    """A YAML file of {templates: […], classes: {name: [phrase, …]}}. Default: templates composed of parts, and synonyms."""
    input: Literal["packed", "raw"] = "packed"
    """packed: embeddings of the prepared pixels. raw: of the original files at the encoder's own size."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store go."""
    name: str = ""
    """The run folder's name. Default: prompts and the identity's hash."""
    seed: int = 0
    """Seed of the search, and of random weights."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """The model is what a folder of weights says it is."""
        return clip_defaults(self.clip)

    def __post_init__(self) -> None:
        for name in ("candidates", "batch", "ensemble"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Space:
    """What candidates are made of."""

    templates: tuple[str, ...]
    parts: tuple[int, ...]
    """How many choices each part of a template has, in the order of `templates`; one number where they are not composed."""
    phrases: dict[str, tuple[str, ...]]
    """Class → its phrases."""

    @property
    def texts(self) -> list[str]:
        """Every template with every phrase, template by template, the classes' phrases in their order."""
        phrases = [phrase for some in self.phrases.values() for phrase in some]
        return [template.replace("{}", phrase) for template in self.templates for phrase in phrases]

    def prompts(self, candidate: "Candidate") -> dict[str, list[str]]:
        """Class → the texts of a candidate."""
        return {
            name: [
                self.templates[template].replace("{}", phrases[phrase])
                for template in candidate.templates
                for phrase in chosen
            ]
            for (name, phrases), chosen in zip(self.phrases.items(), candidate.phrases, strict=True)
        }


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An ensemble: positions of templates, and for each class positions of phrases."""

    templates: tuple[int, ...]
    phrases: tuple[tuple[int, ...], ...]


def read_space(path: Path | None, classes: Sequence[str]) -> Space:
    """The space of a file, or the default one; a class without phrases, or a template without {}, is a `UserError`."""
    if path is None:
        parts = (OPENINGS, KINDS, LINKS, ENDINGS)
        templates = tuple(f"{o}{k}{link}{{}}{end}" for o, k, link, end in itertools.product(*parts))
        phrases: dict[str, tuple[str, ...]] = {
            name: SYNONYMS.get(name) or PHRASES.get(name, (name,)) for name in classes
        }
        return Space(templates, tuple(map(len, parts)), phrases)
    content = read_mapping(path, "--space")
    if not content.get("templates") or not isinstance(content.get("classes"), dict):
        raise UserError(f"--space {path} must hold {{templates: […], classes: {{name: [phrase, …]}}}}.")
    templates = texts_of(content["templates"], path, "--space")
    if lacking := [template for template in templates if "{}" not in template]:
        raise UserError(f"--space {path}: the template {lacking[0]!r} has no {{}} for the class's phrase.")
    if missing := [name for name in classes if not content["classes"].get(name)]:
        raise UserError(f"--space {path} has no phrase for the class {missing[0]!r}.")
    return Space(
        templates, (len(templates),), {name: texts_of(content["classes"][name], path, "--space") for name in classes}
    )


class Scorer:
    """Scores candidates on embeddings that are there already."""

    def __init__(
        self,
        space: Space,
        vectors: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        objective: Objective,
        scale: float,
    ) -> None:
        """`vectors` (templates, phrases of all classes, d); `images` (n, d) and `labels` (n,) of the validation split."""
        self.space, self.vectors, self.images = space, vectors, images.astype(np.float32)
        self.labels, self.objective, self.scale = labels, objective, scale
        sizes = [len(phrases) for phrases in space.phrases.values()]
        self.starts = np.cumsum([0, *sizes[:-1]])

    def __call__(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """The objective of each, (b,) float64."""
        texts = np.stack([self._texts(candidate) for candidate in candidates])
        texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
        classes = list(self.space.phrases)
        chunk = max(1, 20_000_000 // (len(self.images) * len(classes)))
        parts = [
            score_candidates(self.images, texts[at : at + chunk], self.labels, classes, self.objective, self.scale)
            for at in range(0, len(texts), chunk)
        ]
        return np.concatenate(parts)

    def _texts(self, candidate: Candidate) -> np.ndarray:
        """Sums of the texts of each class (k, d) float32: only their direction counts."""
        rows = self.vectors[list(candidate.templates)].astype(np.float32).sum(axis=0)
        return np.stack(
            [
                rows[start + np.array(chosen)].sum(axis=0)
                for start, chosen in zip(self.starts, candidate.phrases, strict=True)
            ]
        )


class Draw:
    """Random candidates of a space."""

    def __init__(self, space: Space, ensemble: int, seed: int) -> None:
        self.space, self.ensemble, self.rng = space, ensemble, np.random.default_rng(seed)
        self.sizes = [len(phrases) for phrases in space.phrases.values()]

    def some(self, of: int) -> tuple[int, ...]:
        """Up to `ensemble` of `of` positions, at least one, in order."""
        count = int(self.rng.integers(1, min(self.ensemble, of) + 1))
        return tuple(sorted(self.rng.choice(of, count, replace=False).tolist()))

    def candidate(self) -> Candidate:
        """One, with as many templates and phrases as chance has it."""
        return Candidate(self.some(len(self.space.templates)), tuple(self.some(size) for size in self.sizes))

    def child(self, one: Candidate, other: Candidate) -> Candidate:
        """Of two parents: templates and phrases of either, one part of a template or one class's phrases anew."""
        templates = {one.templates, other.templates, tuple({*one.templates, *other.templates})}
        mixed = list(sorted(templates)[int(self.rng.integers(len(templates)))])[: self.ensemble]
        phrases = [(a, b)[int(self.rng.integers(2))] for a, b in zip(one.phrases, other.phrases, strict=True)]
        if self.rng.random() < 0.5:
            at = int(self.rng.integers(len(mixed)))
            parts = [int(part) for part in np.unravel_index(mixed[at], self.space.parts)]
            which = int(self.rng.integers(len(parts)))
            parts[which] = int(self.rng.integers(self.space.parts[which]))
            mixed[at] = int(np.ravel_multi_index(parts, self.space.parts))
        else:
            which = int(self.rng.integers(len(phrases)))
            phrases[which] = self.some(self.sizes[which])
        return Candidate(tuple(sorted(set(mixed))), tuple(phrases))


def random_search(draw: Draw, scorer: Scorer, count: int) -> Iterator[tuple[Candidate, float]]:
    """So many random candidates."""
    made = [draw.candidate() for _ in range(count)]
    yield from zip(made, scorer(made).tolist(), strict=True)


def evolve(draw: Draw, scorer: Scorer, count: int, generations: int = 10) -> Iterator[tuple[Candidate, float]]:
    """Generations, each bred from the best of all before."""
    size, seen = max(2, count // generations), dict[Candidate, float]()
    while count:
        best = sorted(seen, key=lambda one: seen[one], reverse=True)[: max(2, int(ELITES * size))]
        made = []
        for _ in range(min(size, count)):
            if len(best) < 2:
                made.append(draw.candidate())
                continue
            one, other = draw.rng.choice(len(best), 2)
            made.append(draw.child(best[one], best[other]))
        for candidate, score in zip(made, scorer(made).tolist(), strict=True):
            seen[candidate] = score
            yield candidate, score
        count -= len(made)


def tpe(draw: Draw, scorer: Scorer, count: int, asked: int = 20) -> Iterator[tuple[Candidate, float]]:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), asked for some at a time."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=int(draw.rng.integers(2**31)), constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    parts, sizes = draw.space.parts, draw.sizes
    while count:
        trials, made = [study.ask() for _ in range(min(asked, count))], []
        for trial in trials:
            templates = []
            for place in range(trial.suggest_int("templates", 1, min(draw.ensemble, len(draw.space.templates)))):
                found = [trial.suggest_categorical(f"{place}-{n}", list(range(size))) for n, size in enumerate(parts)]
                templates.append(int(np.ravel_multi_index(found, parts)))
            phrases = tuple(
                (trial.suggest_categorical(f"class-{n}", list(range(size))),) for n, size in enumerate(sizes)
            )
            made.append(Candidate(tuple(sorted(set(templates))), phrases))
        for trial, one, score in zip(trials, made, scorer(made).tolist(), strict=True):
            study.tell(trial, score)
            yield one, score
        count -= len(trials)


SEARCHES: dict[str, Callable[[Draw, Scorer, int], Iterator[tuple[Candidate, float]]]] = {
    "random": random_search,
    "optuna": tpe,
    "evolve": evolve,
}


def every_candidate(space: Space) -> Iterator[Candidate]:
    """Every template with every choice of one phrase a class."""
    for template in range(len(space.templates)):
        for chosen in itertools.product(*(range(len(phrases)) for phrases in space.phrases.values())):
            yield Candidate((template,), tuple((phrase,) for phrase in chosen))


def score_batch(task: dict[str, Any], *, config: PromptSweepConfig, space: Space, scorer: Scorer) -> dict[str, float]:
    """What a trial does: score its share of the candidates, and keep them in its table."""
    if config.search == "exhaustive":
        made = list(itertools.islice(every_candidate(space), task["start"], task["start"] + task["count"]))
        found = list(zip(made, scorer(made).tolist(), strict=True))
    else:
        draw = Draw(space, config.ensemble, seed=stream_seed("prompts", config.seed, task["number"]))
        found = list(SEARCHES[config.search](draw, scorer, task["count"]))
    rows = [
        {
            "trial": task["number"],
            "score": score,
            "templates": [space.templates[at] for at in one.templates],
            "prompts": json.dumps(space.prompts(one), ensure_ascii=False),
        }
        for one, score in found
    ]
    with atomic_write(Path(task["path"])) as partial:
        pd.DataFrame(rows).to_parquet(partial)
    scores = np.array([score for _, score in found])
    return {"best": float(np.nanmax(scores)), "mean": float(np.nanmean(scores)), "candidates": float(len(scores))}


def main(config: PromptSweepConfig) -> None:
    """Search, keep the winner's prompts, score it once on the test split, and show all of it."""
    manifest, store = read_manifest(config.data), embed(EmbedConfig.of(config))
    space = read_space(config.space, manifest.classes)
    run = start_run(config, method="prompts", identity=prompts_identity(config, manifest, space))
    if run.done:
        print(f"{run.folder} is finished already: nothing was left to do.")
        return
    scorer, seeds = _scorer(config, manifest, store, space)
    trials = run_trials(
        batches(config, space, run.folder.resolve()),
        score_batch,
        settings={"config": config, "space": space, "scorer": scorer},
        compute=config.compute,
    )
    if failed := sum(trial.state == "failed" for trial in trials):
        raise UserError(
            f"{failed} of {len(trials)} trials failed: run the same command again to make up for them, or with "
            "--compute.workers 0 to see why."
        )
    table = pd.concat([pd.read_parquet(trial.task["path"]) for trial in trials], ignore_index=True)
    with atomic_write(run.folder / "candidates.parquet") as partial:
        table.to_parquet(partial)
    best: dict[Any, Any] = table.iloc[[int(table["score"].argmax())]].to_dict("records")[0]
    write_json(run.folder / "prompts.json", json.loads(best["prompts"]))
    marks = seeds | {"winner": float(best["score"])}
    figure = plots.spread(table["score"].to_numpy(), marks, what=f"validation {config.objective}")
    plots.save({"spread": figure}, run.folder / "figures")
    scored = zeroshot(
        ZeroshotConfig(
            data=config.data,
            clip=config.clip,
            prompts=PromptsConfig(prompts=str(run.folder / "prompts.json")),
            input=config.input,
            embeddings=store.folder.parent,
            out=run.folder,
            name="winner",
            seed=config.seed,
            compute=config.compute,
        )
    ).scores
    if scored is None:
        raise UserError(
            f"The encoder learned from all test images of {config.data}: there is nothing to score prompts by."
        )
    scored["notes"].append(
        f"The prompts are the best of {len(table):,} by {config.objective} on the validation split ({best['score']:.3f}; "
        + ", ".join(f"{name} {value:.3f}" for name, value in seeds.items())
        + "); the test split was scored once."
    )
    write_json(run.folder / "metrics.json", {"test": scored})
    finish_run(run)
    print_scores(scored, Console())
    print(f"Prompts: {run.folder / 'prompts.json'}")
    _show(config, manifest, run, trials)


def _scorer(
    config: PromptSweepConfig, manifest: Manifest, store: Embeddings, space: Space
) -> tuple[Scorer, dict[str, float]]:
    """What scores, and the scores of the prompts that everybody starts with."""
    from clipcovid.inference.search import text_vectors
    from clipcovid.models.clip import class_embeddings, load_clip

    rows, _ = manifest.eligible("val", ("label",))
    labels = np.array([manifest.classes.index(label) for label in rows["label"]], np.int64)
    clip = load_clip(config.clip, seed=config.seed, precision=store.encoder["precision"])
    vectors = text_vectors(store, clip, space.texts)
    vectors = vectors.reshape(len(space.templates), -1, vectors.shape[1])
    images = store.load(rows["image_id"])
    scorer = Scorer(space, vectors, images, labels, config.objective, clip.logit_scale)
    seeds = {}
    for name in ("single", "ensemble"):
        own = class_embeddings(clip, build_prompts(PromptsConfig(prompts=name), manifest.classes))
        one = score_candidates(scorer.images, own[None], labels, manifest.classes, config.objective, clip.logit_scale)
        seeds[name] = float(one[0])
    if not np.isfinite(list(seeds.values())).all():
        raise UserError(f"The validation split has one class: there is no {config.objective} to search by.")
    return scorer, seeds


def batches(config: PromptSweepConfig, space: Space, folder: Path) -> list[dict[str, Any]]:
    """What each trial is asked: its share of the candidates, and where its table goes."""
    total = config.candidates
    if config.search == "exhaustive":
        total = sum(1 for _ in every_candidate(space))
        if total > config.candidates:
            raise UserError(
                f"--search exhaustive has {total:,} candidates here: allow them with --candidates {total}, or give a smaller "
                "--space."
            )
    return [
        {"number": number, "start": start, "count": min(config.batch, total - start)}
        | {"path": str(folder / "trials" / f"{number:05}.parquet")}
        for number, start in enumerate(range(0, total, config.batch))
    ]


def _show(config: PromptSweepConfig, manifest: Manifest, run: Run, trials: Sequence[Trial]) -> None:
    print(f"Run: {run.folder}")
    hashes = {"manifest": manifest.content_hash, "split": manifest.split_hash, "dataset": manifest.dataset}
    if not track(run, config, tags=hashes):
        return
    for trial in trials:
        child = Run(
            folder=run.folder / "trials" / f"{trial.task['number']:05}", method="prompts trial", identity=run.identity
        )
        body = {"metrics": trial.metrics, "baselines": {}, "alarms": []}
        write_json(child.folder / "metrics.json", {"val": body})
        write_json(child.folder / "config.json", {"trial": trial.task})
        status: Status = "FAILED" if trial.state == "failed" else "FINISHED"
        if not track(child, config, tags=hashes | {"clipcovid.trial": trial.state}, parent=run, status=status):
            return
    print(f"MLflow: {ui_command(config.out)}")


if __name__ == "__main__":
    run_job(PromptSweepConfig, main, __doc__)
