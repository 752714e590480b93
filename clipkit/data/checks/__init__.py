"""What a careful person wants to know of data before training on it, and a cleaned copy."""

from clipkit.data.checks.findings import Finding
from clipkit.data.checks.fix import check_place, fix
from clipkit.data.checks.whole import Report, check, expected_false_negatives, quick_findings

__all__ = ["Finding", "Report", "check", "check_place", "expected_false_negatives", "fix", "quick_findings"]
