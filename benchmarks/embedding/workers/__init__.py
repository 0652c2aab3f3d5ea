"""One module for each engine: reads texts, writes embeddings, in the engine's own environment."""
