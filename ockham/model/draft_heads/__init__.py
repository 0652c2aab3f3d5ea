"""Blocks that were trained to draft for a model, loaded from the layouts in which they are
published."""
