"""The report of a study: what it says are the numbers, in all four forms, for every kind of predictions."""

import csv
import dataclasses
import io
import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from test_report_page import HOSTILE, check_page

from clipcovid.cli import from_cli
from clipcovid.config import ImagesConfig, UserError, flatten_resolved, override
from clipcovid.data.manifest import read_manifest
from clipcovid.data.prepare import PrepareConfig, _options
from clipcovid.data.rle import encode_rle
from clipcovid.errors import RESEARCH_ONLY
from clipcovid.evaluate.compare import compare
from clipcovid.evaluate.curves import MAX_POINTS, _thin
from clipcovid.evaluate.examples import classification_examples
from clipcovid.evaluate.load_predictions import load_method_predictions
from clipcovid.evaluate.predictions import write_predictions
from clipcovid.evaluate.scores import ExternalTest
from clipcovid.evaluate.text_table import TextTable
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.io.files import write_json
from clipcovid.methods.registry import METHODS
from clipcovid.report import checklists
from clipcovid.report.answer import conclusion
from clipcovid.report.exports import latex_text, to_csv, to_latex, to_markdown
from clipcovid.report.findings import Finding
from clipcovid.report.galleries import _draw_outline
from clipcovid.report.page import Section, facts_html, list_html
from clipcovid.report.sections import make_report
from clipcovid.report.study import AuditSummary, MethodRun, ReportData
from clipcovid.workflows.command_lines import command_of_run, prepare_command, sort_commands
from clipcovid.workflows.study_report import ReportConfig, report_study

TABLE = TextTable(
    title="A_b & c", headers=("Method", "Acc\n(macro)"), sections=[[("m_1 100%", ".913 (.89–.93)")], [("#", "−.1")]]
)


def predictions(phantoms, signal, seed=0):
    """A classification of the phantoms' test split that knows `signal` of the truth."""
    manifest = read_manifest(phantoms)
    rows, classes = manifest.rows("test"), manifest.classes
    truth = rows["label"].map(list(classes).index).to_numpy()
    odds = np.exp(
        np.random.default_rng(seed).normal(size=(len(rows), len(classes))) + signal * np.eye(len(classes))[truth]
    )
    table = rows[["image_id", "label", "patient_id"]].copy()
    table[[f"prob_{name}" for name in classes]] = odds / odds.sum(axis=1, keepdims=True)
    return table


def masks(phantoms, grow):
    """A segmentation of the lungs of the phantoms' test split: squares, of which `grow` more columns are right."""
    rows, tables = read_manifest(phantoms).rows("test"), []
    for number, image_id in enumerate(rows["image_id"]):
        mask = np.zeros((96, 96), bool)
        mask[20:70, 20 : 40 + grow + number] = True
        counts = {"tp": int(mask.sum()), "fp": 40, "fn": 50 * (40 - grow), "tn": 5000, "hd95": 3.0, "assd": 1.0}
        tables.append({"image_id": image_id, "region": "lung", **counts, "lung_area": 2000.0, "mask": encode_rle(mask)})
    table = pd.DataFrame(tables)
    return table.assign(label=rows["label"].to_numpy(), patient_id=rows["patient_id"].to_numpy())


def texts(phantoms, right):
    """Captions of the phantoms' test split of which `right` of six words are the true ones."""
    rows, rng = read_manifest(phantoms).rows("test"), np.random.default_rng(right)
    words = ["opacity", "in", "the", "left", "lung", "and", "effusion", "no", "heart", "normal"]
    references = [list(np.random.default_rng(at).choice(words, 6)) for at in range(len(rows))]
    written = [[*truth[:right], *rng.choice(words, 6 - right)] for truth in references]
    table = rows[["image_id", "label", "patient_id"]].copy()
    table["reference"], table["hypothesis"] = (list(map(" ".join, lists)) for lists in (references, written))
    return table


MAKERS = {
    "classification": lambda phantoms: {
        "weak": predictions(phantoms, 0.3),
        "strong": predictions(phantoms, 2.5, seed=1),
    },
    "segmentation": lambda phantoms: {"weak": masks(phantoms, 0), "strong": masks(phantoms, 20)},
    "captions": lambda phantoms: {"weak": texts(phantoms, 1), "strong": texts(phantoms, 5)},
}


