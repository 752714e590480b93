"""Training: the training step, the training loop and the run folder."""

from clipkit.training.entry import train

__all__ = ["train"]
