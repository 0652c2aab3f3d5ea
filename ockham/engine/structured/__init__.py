"""Structured outputs: grammars over a tokenizer's vocabulary, and where a sequence is in one."""
