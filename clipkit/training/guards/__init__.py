"""Guards: what seems wrong with a run, reported before its first step, while it trains, and afterwards."""
