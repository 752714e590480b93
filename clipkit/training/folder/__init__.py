"""Run folder: checkpoints, logs, and resuming a run."""
