"""Evaluation: encode once, then score. `clipkit.evaluate` is this package."""

from clipkit.evaluation.result import Result, chosen_examples, versions
from clipkit.evaluation.retrieval import retrieval, retrieval_metrics, retrieval_result
from clipkit.evaluation.zeroshot import zeroshot, zeroshot_classifier

__all__ = [
    "Result",
    "chosen_examples",
    "retrieval",
    "retrieval_metrics",
    "retrieval_result",
    "versions",
    "zeroshot",
    "zeroshot_classifier",
]