def runs_of(folder, phantoms, kind="classification", tables=None):
    """Run folders with predictions of the phantoms' test split."""
    manifest, runs = read_manifest(phantoms), []
    for name, table in (tables or MAKERS[kind](phantoms)).items():
        about = {"identity": {"name": name}, "manifest_hash": manifest.content_hash, "split_hash": manifest.split_hash}
        path = folder / name / "predictions" / "test.parquet"
        write_predictions(path, table, method=name, task=kind, split="test", classes=manifest.classes, **about)
        metadata = {"method": name, "identity": {"name": name}, "config": {"data": str(phantoms)}}
        (folder / name / "config.json").write_text(json.dumps(metadata))
        runs.append(folder / name)
    return tuple(runs)


def study_of(folder, phantoms, audit=None, **more):
    methods = load_method_predictions(runs_of(folder, phantoms, **more), "test")
    comparison = compare(methods)
    by_name = {method.name: method for method in methods}
    return ReportData(
        title="T",
        comparison=comparison,
        tables={name: by_name[name].table for name in comparison.methods},
        runs={name: MethodRun(folder=name, config={}, identity={}) for name in comparison.methods},
        audit=audit,
    )


def test_the_answer_is_three_sentences_of_the_comparisons_numbers(tmp_path, phantoms):
    study = study_of(tmp_path, phantoms)
    first, second, third = conclusion(study)
    scores = study.comparison.methods["strong"]
    low, high = scores.intervals["intervals"]["macro_f1"]
    for number in (scores.metrics["macro_f1"], scores.metrics["accuracy"], low, high):
        assert f"{number:.3f}".removeprefix("0") in first
    assert first.startswith(
        f"On {scores.n} test images of {scores.intervals['units']} patients, strong is the best of 2"
    )
    baselines = study.comparison.baselines
    assert f"{max(baselines[name]['macro_f1'] for name in ('majority', 'prior')):.3f}".removeprefix("0") in first
    gap = study.comparison.paired_differences["weak"]["macro_f1"]
    assert gap["high"] < 0
    assert second == "Every other method is worse beyond the paired 95% interval of its difference in macro F1."
    assert "not been audited" in third
    assert all(sentence.endswith(".") for sentence in (first, second, third))


def test_methods_that_are_alike_are_named_with_their_difference(tmp_path, phantoms):
    tables = {name: predictions(phantoms, 1.0, seed) for seed, name in enumerate("abcdefg")}
    study = study_of(tmp_path, phantoms, tables=tables)
    gaps = {name: gap["macro_f1"] for name, gap in study.comparison.paired_differences.items()}
    alike = [name for name, gap in gaps.items() if gap["high"] >= 0]
    second = conclusion(study)[1]
    worse = len(gaps) - len(alike)
    assert second.startswith(f"{worse} of the 6 others are worse" if worse else "No other method is surely worse")
    assert all(f"{name} (" in second for name in alike[:4])
    assert (f"{len(alike) - 4} more" in second) == (len(alike) > 4)


def test_one_method_has_nothing_to_be_compared_with(tmp_path, phantoms):
    first, second, _ = conclusion(study_of(tmp_path, phantoms, tables={"only": predictions(phantoms, 1.0)}))
    assert "only reaches macro F1" in first
    assert "no other method" in second


def test_a_best_method_below_a_baseline_is_said_in_answer_and_alarm(tmp_path, phantoms):
    wrong = {name: predictions(phantoms, -3.0, seed) for seed, name in enumerate(("a", "b"))}
    study = study_of(tmp_path, phantoms, tables=wrong)
    comparison = study.comparison
    value = max(comparison.baselines[name]["macro_f1"] for name in ("majority", "prior"))
    assert comparison.methods[comparison.best].metrics["macro_f1"] < value
    first, alarm = conclusion(study)[0], comparison.alarms[0]
    said = "no method beats the baseline that sees no image ("
    assert f", but {said}" in first
    assert alarm.startswith(said.capitalize())
    for text in (first, alarm):
        assert f": macro F1 {value:.3f})".replace("0.", ".") in text
    assert comparison.best in alarm
    better = study_of(tmp_path / "better", phantoms)
    assert said not in conclusion(better)[0].lower()
    assert not any(said in alarm.lower() for alarm in better.comparison.alarms)


