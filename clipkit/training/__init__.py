"""Training: the step, the loop, the run folder."""

from clipkit.training.run import train

__all__ = ["train"]
