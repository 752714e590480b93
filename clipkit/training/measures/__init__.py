"""Evaluations of the model during a run."""