def test_a_baseline_that_is_reached_is_not_beaten(tmp_path, phantoms):
    study = study_of(tmp_path, phantoms)
    reached = study.comparison.methods[study.comparison.best].metrics["macro_f1"]
    for value, beaten in ((reached, False), (reached - 1e-6, True)):
        baselines = {**study.comparison.baselines, "prior": {"macro_f1": value}}
        answer = conclusion(
            dataclasses.replace(study, comparison=dataclasses.replace(study.comparison, baselines=baselines))
        )
        assert ("but no method beats the baseline that sees no image (prior: macro F1" in answer[0]) != beaten


@pytest.mark.parametrize(("severity", "told"), [("high", "1 of high severity"), ("info", "nothing of high or medium")])
def test_the_answer_warns_of_what_the_audit_found(tmp_path, phantoms, severity, told):
    finding = Finding(check="source", severity=severity, summary="Class is source.", advice="Mix.")
    third = conclusion(study_of(tmp_path, phantoms, audit=AuditSummary(folder="a", findings=[finding])))[2]
    assert told in third
    assert ("Class is source." in third) == (severity == "high")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_report_of_every_kind_is_one_whole_page_with_its_images(tmp_path, phantoms, kind, monkeypatch):
    monkeypatch.setattr("clipcovid.evaluate.captions.shutil.which", lambda name: None)
    runs = runs_of(tmp_path, phantoms, kind)
    config = ReportConfig(runs=runs, out=tmp_path / "out", kind=kind, name="r")
    folder = report_study(config).folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = check_page(page)
    assert page.count("data:image/webp") >= 8
    assert len(page) < 3_000_000
    headings = re.findall(r"<h2 id=[^>]*>([^<]+) <a", page)
    assert headings[:4] == ["Results", "Figures", "Hits and misses", "Audit of the data"]
    assert "strong is the best of 2 methods" in reader.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    cells = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text(encoding="utf-8"))))
    assert {cell["row"] for cell in cells} >= {"strong", "weak"}
    for cell in cells:
        if cell["row"] == "strong" and cell["value"]:
            assert cell["value"] in reader.text
            assert cell["value"] in markdown
    assert report_study(config).folder == folder  # again, over itself


def test_the_report_says_what_is_not_there(tmp_path, phantoms, capsys):
    runs = runs_of(tmp_path, phantoms)
    for run in runs:
        (run / "config.json").unlink()
    folder = report_study(ReportConfig(runs=runs, out=tmp_path / "out")).folder
    assert "no images and no data card without --data" in capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert "data:image/webp" not in page
    assert "The images are not at hand" in page
    assert "its command can" in page


def test_a_page_that_is_too_large_to_send_is_said(tmp_path, phantoms, capsys, monkeypatch):
    config = ReportConfig(runs=runs_of(tmp_path, phantoms), out=tmp_path / "out", samples=100)
    report_study(config)
    assert "MB" not in capsys.readouterr().out
    monkeypatch.setattr("clipcovid.workflows.study_report.LARGE_PAGE_BYTES", 100_000)
    report_study(config)
    assert "name fewer runs" in capsys.readouterr().out


def test_a_report_takes_the_runs_of_a_comparison(tmp_path, phantoms):
    runs = runs_of(tmp_path, phantoms)
    compared = tmp_path / "compared"
    settings = {"runs": ",".join(map(str, runs)), "split": "test", "kind": "classification", "margin": 0.05, "by": ""}
    write_json(compared / "config.json", {"method": "compare", "identity": {}, "config": settings})
    write_json(compared / "comparison.json", {})
    config = ReportConfig(runs=(compared,), out=tmp_path / "out", name="r")
    page = (report_study(config).folder / "report.html").read_text(encoding="utf-8")
    assert "is the best of 2 methods" in page
    with pytest.raises(
        UserError, match=r"compared is a comparison.*name the runs .*takes a comparison's folder.*alone"
    ):
        report_study(dataclasses.replace(config, runs=(compared, runs[0])))
    with pytest.raises(UserError, match="--margin is settled by the comparison"):
        report_study(dataclasses.replace(config, margin=0.1))
    runs[0].rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"compares .*{runs[0].name}, which is not there"):
        report_study(config)


