"""Contrastive losses: functions of the features of a whole batch, independent of processes and models.

The file NAME.py contains the loss NAME with its equation and an example. `clipkit/catalogue.py` has one row per loss.
"""

from clipkit.losses.contrastive import contrastive
from clipkit.losses.cross_consistency import cross_consistency
from clipkit.losses.dcl import dcl
from clipkit.losses.distillation import distillation
from clipkit.losses.infonce import infonce
from clipkit.losses.negclip import negclip
from clipkit.losses.ntxent import ntxent
from clipkit.losses.sigmoid import sigmoid
from clipkit.losses.supcon import supcon
from clipkit.losses.triplet import triplet
from clipkit.losses.within_consistency import within_consistency

__all__ = [
    "contrastive",
    "cross_consistency",
    "dcl",
    "distillation",
    "infonce",
    "negclip",
    "ntxent",
    "sigmoid",
    "supcon",
    "triplet",
    "within_consistency",
]
