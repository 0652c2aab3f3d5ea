"""Text and what it is made of: tokenizers, chat templates, the marks of chunks.

It stands above `model`, because a tokenizer is read from a checkpoint: the readers of its files are
there. A model computes on token ids and needs no text.
"""
