"""Guards: what seems to be wrong with a run, told before its first step, while it is on, and afterwards."""

from clipkit.training.guards.before import before_first_step, is_pretrained
from clipkit.training.guards.finding import Finding
from clipkit.training.guards.guards import Guards, read_findings
from clipkit.training.guards.pretrained import other_settings
from clipkit.training.guards.watch import Facts, Watch, replay

__all__ = [
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
