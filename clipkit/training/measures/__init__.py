"""What a run measures while it trains, one file each."""
