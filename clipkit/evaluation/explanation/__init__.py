"""Explanations of image-text matches: relevance maps of the image, scores of the maps, and effects of single words."""

from clipkit.evaluation.explanation.explain import Explained, Explanation, Word, explain
from clipkit.evaluation.explanation.over_data import score_explanations
from clipkit.evaluation.explanation.score import Areas, Scores

__all__ = ["Areas", "Explained", "Explanation", "Scores", "Word", "explain", "score_explanations"]
