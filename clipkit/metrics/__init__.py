"""Evaluation mathematics: features or scores in, figures out. Definitions and names are CLIP_benchmark's."""

from clipkit.metrics.bootstrap import cluster_bootstrap, cluster_bootstrap_median, interval, resampled
from clipkit.metrics.classification import (
    average_precision,
    average_precision_draws,
    calibration_error,
    classification,
    confusion,
    predicted_labels,
    true_label_ranks,
)
from clipkit.metrics.compositional import selection
from clipkit.metrics.linear import LinearClassifier, logistic_regression
from clipkit.metrics.neighbours import knn_scores
from clipkit.metrics.ranks import RetrievalRanks, retrieval_ranks
from clipkit.metrics.retrieval import median_rank, recalls, retrieval, retrieval_chance

__all__ = [
    "LinearClassifier",
    "RetrievalRanks",
    "average_precision",
    "average_precision_draws",
    "calibration_error",
    "classification",
    "cluster_bootstrap",
    "cluster_bootstrap_median",
    "confusion",
    "interval",
    "knn_scores",
    "logistic_regression",
    "median_rank",
    "predicted_labels",
    "recalls",
    "resampled",
    "retrieval",
    "retrieval_chance",
    "retrieval_ranks",
    "selection",
    "true_label_ranks",
]
