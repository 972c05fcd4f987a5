"""The audit as a whole: what it writes, when it fails, and that it finds nothing in clean phantoms."""

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from audit_sets import noise_set, open_set, write_set
from PIL import Image

from clipcovid.audit import audit as module
from clipcovid.audit.audit import CHECKS, Audit, audit, audit_page
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.contamination import check_encoder
from clipcovid.audit.data import read_audit_data
from clipcovid.audit.file_facts import read_file_facts
from clipcovid.commands import run_command
from clipcovid.errors import UserError
from clipcovid.report.findings import Finding
from clipcovid.workflows import audit as workflow


def finding(severity, **fields):
    return Finding(check="a check", severity=severity, summary="What was found.", advice="What to do.", **fields)


def audited(config, checks=CHECKS, log=lambda text: None):
    return audit(read_audit_data(config), config, checks, log)


@pytest.fixture
def prepared(tmp_path):
    images, rows = noise_set(None, n=30)
    return write_set(tmp_path / "set", images, rows)


def test_clean_phantoms_have_no_finding_that_is_high_or_medium(phantoms):
    found = audited(AuditConfig(data=phantoms)).findings
    assert [one.summary for one in found if one.severity in ("high", "medium")] == []
    assert {"shortcut probes", "associations", "encoders"} <= {one.check for one in found}


@pytest.mark.parametrize(
    ("severities", "fail_on", "fails"),
    [
        (["high", "low"], "high", True),
        (["medium", "low"], "high", False),
        (["medium", "low"], "medium", True),
        (["low"], "low", True),
        (["info"], "low", False),
        (["high"], "never", False),
        ([], "low", False),
    ],
)
def test_findings_fail_the_audit_from_fail_on_up(prepared, severities, fail_on, fails):
    checks = {"all": lambda data, config: [finding(severity) for severity in severities]}
    config = AuditConfig(data=prepared, fail_on=fail_on)
    result = audited(config, checks)
    assert bool(result.failures(fail_on)) == fails
    page = audit_page(result, config)
    assert ("it fails" in page) == fails
    assert module.audit_json(result, config)["passed"] == (not fails)


def test_the_worst_finding_comes_first_and_is_on_the_page_with_its_images(prepared):
    marked = finding("high", examples=())
    checks = {"a": lambda data, config: [finding("info"), finding("low")], "b": lambda data, config: [marked]}
    lines = []
    result = audited(AuditConfig(data=prepared), checks, lines.append)
    assert [one.severity for one in result.findings] == ["high", "low", "info"]
    assert [re.sub(r" \(\d+ s\)", "", line) for line in lines] == [
        "check 1 of 2: a: 1 low, 1 info",
        "check 2 of 2: b: 1 high",
    ]
    assert result.counts() == {"high": 1, "medium": 0, "low": 1, "info": 1}


