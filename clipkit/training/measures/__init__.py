"""Evaluations during a run; each file implements one of them."""