def test_other_data_and_other_audits_are_refused(tmp_path, phantoms):
    runs = runs_of(tmp_path, phantoms)
    shuffled = {"a": predictions(phantoms, 1.0).assign(image_id=lambda table: "x" + table["image_id"])}
    other = runs_of(tmp_path / "other", phantoms, tables=shuffled)
    with pytest.raises(UserError, match="has not the images"):
        report_study(ReportConfig(runs=other, data=phantoms, out=tmp_path / "out"))
    audit = tmp_path / "audit"
    audit.mkdir()
    with pytest.raises(UserError, match=r"has no audit\.json"):
        report_study(ReportConfig(runs=runs, audit=audit, out=tmp_path / "out"))
    (audit / "audit.json").write_text(json.dumps({"findings": [], "data": {"split_hash": "no", "folder": "D"}}))
    with pytest.raises(UserError, match="is of D, whose images or splits"):
        report_study(ReportConfig(runs=runs, audit=audit, out=tmp_path / "out"))


def test_examples_are_those_of_a_plain_count(phantoms):
    tables = {"a": predictions(phantoms, 1.0), "b": predictions(phantoms, 0.5, seed=3)}
    classes = read_manifest(phantoms).classes
    best = {name: table[[f"prob_{c}" for c in classes]].idxmax(axis=1).str[5:] for name, table in tables.items()}
    truth = tables["a"]["label"]
    all_wrong = set(tables["a"]["image_id"][(best["a"] != truth) & (best["b"] != truth)])
    shared, missed, hit = classification_examples(tables, classes)
    assert shared.title.startswith(f"{len(all_wrong)} of {len(truth)} images are missed by all 2 methods")
    assert {image.image_id for image in shared.images} <= all_wrong
    wrong = tables["a"].set_index("image_id").loc[[image.image_id for image in missed.images]]
    sure = wrong[[f"prob_{c}" for c in classes]].max(axis=1)
    assert sure.is_monotonic_decreasing
    assert all(image.image_id in set(tables["a"]["image_id"][best["a"] == truth]) for image in hit.images)
    perfect = {name: predictions(phantoms, 50.0, seed) for seed, name in enumerate("ab")}
    assert [len(group.images) for group in classification_examples(perfect, classes)][:2] == [0, 0]


def test_an_outline_is_the_masks_inner_border():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3:8] = True
    drawn = _draw_outline(np.zeros((9, 9, 3), np.uint8), mask, (255, 0, 0))[:, :, 0] > 0
    expected = mask.copy()
    expected[3:6, 4:7] = False
    assert (drawn == expected).all()


def test_thinned_curves_stay_where_they_were():
    x = np.sort(np.random.default_rng(0).random(20_000))
    y = np.cumsum(np.random.default_rng(1).random(20_000))
    y /= y[-1]
    thin_x, thin_y = _thin(x, y)
    assert len(thin_x) <= MAX_POINTS
    assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (x[0], y[0], x[-1], y[-1])
    assert np.abs(np.interp(x, thin_x, thin_y) - y).max() < 0.01


def test_every_item_of_the_checklists_is_there_and_what_files_know_has_a_place():
    claim, tripod = checklists.read_checklists()
    assert [item.item for item in claim.items] == [str(number) for number in range(1, 45)]
    assert list(dict.fromkeys(re.sub(r"[a-z]$", "", item.item) for item in tripod.items)) == [
        str(number) for number in range(1, 28)
    ]
    used = {item.evidence for entry in (claim, tripod) for item in entry.items} - {""}
    assert used == set(checklists.EVIDENCE)


