"""Explanations of single matches: relevance maps of images with their scores, and effects of words."""

from clipkit.evaluation.explanation.explain import Explained, Explanation, Word, explain
from clipkit.evaluation.explanation.over_data import score_explanations
from clipkit.evaluation.explanation.score import Areas, Scores

__all__ = ["Areas", "Explained", "Explanation", "Scores", "Word", "explain", "score_explanations"]
