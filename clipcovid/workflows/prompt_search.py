"""Candidates of prompts: the space that they are drawn from, their scores on cached embeddings, and searches for the best."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clipcovid.config import UserError
from clipcovid.evaluate.prompt_scoring import PromptObjective, score_candidates
from clipcovid.io.mappings import read_mapping
from clipcovid.prompts import PHRASES, texts_of

OPENINGS = ("", "a ", "an image of a ", "findings of a ")
IMAGE_NOUNS = (
    "chest X-ray",
    "chest radiograph",
    "frontal chest X-ray",
    "PA chest radiograph",
    "X-ray of the lungs",
    "photo",
)
CONNECTORS = (" of ", " showing ", " with ", " of a patient with ", " consistent with ", " suggesting ", ": ")
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
ELITE_SHARE = 0.2  # the share of a generation that the next one is bred from
MAX_SIMILARITIES = 20_000_000  # similarities, which bounds the memory that scoring takes
SearchStrategy = Literal["random", "exhaustive", "optuna", "evolve"]


@dataclass(frozen=True)
class PromptSpace:
    """Templates, and the phrases of each class."""

    templates: tuple[str, ...]
    parts: tuple[int, ...]
    """How many choices each part of a template has, in the order of `templates`; one number where they are not composed."""
    phrases: dict[str, tuple[str, ...]]
    """Class → its phrases."""

    @property
    def texts(self) -> list[str]:
        """Every template with every phrase, template by template, the classes' phrases in their order."""
        phrases = itertools.chain.from_iterable(self.phrases.values())
        return [template.replace("{}", phrase) for template, phrase in itertools.product(self.templates, phrases)]

    def prompts(self, candidate: "Candidate") -> dict[str, list[str]]:
        """Class → the texts of a candidate."""
        return {
            name: [
                self.templates[template].replace("{}", phrases[phrase])
                for template in candidate.templates
                for phrase in indices
            ]
            for (name, phrases), indices in zip(self.phrases.items(), candidate.phrases, strict=True)
        }


@dataclass(frozen=True)
class Candidate:
    """An ensemble of prompts: indices of templates, and for each class indices of phrases."""

    templates: tuple[int, ...]
    phrases: tuple[tuple[int, ...], ...]


def read_space(path: Path | None, classes: Sequence[str]) -> PromptSpace:
    """The space of a file, or the default one; a class without phrases, or a template without {}, is a `UserError`."""
    if path is None:
        parts = (OPENINGS, IMAGE_NOUNS, CONNECTORS, ENDINGS)
        templates = tuple(f"{o}{k}{link}{{}}{end}" for o, k, link, end in itertools.product(*parts))
        phrases: dict[str, tuple[str, ...]] = {
            name: SYNONYMS.get(name) or PHRASES.get(name, (name,)) for name in classes
        }
        return PromptSpace(templates, tuple(map(len, parts)), phrases)
    content = read_mapping(path, "--space")
    if not content.get("templates") or not isinstance(content.get("classes"), dict):
        raise UserError(f"--space {path} must hold {{templates: […], classes: {{name: [phrase, …]}}}}.")
    templates = texts_of(content["templates"], path, "--space")
    if lacking := [template for template in templates if "{}" not in template]:
        raise UserError(f"--space {path}: the template {lacking[0]!r} has no {{}} for the class's phrase.")
    if missing := [name for name in classes if not content["classes"].get(name)]:
        raise UserError(f"--space {path} has no phrase for the class {missing[0]!r}.")
    phrases = {name: texts_of(content["classes"][name], path, "--space") for name in classes}
    return PromptSpace(templates, (len(templates),), phrases)


