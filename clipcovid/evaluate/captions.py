"""Scores of captions: BLEU, METEOR, ROUGE-L and CIDEr as the COCO toolkit computes them, and retrieval, with intervals.

Chen et al. 2015 (Microsoft COCO captions: data collection and evaluation server), by the package pycocoevalcap. Its
tokenizer and METEOR are Java programs: without Java, texts are split by NLTK's Treebank rules, and METEOR is not scored.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipcovid.evaluate.retrieval import nearest

HYPOTHESIS_COLUMN = "hypothesis"
BASELINES = {  # column → what it is
    "hypothesis_frequent": "most frequent caption",
    "hypothesis_random": "random caption",
    "hypothesis_nearest": "nearest image's caption",
    "hypothesis_own": "own split's captions",
    "hypothesis_greedy": "greedy search",
}
METEOR_MAX_WORDS = 100  # its alignment of texts of thousands of words takes minutes and then all memory
RANK_COLUMNS = {"image_to_text_rank": "image_to_text", "text_to_image_rank": "text_to_image"}
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider")
NO_JAVA = (
    "METEOR is not scored: it is a Java program, and there is no java (of Debian's default-jre-headless, for one)."
)
_PUNCTUATION = {
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
}


def java_note() -> str:
    """What can't be scored for want of Java, "" where it is there."""
    return "" if shutil.which("java") else NO_JAVA


@dataclass(frozen=True)
class CocoCaptionScores:
    """A caption's scores each, and of all together."""

    overall: dict[str, float]
    """Metric → the toolkit's figure for all of them."""
    counts: np.ndarray
    """What BLEU is made of, (n, 10) int64: words, the reference's words, and n-grams there and right of n = 1 … 4."""
    per_caption: dict[str, np.ndarray]
    """rouge_l, cider, and meteor: (n,) float64 of which the overall figure is the mean, or near to it for METEOR."""

    def subset_metrics(self, indices: np.ndarray) -> dict[str, float]:
        """The metrics of some of them; CIDEr with the weights of n-grams that all of them give."""
        metrics = bleu(self.counts[indices].sum(axis=0))
        for name, values in self.per_caption.items():
            metrics[name] = float(values[indices].mean() + self.overall[name] - values.mean())
        return metrics


def tokenize(texts: Sequence[str]) -> list[str]:
    """Lower-case words without punctuation, joined by spaces: Stanford's tokenizer, or without Java NLTK's."""
    flat = [" ".join(text.replace("|||", " ").split()) for text in texts]  # what would end a line for Java, too
    if java_note():
        from nltk.tokenize import TreebankWordTokenizer

        words = TreebankWordTokenizer().tokenize_sents([text.lower() for text in flat])
        return [" ".join(token for token in tokens if token.upper() not in _PUNCTUATION) for tokens in words]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenized = PTBTokenizer().tokenize({at: [{"caption": text}] for at, text in enumerate(flat)})
    return [tokenized[at][0] for at in range(len(flat))]


def retrieval_baselines(
    images: np.ndarray, train_images: np.ndarray, captions: Sequence[str], caption_indices: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Captions of images without a captioner: columns of `BASELINES`, (n,) texts each.

    `images` (n, d) and `train_images` (m, d) are features of L2 norm 1 of the images and of the training images, whose
    captions are `captions[caption_indices]`.
    """
    caption_array = np.asarray(captions, object)
    random_rows = np.random.default_rng(seed).integers(0, len(caption_indices), len(images))
    return {
        "hypothesis_frequent": np.full(len(images), caption_array[np.bincount(caption_indices).argmax()], object),
        "hypothesis_random": caption_array[caption_indices[random_rows]],
        "hypothesis_nearest": caption_array[caption_indices[nearest(images, train_images)]],
    }


@functools.cache
def _meteor() -> Any:
    """METEOR's process, which takes seconds to start, once for all."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def caption_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> CocoCaptionScores:
    """Score n hypotheses against a reference each, both as `tokenize` gives them."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = {at: [text] for at, text in enumerate(references)}
    candidates = {at: [text] for at, text in enumerate(hypotheses)}
    scorer = BleuScorer(n=4)
    for text, reference in zip(hypotheses, references, strict=True):
        scorer += (text, [reference])
    counts = np.array(
        [
            [entry["testlen"], reflen[0], *entry["guess"], *entry["correct"]]
            for entry, (reflen, _) in zip(scorer.ctest, scorer.crefs, strict=True)
        ]
    )
    overall, per_caption = bleu(counts.sum(axis=0)), {}
    scorers: dict[str, Any] = {"rouge_l": Rouge(), "cider": Cider()}
    if not java_note():
        scorers["meteor"] = _meteor()
    for name, toolkit in scorers.items():
        texts = (truth, candidates) if name != "meteor" else (_first_words(truth), _first_words(candidates))
        score, values = toolkit.compute_score(*texts)
        overall[name], per_caption[name] = float(score), np.asarray(values, np.float64)
    return CocoCaptionScores(overall=overall, counts=counts, per_caption=per_caption)


def _first_words(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    return {at: [" ".join(text.split()[:METEOR_MAX_WORDS]) for text in captions] for at, captions in texts.items()}


def bleu(counts: np.ndarray) -> dict[str, float]:
    """bleu_1 … bleu_4 from summed counts (10,): Papineni et al. 2002, smoothed as in the COCO toolkit."""
    words, reference, guessed, right = counts[0], counts[1], counts[2:6], counts[6:]
    ratio = (words + 1e-15) / (reference + 1e-9)
    shares = np.cumprod((right + 1e-15) / (guessed + 1e-9)) ** (1 / np.arange(1, 5))
    return {f"bleu_{n}": float(value * min(1.0, np.exp(1 - 1 / ratio))) for n, value in enumerate(shares, 1)}
