"""One process for each engine, in its own environment."""
