"""Publishing models: cards, usage snippets, uploads."""
