"""Guards: checks that report problems of a run before the first step, during training, and after the run."""
