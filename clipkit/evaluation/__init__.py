"""Evaluation: encode once, then score. `clipkit.evaluate` is this package."""

from clipkit.embedding.features import Features
from clipkit.evaluation.compare import Comparison, compare
from clipkit.evaluation.figures import Figure
from clipkit.evaluation.result import Result, chosen_examples, to_json, versions
from clipkit.evaluation.tasks.compositional import compositional
from clipkit.evaluation.tasks.probe import probe
from clipkit.evaluation.tasks.retrieval import retrieval, retrieval_result
from clipkit.evaluation.tasks.zeroshot import zeroshot, zeroshot_classifier

__all__ = [
    "Comparison",
    "Features",
    "Figure",
    "Result",
    "chosen_examples",
    "compare",
    "compositional",
    "probe",
    "retrieval",
    "retrieval_result",
    "to_json",
    "versions",
    "zeroshot",
    "zeroshot_classifier",
]