def test_answers_of_people_fill_what_is_open(tmp_path, phantoms):
    path = tmp_path / "answers.yaml"
    path.write_text("CLAIM 2024:\n  5: Retrospective.\n  21: All there were.\nTRIPOD+AI:\n  3a: Triage.\n")
    answers = checklists.read_answers(path)
    study = study_of(tmp_path, phantoms)
    claim, _ = checklists.checklist_sections(study, answers).subsections
    rows = {row[0]: row[-1] for row in claim.parts[1].sections[0]}
    assert rows["5"] == "Retrospective."
    assert rows["21"].startswith("All there were. ")
    assert "people have to say" in rows["21"].lower()
    assert rows["3"] == checklists.OPEN_TEXT
    filled = sum(text != checklists.OPEN_TEXT for text in rows.values())
    assert claim.parts[0].startswith(f"{filled} of 44 items")


def test_answers_of_nothing_leave_items_open(tmp_path, phantoms):
    path = tmp_path / "answers.yaml"
    path.write_text("CLAIM 2024:\n  5: null\n  8: ~\n  11:\n  14: '  '\n  31: no\nTRIPOD+AI:\n")
    answers = checklists.read_answers(path)
    claim, _ = checklists.checklist_sections(study_of(tmp_path, phantoms), answers).subsections
    rows = {row[0]: row[-1] for row in claim.parts[1].sections[0]}
    assert {rows[item] for item in ("5", "8", "11", "14")} == {checklists.OPEN_TEXT}
    assert rows["31"] == "no"


@pytest.mark.parametrize(("answer", "kind"), [("[a, b]", "list"), ("{a: b}", "mapping"), ("See: below", "mapping")])
def test_an_answer_that_is_no_text_is_refused(tmp_path, answer, kind):
    path = tmp_path / "answers.yaml"
    path.write_text(f"CLAIM 2024:\n  5:\n    {answer}\n")
    with pytest.raises(UserError, match=rf"answers\.yaml CLAIM 2024 5 is a {kind}: give one text"):
        checklists.read_answers(path)


@pytest.mark.parametrize("text", ["CLAIM 2024: {99: x}", "Other: {1: x}", "[]", "CLAIM 2024: x", "a: [", "- CLAIM"])
def test_answers_to_nothing_are_refused(tmp_path, text):
    path = tmp_path / "answers.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"answers\.yaml"):
        checklists.read_answers(path)


SECTIONS = [Section(title="Results", parts=("Text.", TABLE), subsections=(Section(title="More", parts=(TABLE,)),))]


def test_csv_has_every_cell_with_its_place():
    lines = list(csv.reader(io.StringIO(to_csv([TABLE], SECTIONS))))
    assert lines[0] == ["table", "group", "row", "column", "value"]
    assert lines[1] == ["A_b & c", "1", "m_1 100%", "Acc (macro)", ".913 (.89–.93)"]
    assert [line[0] for line in lines[1:]] == 2 * ["A_b & c"] + 2 * ["Results – A_b & c"] + 2 * [
        "Results: More – A_b & c"
    ]
    formula = TextTable(headers=("a", "b"), sections=[[("=1+1", "@x")], [("-.5", "+.5 to -1")]])
    cells = [line[2:] for line in csv.reader(io.StringIO(to_csv([formula], [])))][1:]
    assert cells == [["'=1+1", "b", "'@x"], ["-.5", "b", "+.5 to -1"]]


def latex_cells(text):
    """The cells of the rows of LaTeX tables, with LaTeX's escapes taken back."""
    back = {r"\&": "&", r"\%": "%", r"\_": "_", r"\#": "#", "--": "–", "$-$": "−", r"\$": "$", r"\{": "{", r"\}": "}"}
    rows = [line.removesuffix(r" \\") for line in text.splitlines() if " & " in line]
    cells = [re.split(r"(?<!\\)&", row) for row in rows]
    for code, letter in back.items():
        cells = [[cell.replace(code, letter).strip() for cell in row] for row in cells]
    return cells


