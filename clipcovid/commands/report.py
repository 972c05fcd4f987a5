"""Write one page on all methods, and its tables for papers.

    clipcovid report
    clipcovid report outputs/zeroshot outputs/cnn --data data/quex --audit outputs/audit
    clipcovid report outputs/compare-1a2b3c4d --title "COVID-19 on chest X-rays"

Takes run folders, or the folder of a comparison; without any, all finished runs in --out. report.html is one file that loads
nothing: the answer in three sentences, tables, figures, hits and misses, the audit, cards of data and models, checklists.
"""

from clipcovid.workflows.study_report import ReportConfig, report_study


def main(config: ReportConfig) -> None:
    """Compare the runs, and report on them."""
    report_study(config)
