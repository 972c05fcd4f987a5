"""A search for the prompts with which CLIP classifies best, on the validation split's cached embeddings."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from clipcovid.config import UserError
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.evaluate import plots
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.prompt_scoring import PromptObjective, score_candidates
from clipcovid.evaluate.scores import Scores
from clipcovid.identity import prompts_identity
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.io.files import atomic_write, write_json
from clipcovid.methods.checkpoints import PROMPTS
from clipcovid.prompts import PromptsConfig, build_prompts
from clipcovid.randomness import stream_seed
from clipcovid.ray_backend.tune import Trial, run_trials
from clipcovid.runs import Run, find_finished_run, finish_run, start_run
from clipcovid.workflows.prompt_search import (
    SEARCHES,
    CandidateSampler,
    CandidateScorer,
    PromptSpace,
    SearchStrategy,
    every_candidate,
    read_space,
)
from clipcovid.workflows.report import ChildRun, report_run


@dataclass(frozen=True, kw_only=True)
class PromptSweepConfig(EmbedConfig):
    """The search: its encoder, its candidates, and its length."""

    search: SearchStrategy = "random"
    """random. exhaustive: every template with every choice of one phrase a class. optuna: TPE. evolve: the best candidates
    of a generation are crossed, and parts of their templates and their phrases changed."""
    candidates: int = 2000
    """How many to score; exhaustive scores all that there are, or refuses."""
    batch: int = 500
    """Candidates a trial. optuna and evolve learn within a trial, so that trials are independent tries."""
    ensemble: int = 3
    """The most templates of a candidate, and the most phrases of a class."""
    objective: PromptObjective = "macro_f1"
    """What is best on the validation split."""
    space: Path | None = None
    """A YAML file of {templates: […], classes: {name: [phrase, …]}}. Default: templates composed of parts, and synonyms."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store go."""
    name: str = ""
    """The run folder's name. Default: prompts and the identity's hash."""
    seed: int = 0
    """Seed of the search, and of random weights."""

    def __post_init__(self) -> None:
        for name in ("candidates", "batch", "ensemble"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 1.")


def sweep_prompts(config: PromptSweepConfig) -> None:
    """Search, keep the best candidate's prompts, score them once on the test split, and report all of it."""
    manifest = read_manifest(config.data)
    embeddings = embed(EmbedConfig.from_config(config), manifest=manifest)
    space = read_space(config.space, manifest.classes)
    identity = prompts_identity(config, manifest, space)
    if done := find_finished_run(config, method="prompts", identity=identity):
        print(done.finished_note)
        return
    run = start_run(config, method="prompts", identity=identity)
    scorer, standard_scores = _scorer(config, manifest, embeddings, space)
    trials = run_trials(
        trial_tasks(config, space, run.folder.resolve()),
        score_batch,
        settings={"config": config, "space": space, "scorer": scorer},
        compute=config.compute,
    )
    table = _candidates(trials)
    with atomic_write(run.folder / "candidates.parquet") as partial:
        table.to_parquet(partial)
    best = table.iloc[int(table["score"].argmax())]
    write_json(run.folder / PROMPTS, json.loads(best["prompts"]))
    marks = standard_scores | {"winner": float(best["score"])}
    figure = plots.score_distribution_figure(
        table["score"].to_numpy(), marks, score_name=f"validation {config.objective}"
    )
    plots.save_figures({"spread": figure}, run.folder / "figures")
    scores = _test_scores(config, run, embeddings)
    origin = (
        f"The prompts are the best of {len(table):,} by {config.objective} on the validation split ({best['score']:.3f}; "
        + ", ".join(f"{name} {value:.3f}" for name, value in standard_scores.items())
        + "); the test split was scored once."
    )
    scores = replace(scores, notes=[*scores.notes, origin])
    write_json(run.folder / "metrics.json", {"test": scores.to_json()})
    finish_run(run)
    print_scores(scores, Console())
    print(f"Prompts: {run.folder / 'prompts.json'}")
    report_run(run, config, manifest=manifest, splits=("val", "test"), children=_trial_runs(run, config, trials))


def _scorer(
    config: PromptSweepConfig, manifest: Manifest, embeddings: Embeddings, space: PromptSpace
) -> tuple[CandidateScorer, dict[str, float]]:
    """The scorer of candidates, and the scores of the standard prompts by their names: single and ensemble."""
    from clipcovid.inference.search import text_embeddings
    from clipcovid.models.clip import load_clip
    from clipcovid.models.clip_model import class_embeddings

    rows, _ = manifest.rows_with("val", ("label",))
    labels = np.array([manifest.classes.index(label) for label in rows["label"]], np.int64)
    clip = load_clip(config.clip, seed=config.seed, precision=embeddings.encoder["precision"])
    texts = text_embeddings(embeddings, clip, space.texts)
    texts = texts.reshape(len(space.templates), -1, texts.shape[1])
    scorer = CandidateScorer(
        space, texts, embeddings.load(rows["image_id"]), labels, config.objective, clip.logit_scale
    )
    scores = {}
    for name in ("single", "ensemble"):
        features = class_embeddings(clip, build_prompts(PromptsConfig(prompts=name), manifest.classes))[None]
        (score,) = score_candidates(
            scorer.image_features, features, labels, manifest.classes, config.objective, clip.logit_scale
        )
        scores[name] = float(score)
    if not np.isfinite(list(scores.values())).all():
        raise UserError(f"The validation split has one class: there is no {config.objective} to search by.")
    return scorer, scores


def trial_tasks(config: PromptSweepConfig, space: PromptSpace, folder: Path) -> list[dict[str, Any]]:
    """The task of each trial: its share of the candidates, and the path of its table."""
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


def score_batch(
    task: dict[str, Any], *, config: PromptSweepConfig, space: PromptSpace, scorer: CandidateScorer
) -> dict[str, float]:
    """A trial: score its share of the candidates, write them as a table, and return the best and the mean score."""
    if config.search == "exhaustive":
        candidates = list(itertools.islice(every_candidate(space), task["start"], task["start"] + task["count"]))
        scored = list(zip(candidates, scorer(candidates).tolist(), strict=True))
    else:
        sampler = CandidateSampler(space, config.ensemble, seed=stream_seed("prompts", config.seed, task["number"]))
        scored = list(SEARCHES[config.search](sampler, scorer, task["count"]))
    rows = [
        {
            "trial": task["number"],
            "score": score,
            "templates": [space.templates[index] for index in candidate.templates],
            "prompts": json.dumps(space.prompts(candidate), ensure_ascii=False),
        }
        for candidate, score in scored
    ]
    with atomic_write(Path(task["path"])) as partial:
        pd.DataFrame(rows).to_parquet(partial)
    scores = np.array([score for _, score in scored])
    return {"best": float(np.nanmax(scores)), "mean": float(np.nanmean(scores)), "candidates": float(len(scores))}


def _candidates(trials: Sequence[Trial]) -> pd.DataFrame:
    """The candidates of all trials with their scores; a trial that failed is a `UserError`."""
    if failed := sum(trial.state == "failed" for trial in trials):
        raise UserError(
            f"{failed} of {len(trials)} trials failed: run the same command again to make up for them, or with "
            "--compute.workers 0 to see why."
        )
    return pd.concat([pd.read_parquet(trial.params["path"]) for trial in trials], ignore_index=True)


def _test_scores(config: PromptSweepConfig, run: Run, embeddings: Embeddings) -> Scores:
    """The test split's scores with the prompts of the run, by zero-shot classification in its folder `winner`."""
    scores = zeroshot(
        ZeroshotConfig(
            data=config.data,
            clip=config.clip,
            prompts=PromptsConfig(prompts=str(run.folder / PROMPTS)),
            input=config.input,
            embeddings=embeddings.folder.parent,
            out=run.folder,
            name="winner",
            seed=config.seed,
            compute=config.compute,
        )
    ).scores
    if scores is None:
        raise UserError(
            f"The encoder learned from all test images of {config.data}: there is nothing to score prompts by."
        )
    return scores


def _trial_runs(run: Run, config: PromptSweepConfig, trials: Sequence[Trial]) -> Iterator[ChildRun]:
    """Each trial as a run, in a folder of its own."""
    for trial in trials:
        folder = run.folder / "trials" / f"{trial.params['number']:05}"
        write_json(folder / "metrics.json", {"val": {"metrics": trial.metrics, "baselines": {}, "alarms": []}})
        write_json(folder / "config.json", {"trial": trial.params})
        yield ChildRun(
            run=Run(folder=folder, method="prompts trial", identity=run.identity),
            config=config,
            tags={"clipcovid.trial": trial.state},
            status="FAILED" if trial.state == "failed" else "FINISHED",
        )
