"""Training what drafts for a model: draft models, heads, prompt tokens and early exits.

PyTorch and transformers come with the extra `train` and are imported only when training begins.
"""
