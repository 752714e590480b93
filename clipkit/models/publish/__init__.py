"""Publishing of models: provenance, model cards, usage code, and uploads to the Hub."""
