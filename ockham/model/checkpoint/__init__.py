"""Checkpoints, whatever files they come in: their weights, plain or quantised, what they say of
generation, adapters, and what was trained for drafters."""
