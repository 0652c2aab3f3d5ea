"""Checkpoints that come quantised in safetensors files: one layout a file."""
