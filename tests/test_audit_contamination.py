"""What encoders have seen: unknown unless something says more, and the pixels say it of runs of ours."""

import json

import pytest
from audit_sets import noise_set, open_set, write_set

from clipcovid.audit.config import AuditConfig
from clipcovid.audit.contamination import check_contamination, judge_contamination, public_sets
from clipcovid.audit.data import AuditData
from clipcovid.audit.encoder_facts import ENCODERS, PUBLIC_SETS
from clipcovid.data.training_images import TrainingImages
from clipcovid.errors import UserError


@pytest.fixture
def prepared(tmp_path):
    images, rows = noise_set(None, n=30)
    rows |= {"source": ["nih-chestxray14"] * 30, "split": ["test" if i < 12 else "train" for i in range(30)]}
    return open_set(write_set(tmp_path / "set", images, rows))


@pytest.mark.parametrize(
    ("encoder", "contains", "status"),
    [
        ("ViT-B-32:openai", "nih-chestxray14", "unknown"),
        ("ViT-B-32:laion2b_s34b_b79k", "nih-chestxray14", "unknown"),
        ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "cohen", "unknown"),
        ("microsoft/rad-dino", "nih-chestxray14", "contaminated"),
        ("microsoft/rad-dino", "cohen", "unknown"),
        ("microsoft/rad-dino", "covid-qu-ex", "contaminated"),
        ("resnet18", "nih-chestxray14", "clean"),
        ("resnet18.a1_in1k", "cohen", "clean"),
        ("convnext_base.fb_in22k_ft_in1k", "cohen", "clean"),
        ("vit_base_patch16_clip_224.laion2b_ft_in1k", "cohen", "unknown"),
        ("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", "cohen", "unknown"),
        ("resnet18", "", "unknown"),
        ("ViT-B-32:none", "nih-chestxray14", "clean"),
        ("ViT-B-32:0123456789abcdef", "nih-chestxray14", "unknown"),
        ("ViT-B-32:openai", "phantoms", "clean"),
        ("microsoft/BiomedVLP-BioViL-T", "mimic-cxr", "contaminated"),
        ("microsoft/BiomedVLP-BioViL-T", "nih-chestxray14", "clean"),
    ],
)
def test_published_encoders_are_unknown_unless_their_makers_say_more(prepared, encoder, contains, status):
    origins = public_sets(prepared, (contains,)) if contains else []
    known = judge_contamination(encoder, prepared, origins)
    assert known.status == status
    assert known.reason.endswith(".") or known.reason.endswith(").")


def test_public_sets_are_recognised_by_source_and_name(prepared):
    assert [one.name for one in public_sets(prepared)] == ["nih-chestxray14"]
    assert {"cohen", "kermany"} < {one.name for one in public_sets(prepared, ("covid-qu-ex",))}
    with pytest.raises(UserError, match="--contains nih is unknown: use nih-chestxray14, "):
        public_sets(prepared, ("nih",))


def test_facts_name_known_sets_and_have_references():
    names = {one.name for one in PUBLIC_SETS}
    for one in ENCODERS:
        assert {*one.training_sets, *one.excluded_sets} <= names
        assert not {*one.training_sets} & {*one.excluded_sets}
    assert all(one.reference for one in (*ENCODERS, *PUBLIC_SETS))
    assert {part for one in PUBLIC_SETS for part in one.made_from} <= names


def test_a_run_that_learned_from_test_images_is_found_by_their_pixels(prepared, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    TrainingImages.from_splits({"train": prepared.table[5:20]}).write(run / "checkpoint")
    config = AuditConfig(data=prepared.folder, encoders=(str(run), "ViT-B-32:openai"))
    finding, summary = check_contamination(AuditData(main=prepared), config)
    assert finding.severity == "high"
    assert "learned from 7 of the 12 images of the test split" in finding.summary
    assert finding.examples[0].images[0] == (str(prepared.folder), "5.png")
    assert summary.numbers["ViT-B-32:openai"]["status"] == "unknown"
    TrainingImages.from_splits({"train": prepared.table[12:]}).write(run / "checkpoint")
    (summary,) = check_contamination(AuditData(main=prepared), config)
    assert summary.numbers[str(run)]["status"] == "unknown"


def test_encoders_of_embeddings_are_judged_where_none_is_named(prepared):
    folder = prepared.folder / "embeddings" / "abc"
    folder.mkdir(parents=True)
    (folder / "_encoder.json").write_text(json.dumps({"model": "ViT-B-32", "weights": "openai"}))
    (summary,) = check_contamination(AuditData(main=prepared), AuditConfig(data=prepared.folder))
    assert list(summary.numbers) == ["ViT-B-32:openai"]


def test_without_an_encoder_it_says_so(prepared):
    (summary,) = check_contamination(AuditData(main=prepared), AuditConfig(data=prepared.folder))
    assert "No encoder was named" in summary.summary
