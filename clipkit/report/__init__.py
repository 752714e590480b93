"""Reports built only from result files: HTML pages that need no network, Markdown tables, and model cards."""

from clipkit.report.comparison import comparison_report
from clipkit.report.demo import demo_report
from clipkit.report.evaluation import evaluation_report
from clipkit.report.model_card import model_card
from clipkit.report.run import run_report
from clipkit.report.suite import suite_markdown, suite_report, suite_tables

__all__ = [
    "comparison_report",
    "demo_report",
    "evaluation_report",
    "model_card",
    "run_report",
    "suite_markdown",
    "suite_report",
    "suite_tables",
]