def test_latex_has_booktabs_rules_and_escapes_what_latex_reads():
    text = to_latex("T", [], SECTIONS)
    assert [text.count(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")] == [2, 4, 2]
    assert ["m_1 100%", ".913 (.89–.93)"] in latex_cells(text)
    assert r"Method & \shortstack{Acc \\ (macro)} \\" in text
    assert "% Needs" in text
    assert "\\usepackage{booktabs}" in text
    escaped = latex_text(HOSTILE + "\\ $x_1^2$ #~&% {}")
    assert not re.search(r"(?<!\\)[&%#_$]", escaped)
    assert escaped.count("{") == escaped.count("}")
    assert "<" not in escaped
    assert latex_text("[5pt] *") == "{[}5pt] {*}"  # no option of the row's end before it
    long = TextTable(headers=("item", "answer"), sections=[[("1", "yes & no")]], texts=True)
    assert r"\begin{longtable}{p{0.47\linewidth}p{0.47\linewidth}}" in to_latex("T", [long], [])


def test_markdown_has_texts_and_tables_in_their_order():
    text = to_markdown("Title", ["Lead."], SECTIONS)
    assert text.index("# Title") < text.index("Lead.") < text.index("## Results") < text.index("### More")
    assert text.count("| m_1 100% | .913 (.89–.93) |") == 2


def test_markdown_has_no_html_of_names_and_one_line_a_text():
    bad = "<img src=x>\n# a & b|c\\"
    shown = r"&lt;img src=x> # a &amp; b\|c" + "\\\\"
    table = TextTable(title=bad, caption=bad, headers=(bad, bad), sections=[[(bad, bad)]])
    alarm = Markup("<strong>Warning:</strong> {}").format(bad)
    parts = (bad, table, list_html([bad, alarm]), facts_html([(bad, bad)]))
    lines = to_markdown(bad, [bad], [Section(title=bad, parts=parts, subsections=(Section(title=bad, parts=parts),))])
    assert "<" not in lines
    lines = [line for line in lines.splitlines() if line and "---" not in line and RESEARCH_ONLY not in line]
    inside = [shown, f"**{shown}**", *[f"| {shown} | {shown} |"] * 2, shown]
    inside += [f"- {shown}", f"- Warning: {shown}", f"- {shown}: {shown}"]
    assert lines == [f"# {shown}", shown, f"## {shown}", *inside, f"### {shown}", *inside]


def test_a_title_is_one_line_in_all_forms(tmp_path, phantoms):
    runs = runs_of(tmp_path, phantoms)
    made = report_study(ReportConfig(runs=runs, title=" One\n\n## two\t", out=tmp_path / "out")).folder
    assert (made / "report.md").read_text(encoding="utf-8").startswith("# One ## two\n")
    assert "<title>One ## two</title>" in (made / "report.html").read_text(encoding="utf-8")
    assert (made / "report.tex").read_text(encoding="utf-8").startswith("% One ## two. ")


@pytest.mark.parametrize("name", METHODS)
def test_the_command_of_a_run_makes_it_again(tmp_path, name):
    config = METHODS[name].config(data=tmp_path / "my data", seed=3, name="x y")
    config = override(config, {"optim.lr": 0.003, "optim.lr_scale": ("head=10", "visual=.1")})
    metadata = {"identity": {"task": name}, "config": json.loads(json.dumps(flatten_resolved(config), default=str))}
    words = shlex.split(command_of_run(metadata))
    assert words[:2] == ["clipcovid", name.replace("_", "-")]
    assert flatten_resolved(from_cli(type(config), "", words[2:])) == flatten_resolved(config)


def test_commands_of_other_runs_are_told_where_they_can_be(tmp_path):
    config = ZeroshotConfig(data=tmp_path, split="val", name="z")
    settings = json.loads(json.dumps(flatten_resolved(config), default=str))
    words = shlex.split(command_of_run({"identity": {}, "config": settings}))
    assert words[:2] == ["clipcovid", "zeroshot"]
    assert flatten_resolved(from_cli(ZeroshotConfig, "", words[2:])) == flatten_resolved(config)
    folds = {"task": "cnn", "folds": 5}
    assert command_of_run({"identity": folds, "config": {"data": "d"}}).startswith(
        "clipcovid crossval cnn --folds 5 --data d"
    )
    assert command_of_run({"identity": {}, "config": {"what": 1}}) == ""


def test_the_command_of_a_preparation_gives_its_recipe(tmp_path):
    config = PrepareConfig(
        source="table",
        root="r",
        out=tmp_path,
        images=ImagesConfig(size=64, mode="rgb"),
        classes=("a b", "c"),
        val=0.2,
        resplit=True,
    )
    recipe = _options(config)["recipe"] if "recipe" in _options(config) else _options(config)
    words = shlex.split(prepare_command(str(tmp_path), recipe))
    again = from_cli(PrepareConfig, "", words[2:])
    assert again == dataclasses.replace(config, root="PATH")


def test_a_command_comes_after_what_it_reads():
    commands = {
        "o/b": "clipcovid probe --clip.pretrained o/a",
        "o/c": "clipcovid cnn",
        "o/a": "clipcovid finetune --name a",
    }
    ordered = sort_commands(commands)
    assert sorted(ordered) == sorted(commands.values())
    assert ordered.index(commands["o/a"]) < ordered.index(commands["o/b"])


def test_steps_of_a_study_that_are_not_done_are_said(tmp_path, phantoms):
    folder = tmp_path / "study"
    planned = [{"name": name, "command": ["clipcovid", "cnn", "--name", name]} for name in ("a b", "c", "d")]
    write_json(folder / "plan.json", {"steps": planned})
    failed = {"state": "failed", "reason": "no memory", "seconds": 61.0}
    write_json(folder / "steps.json", {"steps": {"a b": {"state": "done"}, "c": failed}})
    runs = runs_of(tmp_path, phantoms)
    made = report_study(ReportConfig(runs=runs, study=folder, out=tmp_path / "out")).folder
    page = (made / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert "these steps of the study are not done: c (failed), d (left out)." in page
    assert "no memory" in page
    assert "clipcovid cnn --name &#39;a b&#39;" in page
    assert "are not done: c (failed), d (left out)." in (made / "report.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"has no plan\.json with steps"):
        report_study(ReportConfig(runs=runs, study=tmp_path, out=tmp_path / "out"))


def test_external_tests_and_families_have_sections_of_their_own(tmp_path, phantoms):
    study = study_of(tmp_path, phantoms)
    gap = {"macro_f1": {"internal": 0.9, "external": 0.6, "value": -0.3, "low": -0.4, "high": -0.2}}
    test = ExternalTest(
        data="data/other",
        dataset="other",
        split="all",
        manifest_hash="m",
        split_hash="s",
        label_map={},
        left_out=0,
        shared={},
        runs={},
        skipped={},
        n=77,
        classes=study.comparison.classes,
        methods=study.comparison.methods,
        gaps=dict.fromkeys(study.comparison.methods, gap),
        alarms=["Beware of it."],
        notes=["Both fall."],
    )
    unscored = dataclasses.replace(
        test, dataset="lone", n=0, methods={}, gaps={name: {} for name in test.methods}, alarms=["No score."], notes=[]
    )
    comparison = dataclasses.replace(
        study.comparison,
        external=[test, unscored],
        alarms=["Beware of it."],
        notes=["Both fall.", "CLIP reads words.", "Kept."],
    )
    finding = Finding(check="new classes", severity="info", summary="CLIP reads words.", advice="Use it.")
    third = conclusion(dataclasses.replace(study, comparison=comparison))[2]
    assert third.endswith("; elsewhere, macro F1 of strong is .600 on other (a gap of -.300, -.400 to -.200).")
    made = make_report(dataclasses.replace(study, comparison=comparison, family_findings=[finding]))
    check_page(made.html)
    results, rest = made.markdown.split("## Hits and misses")
    assert "- Kept." in results
    for text in ("Both fall.", "CLIP reads words.", "External: other"):
        assert text not in results
        assert text in rest
    assert made.html.count("<strong>Warning:</strong> Beware of it.") == 1
    assert "77 images" in rest
    claim = checklists.evidence(dataclasses.replace(study, comparison=comparison))["external"]
    assert "other (77 images)" in claim
    assert "lone" not in claim
    assert "External: lone (data/other), not scored" in rest
    assert made.html.count("<strong>Warning:</strong> No score.") == 1
    assert checklists.evidence(study)["external"] == ""
