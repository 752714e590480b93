"""Guards: what seems to be wrong with a run, reported before its first step, during training, and afterwards."""

from clipkit.findings import Finding
from clipkit.training.guards.before import before_first_step, is_pretrained
from clipkit.training.guards.guards import FINDINGS_FILE, Guards, read_findings
from clipkit.training.guards.pretrained import other_settings
from clipkit.training.guards.watch import Facts, Watch, replay

__all__ = [
    "FINDINGS_FILE",
    "Facts",
    "Finding",
    "Guards",
    "Watch",
    "before_first_step",
    "is_pretrained",
    "other_settings",
    "read_findings",
    "replay",
]
