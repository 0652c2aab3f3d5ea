"""Sequences, the scheduler loop, the engine, and the process that it runs in."""
