"""Low-rank adapters of linear layers (LoRA and DoRA): their mathematics, their layers, and their files."""
