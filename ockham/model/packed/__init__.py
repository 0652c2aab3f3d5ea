"""Packed weights: which format each matrix gets, how packed matrices lie in a file, and the cache
of such files."""
