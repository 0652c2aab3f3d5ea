"""Embeddings of Ockham beside those of other engines on a plain CPU: see benchmarks/README.md."""
