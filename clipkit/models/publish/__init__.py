"""Publish models: provenance, model cards, usage code, uploads to the Hub."""