def test_the_command_writes_a_page_and_its_exit_status_says_what_stands(tmp_path, capsys):
    images, rows = noise_set(None, n=240)
    label = np.array(rows["label"])
    images[label == "Normal", 2:8, 2:6] = 255
    folder = write_set(tmp_path / "marked", images, rows)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        run_command("audit", ["--data", str(folder), "--out", str(out), "--name", "first"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "HIGH: A small model that sees only the four corners tells the class" in " ".join(printed.split())
    content = json.loads((out / "first" / "audit.json").read_text())
    worst = content["findings"][0]
    assert (worst["severity"], content["passed"], content["data"]["images"]) == ("high", False, 240)
    assert json.loads(json.dumps(Finding.from_json(worst).to_json())) == worst
    page = (out / "first" / "audit.html").read_text()
    assert not re.search(r'(src|href)="https?:', page)
    assert page.count("data:image/webp") >= 6
    with sqlite3.connect(out / "mlflow.db") as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("first", "FINISHED")]
        assert ("findings/high",) in {
            (key.removeprefix("audit/"),) for (key,) in database.execute("SELECT key FROM metrics")
        }
    run_command("audit", ["--data", str(folder), "--out", str(out), "--name", "first", "--fail-on", "never"])
    assert json.loads((out / "first" / "audit.json").read_text())["passed"]


def test_a_name_that_another_audit_has_is_refused_before_the_work(prepared, tmp_path, monkeypatch):
    run = tmp_path / "out" / "taken"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"method": "audit", "identity": {"task": "audit"}, "config": {}}))
    (run / "audit.json").write_text("{}")
    monkeypatch.setattr(workflow, "audit", lambda *given: pytest.fail("it began"))
    with pytest.raises(UserError, match="holds another run"):
        workflow.audit_data(AuditConfig(data=prepared, out=tmp_path / "out", name="taken"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"contains": ("NoSuchSet",)}, "--contains NoSuchSet is unknown: use nih-chestxray14, "),
        (
            {"encoders": ("nosuchmodel",)},
            "--encoders nosuchmodel: nosuchmodel is no model of open_clip and no architecture",
        ),
        ({"encoders": ("ViT-B-23:openai",)}, r"ViT-B-23 is no model of open_clip .*near it: .*ViT-B-32"),
        ({"encoders": ("outputs/none/here",)}, "there is no such folder; name a run's folder"),
        ({"accept": Path("nowhere.csv")}, "There is no file nowhere.csv"),
    ],
)
def test_flags_that_can_not_be_are_refused_before_a_pixel_is_read(prepared, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(workflow, "read_audit_data", lambda *given: pytest.fail("it began"))
    with pytest.raises(UserError, match=message):
        workflow.audit_data(AuditConfig(data=prepared, out=tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


def test_encoders_that_can_be_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    named = ["outputs/run", "tiny:none", "ViT-B-32:openai", "ViT-B-32:0123456789abcdef", "resnet18", "resnet18.a1_in1k"]
    for encoder in (*named, "microsoft/rad-dino", "hf-hub:microsoft/any:x", "vit_base_patch16_224", "biomedclip"):
        check_encoder(encoder)
    with pytest.raises(UserError, match="there is no such folder"):
        check_encoder("outputs/runn")


def test_answers_in_the_folder_of_the_audit_that_can_not_be_read_are_refused_before_the_work(
    prepared, tmp_path, monkeypatch
):
    config = AuditConfig(data=prepared, out=tmp_path / "out", name="first")
    monkeypatch.setattr(workflow, "report_run", lambda *given, **more: None)
    monkeypatch.setattr(workflow, "audit", lambda data, config: Audit(data=data, findings=()))
    pairs = workflow.audit_data(config)[1].folder / "near_duplicates.csv"
    pairs.write_text(pairs.read_text() + "maybe,0.9,a,b,c,d,e,f,\n")
    monkeypatch.setattr(workflow, "audit", lambda *given: pytest.fail("it began"))
    with pytest.raises(UserError, match="row 2: accepted is 'maybe'"):
        workflow.audit_data(config)


def test_a_folder_that_is_named_twice_or_not_prepared_is_refused(prepared, tmp_path):
    with pytest.raises(UserError, match="is named twice"):
        AuditConfig(data=prepared, against=(prepared / ".." / "set",))
    with pytest.raises(UserError, match="is not a prepared data set"):
        read_audit_data(AuditConfig(data=prepared, against=(tmp_path / "nothing",)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sentences_with_counts_of_one_read_right(tmp_path, count):
    """One pair of equal pixels, one patient in two splits and of two classes, one image of an unknown patient."""
    images, rows = noise_set(None, n=count, images_a_patient=1)
    images[-1] = images[0]
    rows |= {"split": ["train", *["test"] * (count - 1)], "source": ["A"] * count}
    rows["patient_id"][-1] = "p0"
    if count == 5:
        rows["patient_id"][2], rows["label"][-1] = "", "Normal"
    folder = write_set(tmp_path / "set", images, rows)
    result = audited(AuditConfig(data=folder, against=(write_set(tmp_path / "other", images, rows),)))
    sentences = [one.summary for one in result.findings] + [audit_page(result, AuditConfig(data=folder))]
    wrong = r"\b1 ((proposed|known|further) )?(pairs|images|patients|patient ids|columns)\b"
    wrong += r"|\b1 (of [\d,]+ )?(\w+ ){1,3}(are|have|were)\b|\b1 pair of \w+ (\(.*?\) )?(are|have|show|were)\b"
    assert [found[0] for text in sentences for found in re.finditer(wrong, text)] == []
    if count == 5:
        assert "1 of 3 patients is in several splits: 1 image of val and test is of" in " ".join(sentences)
        assert "1 pair of images (2 images) has equal pixels and is in several splits (1 test and train)." in sentences


def test_sets_of_one_name_are_called_by_their_paths(tmp_path):
    images, rows = noise_set(None, n=6)
    one, two = (write_set(tmp_path / place / "set", images, rows) for place in ("a", "b"))
    assert [part.name for part in read_audit_data(AuditConfig(data=one, against=(two,))).sets] == [str(one), str(two)]


def test_thumbnails_are_block_means_and_histograms_shares(prepared):
    opened = open_set(prepared)
    images = opened.packed.images(range(30))
    assert (opened.thumbnails == images).all()  # packed at 64 pixels themselves
    assert opened.histograms.sum(axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    expected = np.histogram(images[7], bins=64, range=(0, 256))[0] / 64**2
    assert opened.histograms[7] == pytest.approx(expected, abs=1e-6)


def test_file_facts_are_read_from_headers(tmp_path):
    import pandas as pd

    pixels = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "b.jpg", quality=20)
    Image.fromarray(pixels).save(tmp_path / "c.jpg", quality=95)
    Image.fromarray(pixels.astype(np.uint16) * 200).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_text("not an image")
    names = ["a.png", "b.jpg", "c.jpg", "d.png", "e.png", "gone.png"]
    table = pd.DataFrame(
        {"path": [str(tmp_path / name) for name in names], "width": 30, "height": [20, 20, 20, 20, 30, 60]}
    )
    table.loc[len(table)] = ["s3://bucket/a.png", 30, 20]
    facts = read_file_facts(table)
    assert facts["shape"].tolist() == ["wide", "wide", "wide", "wide", "square", "tall", "wide"]
    assert facts["format"].fillna("").tolist() == ["PNG", "JPEG", "JPEG", "PNG", "", "", ""]
    assert facts["channels"].tolist()[:4] == ["gray", "colour", "gray", "gray"]
    assert facts["bits"].tolist()[:4] == [8, 8, 8, 16]
    assert facts["bytes"].tolist()[:4] == [(tmp_path / name).stat().st_size for name in names[:4]]
    assert facts["compression"][1] > facts["compression"][2] > facts["compression"][0] == 0


def test_an_audit_without_findings_says_what_it_means(prepared):
    result = Audit(data=read_audit_data(AuditConfig(data=prepared)), findings=())
    assert "Nothing was found" in audit_page(result, AuditConfig(data=prepared))
