"""Evaluation mathematics: features or scores in, figures out. Definitions and names are CLIP_benchmark's."""

from clipkit.metrics.bootstrap import cluster_bootstrap, interval
from clipkit.metrics.classification import classification, true_label_ranks
from clipkit.metrics.retrieval import recalls, retrieval, retrieval_chance, retrieval_ranks

__all__ = [
    "classification",
    "cluster_bootstrap",
    "interval",
    "recalls",
    "retrieval",
    "retrieval_chance",
    "retrieval_ranks",
    "true_label_ranks",
]
