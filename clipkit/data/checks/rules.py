"""List of all rules about data.

To add a rule, write a function and a test, and add the function to the table in `batch.py`, `caption_rules.py` or
`image_rules.py`.
"""

from collections.abc import Collection

from clipkit.data.checks.batch import BATCH_RULES
from clipkit.data.checks.caption_rules import CAPTION_RULES
from clipkit.data.checks.checked_data import CheckedData, Scope
from clipkit.data.checks.image_rules import IMAGE_RULES
from clipkit.findings import Finding, apply, most_severe_first

RULES = (*IMAGE_RULES, *CAPTION_RULES, *BATCH_RULES)


def apply_rules(data: CheckedData, scopes: Collection[Scope] = ("quick", "sampled", "full")) -> list[Finding]:
    """Apply the rules that have one of the given scopes (see `DataRule`). Return the findings, most severe first."""
    has = {"images": data.pairs.has_images, "captions": data.pairs.has_captions}
    return most_severe_first(apply([rule for rule in RULES if rule.scope in scopes and has[rule.needs]], data))
