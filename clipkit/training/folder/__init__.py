"""The run folder: checkpoints, logs, resume."""
