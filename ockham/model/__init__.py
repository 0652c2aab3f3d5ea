"""Checkpoints: readers, architectures as data, the compiler to programs, the built-in model."""
