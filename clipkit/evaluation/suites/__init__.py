"""Suites: evaluation on many datasets in one command, which can be resumed."""

from clipkit.evaluation.suites.entries import DataSet, Suite, read_suite
from clipkit.evaluation.suites.leaderboard import leaderboard
from clipkit.evaluation.suites.run import SuiteResult, run_suite
from clipkit.suite_files import suites_folder

__all__ = ["DataSet", "Suite", "SuiteResult", "leaderboard", "read_suite", "run_suite", "suites_folder"]
