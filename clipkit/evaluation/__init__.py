"""Evaluation tasks, public as `clipkit.evaluate`."""

from clipkit.embedding.features import Features
from clipkit.evaluation.classifier import zeroshot_classifier
from clipkit.evaluation.compare import Comparison, compare
from clipkit.evaluation.compare_suites import SuiteComparison, compare_suites
from clipkit.evaluation.figures import Figure
from clipkit.evaluation.result import build_result, read_result, to_json, versions
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.associations import associations
from clipkit.evaluation.tasks.clustering import clustering
from clipkit.evaluation.tasks.compositional import compositional
from clipkit.evaluation.tasks.instances import instances
from clipkit.evaluation.tasks.landmarks import landmarks
from clipkit.evaluation.tasks.probe import probe
from clipkit.evaluation.tasks.retrieval import retrieval, retrieval_result
from clipkit.evaluation.tasks.zeroshot import zeroshot

__all__ = [
    "Comparison",
    "Features",
    "Figure",
    "Result",
    "SuiteComparison",
    "associations",
    "build_result",
    "clustering",
    "compare",
    "compare_suites",
    "compositional",
    "instances",
    "landmarks",
    "probe",
    "read_result",
    "retrieval",
    "retrieval_result",
    "to_json",
    "versions",
    "zeroshot",
    "zeroshot_classifier",
]
