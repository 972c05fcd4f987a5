"""Scores of captions, against the COCO toolkit and naive loops."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from clipcovid.evaluate import captions, retrieval
from clipcovid.evaluate.captions import METRICS, caption_metrics, tokenize
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.kinds.captions import KIND

score = KIND.score
REFERENCES = [
    "a man riding a wave on top of a surfboard .",
    "Axial CT of the chest: a large pleural effusion.",
    "a black and white photo of a train (on the tracks)",
    "Sagittal MR, T2-weighted, of the brain; no mass.",
    "a normal chest X-ray",
]
HYPOTHESES = [
    "a man on a surfboard riding a wave",
    "axial CT of the chest with an effusion",
    "a dog",
    "Sagittal MR of the brain.",
    "a normal chest X-ray",
]
JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@pytest.fixture
def without_java(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)


def toolkit():
    """What the COCO toolkit's own driver computes, but for SPICE."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    split = PTBTokenizer()
    true = split.tokenize({at: [{"caption": text}] for at, text in enumerate(REFERENCES)})
    made = split.tokenize({at: [{"caption": text}] for at, text in enumerate(HYPOTHESES)})
    found = dict(zip(METRICS[:4], Bleu(4).compute_score(true, made)[0], strict=True))
    for name, one in (("rouge_l", Rouge()), ("meteor", Meteor()), ("cider", Cider())):
        found[name] = one.compute_score(true, made)[0]
    return found


@JAVA
def test_scores_are_the_coco_toolkits():
    ours = score(pd.DataFrame({"reference": REFERENCES, "hypothesis": HYPOTHESES})).metrics
    assert ours == pytest.approx(toolkit(), abs=1e-9)
    assert list(ours) == list(METRICS)


def test_without_java_all_but_meteor_is_scored_and_said(without_java):
    body = score(pd.DataFrame({"reference": REFERENCES, "hypothesis": HYPOTHESES}))
    assert set(body.metrics) == set(METRICS) - {"meteor"}
    assert any("METEOR is not scored" in note for note in body.notes)
    assert body.metrics["bleu_1"] > 0.3


@JAVA
def test_both_tokenizers_agree_on_such_captions(monkeypatch):
    texts = [*REFERENCES, *HYPOTHESES]
    stanford = tokenize(texts)
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    plain = tokenize(texts)
    same = [one.replace("-lrb-", "").split() == other.split() for one, other in zip(stanford, plain, strict=True)]
    assert np.mean(same) >= 0.8


def test_a_perfect_caption_and_an_empty_one(without_java):
    same = caption_metrics(tokenize(REFERENCES), tokenize(REFERENCES)).overall
    assert same["bleu_4"] == pytest.approx(1)
    assert same["rouge_l"] == pytest.approx(1)
    body = score(pd.DataFrame({"reference": REFERENCES, "hypothesis": [""] * 5}))
    assert body.metrics["bleu_1"] == pytest.approx(0, abs=1e-6)
    assert "5 of 5 captions are empty" in " ".join(body.notes)
    assert body.alarms


def odd_captions():
    return ["胸部レントゲン写真", "word " * 2000, "a ||| b\u2028c\n d", "\x00", "Снимок грудной клетки"]


@JAVA
def test_odd_captions_are_scored_and_stay_in_their_lines():
    texts = tokenize([*odd_captions(), "the last one"])
    assert texts[-1] == "the last one"
    assert len(texts) == 6
    body = score(pd.DataFrame({"reference": [*REFERENCES], "hypothesis": odd_captions()}))
    json.dumps(body.to_json(), allow_nan=False)
    back = score(pd.DataFrame({"reference": odd_captions(), "hypothesis": REFERENCES}))
    json.dumps(back.to_json(), allow_nan=False)
    assert any("other than Latin" in note for note in back.notes)


def test_intervals_resample_what_the_scores_are_made_of(without_java):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(20)]
    truth = [" ".join(rng.choice(words, 8)) for _ in range(60)]
    near = [" ".join([*text.split()[:6], *rng.choice(words, 2)]) for text in truth]
    far = [" ".join(rng.choice(words, 8)) for _ in range(60)]
    table = pd.DataFrame({"reference": truth, "hypothesis": near, "hypothesis_random": far})
    table = table.assign(patient_id=[f"p{i // 2}" for i in range(60)])
    table = table.assign(image_to_text_rank=rng.integers(1, 20, 60), text_to_image_rank=rng.integers(1, 20, 60))
    body = score(table)
    for name, value in body.metrics.items():
        low, high = body.intervals["intervals"][name]
        assert low <= value <= high, name
    assert body.intervals["units"] == 30
    assert body.baselines["random caption"]["bleu_1"] < body.metrics["bleu_1"]
    gap = body.differences["random caption"]["bleu_4"]
    assert gap["value"] == pytest.approx(body.metrics["bleu_4"] - body.baselines["random caption"]["bleu_4"])
    assert 0 < gap["interval"][0] < gap["value"] < gap["interval"][1]
    assert not any("hypothesis" in name for name in body.intervals["intervals"])
    console = Console(record=True, width=120)
    print_scores(body, console)
    assert "random" in console.export_text()


def test_a_part_of_the_captions_scores_as_if_it_were_all(without_java):
    scored = caption_metrics(tokenize(REFERENCES), tokenize(HYPOTHESES))
    take = np.array([0, 1, 3])
    alone = caption_metrics(tokenize([REFERENCES[i] for i in take]), tokenize([HYPOTHESES[i] for i in take])).overall
    part = scored.subset_metrics(take)
    for name in ("bleu_1", "bleu_4", "rouge_l"):  # CIDEr weighs n-grams by all of them
        assert part[name] == pytest.approx(alone[name]), name


def naive_ranks(images, texts, names):
    found = []
    for i in range(len(images)):
        similar = [float(images[i] @ texts[j]) for j in range(len(texts))]
        best = max(s for s, name in zip(similar, names, strict=True) if name == names[i])
        found.append(1 + sum(s >= best for s, name in zip(similar, names, strict=True) if name != names[i]))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_a_naive_double_loop(seed, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_SIZE", 7)
    rng = np.random.default_rng(seed)
    images, texts = rng.normal(size=(2, 40, 6)).astype(np.float32)
    names = [f"caption {i}" for i in rng.integers(0, 15, 40)]
    there, back = retrieval.retrieval_ranks(images, texts, names)
    assert there.tolist() == naive_ranks(images, texts, names)
    assert back.tolist() == naive_ranks(texts, images, names)
    known = retrieval.retrieval_metrics(there)
    assert known["recall_5"] == pytest.approx(np.mean([rank <= 5 for rank in there]))
    assert known["mrr"] == pytest.approx(np.mean([1 / rank for rank in there]))
    assert known["median_rank"] == np.median(there)


def test_equal_features_find_nothing():
    """Or a collapsed encoder would score best of all."""
    ones = np.ones((10, 4), np.float32)
    there, _ = retrieval.retrieval_ranks(ones, ones, [str(i) for i in range(10)])
    assert there.tolist() == [10] * 10


def test_features_that_are_no_numbers_find_nothing():
    images = np.eye(6, 4, dtype=np.float32)
    texts = images.copy()
    texts[2] = np.nan
    there, back = retrieval.retrieval_ranks(images, texts, list("abcdef"))
    assert back[2] == 6
    assert (there >= 2).all()
