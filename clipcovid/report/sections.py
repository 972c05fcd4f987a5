"""The parts of a report, in their order."""

import dataclasses
from collections.abc import Mapping

from markupsafe import Markup

from clipcovid.errors import RESEARCH_ONLY
from clipcovid.evaluate.comparison_tables import comparison_tables
from clipcovid.evaluate.external_gap import external_tables
from clipcovid.evaluate.number_format import format_count
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.answer import conclusion
from clipcovid.report.cards import data_card, model_cards
from clipcovid.report.checklists import checklist_sections
from clipcovid.report.exports import to_csv, to_latex, to_markdown
from clipcovid.report.findings import findings_html, findings_table
from clipcovid.report.galleries import galleries
from clipcovid.report.page import Part, Section, code_html, facts_html, figure_html, list_html, render_page
from clipcovid.report.study import ReportData
from clipcovid.terminal import format_duration

UNDONE_STATES = ("failed", "left out", "stopped")
FIGURE_ORDER = (
    "scores",
    "differences",
    "pairs",
    "roc",
    "precision_recall",
    "confusions",
    "reliability",
    "decision_curves",
)
FIGURE_CAPTIONS = {
    "scores": "Forest plot: each method's scores with intervals; dotted: what baselines reach without seeing an image.",
    "differences": "Each method minus the best one, with paired intervals: one that holds 0 shows no sure difference.",
    "pairs": "All pairs of methods: the row's score minus the column's.",
    "roc": "ROC curves, a panel a class. Dotted: chance.",
    "precision_recall": "Precision over recall, a panel a class. Dotted: the share of the class, which is chance.",
    "confusions": "Confusion matrices: a row the true class, as shares of it.",
    "classes": "F1 and AUROC of each class.",
    "reliability": "Reliability: how often the predicted class is right, over how probable it is said to be.",
    "reliability_classes": "Reliability of each class.",
    "risk_coverage": "Selective prediction: errors among the images that are kept, over their share, the surest kept first.",
    "decision_curves": "Decision curves: the net benefit of acting on a method at each threshold, beside all and none.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A report in its four forms."""

    html: str
    markdown: str
    latex: str
    csv: str


def make_report(study: ReportData, answers: Mapping[str, Mapping[str, str]] | None = None, footer: str = "") -> Report:
    """The report of a study. `answers`: people's, to the checklists; `footer`: what made it, and when."""
    sentences = conclusion(study)
    lead: list[Part] = [Markup('<div class="answer">{}</div>').format(_paragraphs(sentences)), *_undone_steps(study)]
    sections = [
        _results(study),
        _figures(study),
        _hits_and_misses(study),
        *_families(study),
        _audit(study),
        _external(study),
        data_card(study),
        model_cards(study),
        _making(study),
        checklist_sections(study, answers or {}),
    ]
    count = len(study.comparison.methods)
    subtitle = f"{format_count(count, 'method')}, {study.comparison.n:,} {study.comparison.split} images"
    return Report(
        html=render_page(study.title, sections, lead=lead, subtitle=subtitle, footer=footer),
        markdown=to_markdown(study.title, [" ".join(sentences), *_undone_steps(study)], sections),
        latex=to_latex(study.title, [], sections),
        csv=to_csv([], sections),
    )


def _paragraphs(texts: list[str]) -> Markup:
    return Markup("").join(Markup("<p>{}</p>").format(text) for text in texts)


def _results(study: ReportData) -> Section:
    """The headline table as papers print it, then what else the comparison says."""
    comparison = study.comparison
    elsewhere = external_tables(comparison.external, study.kind)
    headline, *others = (table for table in comparison_tables(comparison) if table not in elsewhere)
    told = {note for test in comparison.external for note in (*test.notes, *test.alarms)}
    told |= {finding.summary for finding in study.family_findings}  # each in a section of its own
    alarms = [Markup("<strong>Warning:</strong> {}").format(alarm) for alarm in comparison.alarms if alarm not in told]
    notes = [note for note in comparison.notes if note not in told]
    below = [Section(title=table.title, parts=(table.untitled(),)) for table in others]
    return Section(title="Results", parts=(headline, list_html([*alarms, *notes])), subsections=tuple(below))


def _figures(study: ReportData) -> Section:
    comparison = study.comparison
    figures = study.kind.comparison_figures(comparison)
    figures |= study.kind.curve_figures(study.tables, comparison.classes, split=comparison.split)
    order = [name for name in FIGURE_ORDER if name in figures]
    order += [name for name in figures if name not in order]
    shown = [
        figure_html(figures[name], FIGURE_CAPTIONS.get(name, f"{name.replace('_', ' ').capitalize()}."))
        for name in order
    ]
    return Section(title="Figures", parts=tuple(shown))


def _hits_and_misses(study: ReportData) -> Section:
    if study.images is None:
        return Section(title="Hits and misses", parts=("The images are not at hand: --data names their folder.",))
    groups = study.kind.examples(study.tables, study.comparison.classes)
    return Section(title="Hits and misses", parts=galleries(groups, study.images))


def _families(study: ReportData) -> list[Section]:
    """CLIP against CNN, where that was asked for."""
    if not study.family_findings:
        return []
    intro = "What each family can do here; the best of each is that of the highest score on these very images."
    return [
        Section(
            title="CLIP against CNN",
            parts=(intro, findings_table(study.family_findings), findings_html(study.family_findings)),
        )
    ]


def _external(study: ReportData) -> Section:
    """The methods on other data sets, and the gap to their scores here."""
    tests = study.comparison.external
    if not tests:
        text = "There is no test on data from elsewhere: --external takes other prepared folders."
        return Section(title="External testing", parts=(text,))
    from clipcovid.evaluate.external_plots import external_figures  # matplotlib: with the figures

    figures = external_figures(study.comparison)
    shown = [
        figure_html(figure, "Scores on the external set minus those on the internal one.")
        for figure in figures.values()
    ]
    below = []
    for test, table in zip(tests, external_tables(tests, study.kind), strict=True):
        alarms = [Markup("<strong>Warning:</strong> {}").format(alarm) for alarm in test.alarms]
        below.append(Section(title=table.title, parts=(table.untitled(), list_html([*alarms, *test.notes]))))
    return Section(title="External testing", parts=tuple(shown), subsections=tuple(below))


def _audit(study: ReportData) -> Section:
    if study.audit is None:
        text = "The data have not been audited: clipcovid audit does that, and --audit takes its folder."
        return Section(title="Audit of the data", parts=(text,))
    findings = study.audit.findings
    intro = f"{len(findings)} findings, the worst first, of the audit in {study.audit.folder}."
    return Section(title="Audit of the data", parts=(intro, findings_table(findings), findings_html(findings)))


def _making(study: ReportData) -> Section:
    """Environment and commands."""
    environment = Section(
        title="Environment", parts=("What this report was made with.", facts_html(list(study.environment)))
    )
    commands = Section(
        title="Commands",
        parts=(
            "What makes all of it again; what reads another's folder comes after it.",
            code_html("\n".join(study.commands)),
        ),
    )
    steps = [_steps(study)] if study.steps else []
    return Section(title="How it was made", parts=(RESEARCH_ONLY,), subsections=(*steps, environment, commands))


def _undone_steps(study: ReportData) -> list[Part]:
    """What the study was to do and has not done."""
    undone = [f"{step.name} ({step.state})" for step in study.steps if step.state in UNDONE_STATES]
    return [f"Not in this report, for these steps of the study are not done: {', '.join(undone)}."] if undone else []


def _steps(study: ReportData) -> Section:
    rows = [[step.name, step.state, format_duration(step.seconds), step.reason] for step in study.steps]
    table = TextTable(headers=("step", "state", "time", "why"), sections=[rows], texts=True)
    return Section(title="Steps of the study", parts=(table,))
