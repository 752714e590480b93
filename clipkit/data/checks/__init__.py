"""Checks of data before training, and a writer of a cleaned copy."""

from clipkit.data.checks.drop_list import read_drop_list
from clipkit.data.checks.fix import check_output_folder, fix
from clipkit.data.checks.report import Report, check, quick_findings

__all__ = ["Report", "check", "check_output_folder", "fix", "quick_findings", "read_drop_list"]
