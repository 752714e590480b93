"""Evaluation metrics, computed from features or scores. Names and definitions follow CLIP_benchmark."""

from clipkit.metrics.bootstrap import cluster_bootstrap, cluster_bootstrap_median, interval, resampled
from clipkit.metrics.classification import (
    average_precision,
    calibration_error,
    classification,
    confusion,
    group_accuracies,
    macro_f1,
    precision_at_right,
    true_label_ranks,
)
from clipkit.metrics.clustering import cluster_agreement, kmeans
from clipkit.metrics.compositional import both_positives, closest_pair, selection
from clipkit.metrics.linear import LinearClassifier, logistic_regression
from clipkit.metrics.neighbors import knn_scores
from clipkit.metrics.order import first_columns
from clipkit.metrics.ranks import RetrievalRanks, retrieval_ranks, similarity, top_answers
from clipkit.metrics.retrieval import (
    batch_accuracy,
    median_rank,
    precision_by_chance,
    recalls,
    retrieval,
    retrieval_chance,
)
from clipkit.metrics.views import alignment, uniformity

__all__ = [
    "LinearClassifier",
    "RetrievalRanks",
    "alignment",
    "average_precision",
    "batch_accuracy",
    "both_positives",
    "calibration_error",
    "classification",
    "closest_pair",
    "cluster_agreement",
    "cluster_bootstrap",
    "cluster_bootstrap_median",
    "confusion",
    "first_columns",
    "group_accuracies",
    "interval",
    "kmeans",
    "knn_scores",
    "logistic_regression",
    "macro_f1",
    "median_rank",
    "precision_at_right",
    "precision_by_chance",
    "recalls",
    "resampled",
    "retrieval",
    "retrieval_chance",
    "retrieval_ranks",
    "selection",
    "similarity",
    "top_answers",
    "true_label_ranks",
    "uniformity",
]
