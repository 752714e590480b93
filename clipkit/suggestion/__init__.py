"""Suggested recipes: examine the data, the model and the machine, and write a recipe with reasons."""

from clipkit.suggestion.suggest import suggest
from clipkit.suggestion.written import Suggestion

__all__ = ["Suggestion", "suggest"]
