"""Guards: checks that report problems of a run before its first step, during training, and afterwards."""