class CandidateScorer:
    """Scores candidates on cached embeddings."""

    def __init__(
        self,
        space: PromptSpace,
        text_features: np.ndarray,
        image_features: np.ndarray,
        labels: np.ndarray,
        objective: PromptObjective,
        scale: float,
    ) -> None:
        """Keep the embeddings to score on, which have length 1.

        `text_features` (templates, phrases of all classes, d); `image_features` (n, d) and `labels` (n,), indices of classes,
        of the validation split; `scale`: CLIP's logit scale.
        """
        self.space, self.text_features = space, text_features
        self.image_features = image_features.astype(np.float32)
        self.labels, self.objective, self.scale = labels, objective, scale
        sizes = [len(phrases) for phrases in space.phrases.values()]
        self.offsets = np.cumsum([0, *sizes[:-1]])  # of each class's phrases

    def __call__(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """The objective of each candidate, (candidates,) float64."""
        texts = np.stack([self._class_features(candidate) for candidate in candidates])
        texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
        classes = list(self.space.phrases)
        chunk = max(1, MAX_SIMILARITIES // (len(self.image_features) * len(classes)))
        scores = [
            score_candidates(
                self.image_features, texts[at : at + chunk], self.labels, classes, self.objective, self.scale
            )
            for at in range(0, len(texts), chunk)
        ]
        return np.concatenate(scores)

    def _class_features(self, candidate: Candidate) -> np.ndarray:
        """Sums of the texts of each class (k, d) float32: only their direction counts."""
        phrases = self.text_features[list(candidate.templates)].astype(np.float32).sum(axis=0)
        return np.stack(
            [
                phrases[offset + np.array(indices)].sum(axis=0)
                for offset, indices in zip(self.offsets, candidate.phrases, strict=True)
            ]
        )


class CandidateSampler:
    """Draws random candidates of a space."""

    def __init__(self, space: PromptSpace, ensemble: int, seed: int) -> None:
        """`ensemble`: the most templates of a candidate, and the most phrases of a class."""
        self.space, self.ensemble, self.rng = space, ensemble, np.random.default_rng(seed)
        self.sizes = [len(phrases) for phrases in space.phrases.values()]

    def indices(self, size: int) -> tuple[int, ...]:
        """Up to `ensemble` of `size` indices, at least one, in order."""
        count = int(self.rng.integers(1, min(self.ensemble, size) + 1))
        return tuple(sorted(self.rng.choice(size, count, replace=False).tolist()))

    def candidate(self) -> Candidate:
        """A candidate with a random number of templates and phrases."""
        return Candidate(self.indices(len(self.space.templates)), tuple(self.indices(size) for size in self.sizes))

    def breed(self, parent: Candidate, other: Candidate) -> Candidate:
        """Templates and phrases of either parent, with one part of a template or one class's phrases drawn anew."""
        choices = {parent.templates, other.templates, tuple({*parent.templates, *other.templates})}
        templates = list(sorted(choices)[int(self.rng.integers(len(choices)))])[: self.ensemble]
        phrases = [pair[int(self.rng.integers(2))] for pair in zip(parent.phrases, other.phrases, strict=True)]
        if self.rng.random() < 0.5:
            at = int(self.rng.integers(len(templates)))
            parts = [int(part) for part in np.unravel_index(templates[at], self.space.parts)]
            changed = int(self.rng.integers(len(parts)))
            parts[changed] = int(self.rng.integers(self.space.parts[changed]))
            templates[at] = int(np.ravel_multi_index(parts, self.space.parts))
        else:
            changed = int(self.rng.integers(len(phrases)))
            phrases[changed] = self.indices(self.sizes[changed])
        return Candidate(tuple(sorted(set(templates))), tuple(phrases))


ScoredCandidates = Iterator[tuple[Candidate, float]]
"""Candidates with their scores."""


def random_search(sampler: CandidateSampler, scorer: CandidateScorer, count: int) -> ScoredCandidates:
    """`count` random candidates."""
    candidates = [sampler.candidate() for _ in range(count)]
    yield from zip(candidates, scorer(candidates).tolist(), strict=True)


def evolve(sampler: CandidateSampler, scorer: CandidateScorer, count: int, generations: int = 10) -> ScoredCandidates:
    """Generations, each bred from the best of all before."""
    size, scores = max(2, count // generations), dict[Candidate, float]()
    while count:
        elite = sorted(scores, key=lambda candidate: scores[candidate], reverse=True)[: max(2, int(ELITE_SHARE * size))]
        generation = []
        for _ in range(min(size, count)):
            if len(elite) < 2:
                generation.append(sampler.candidate())
                continue
            parent, other = sampler.rng.choice(len(elite), 2)
            generation.append(sampler.breed(elite[parent], elite[other]))
        for candidate, score in zip(generation, scorer(generation).tolist(), strict=True):
            scores[candidate] = score
            yield candidate, score
        count -= len(generation)


def tpe(sampler: CandidateSampler, scorer: CandidateScorer, count: int, batch_size: int = 20) -> ScoredCandidates:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), asked for `batch_size` candidates at a time."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(sampler.rng.integers(2**31)), constant_liar=True),
    )
    parts, sizes = sampler.space.parts, sampler.sizes
    while count:
        trials, candidates = [study.ask() for _ in range(min(batch_size, count))], []
        for trial in trials:
            templates = []
            for position in range(
                trial.suggest_int("templates", 1, min(sampler.ensemble, len(sampler.space.templates)))
            ):
                indices = [
                    trial.suggest_categorical(f"{position}-{n}", list(range(size))) for n, size in enumerate(parts)
                ]
                templates.append(int(np.ravel_multi_index(indices, parts)))
            phrases = tuple(
                (trial.suggest_categorical(f"class-{n}", list(range(size))),) for n, size in enumerate(sizes)
            )
            candidates.append(Candidate(tuple(sorted(set(templates))), phrases))
        for trial, candidate, score in zip(trials, candidates, scorer(candidates).tolist(), strict=True):
            study.tell(trial, score)
            yield candidate, score
        count -= len(trials)


SEARCHES: dict[str, Callable[[CandidateSampler, CandidateScorer, int], ScoredCandidates]] = {
    "random": random_search,
    "optuna": tpe,
    "evolve": evolve,
}


def every_candidate(space: PromptSpace) -> Iterator[Candidate]:
    """Every template with every choice of one phrase a class."""
    for template in range(len(space.templates)):
        for indices in itertools.product(*(range(len(phrases)) for phrases in space.phrases.values())):
            yield Candidate((template,), tuple((phrase,) for phrase in indices))
