"""Made-up vocabularies of byte-level BPE, as large as those of real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USERS = ("<think>", "</think>", "  ")


def byte_level_vocabulary(size: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """`size` tokens, the last ones CONTROLS and USERS, and the merges that make those before."""
    chance = np.random.default_rng(seed)
    tokens, merges = sorted(ByteLevel.alphabet()), []
    seen = {*tokens, *CONTROLS, *USERS}
    ordinary = size - len(CONTROLS) - len(USERS)
    while len(tokens) < ordinary:
        # Short and early tokens are parts of many others, as in trained vocabularies.
        left, right = (chance.random(2) ** 3 * len(tokens)).astype(int)
        both = tokens[left] + tokens[right]
        if len(both) <= 16 and both not in seen:
            seen.add(both)
            merges.append(f"{tokens[left]} {tokens[right]}")
            tokens.append(both)
    return [*tokens, *CONTROLS, *USERS], merges


def add_vocabulary(
    writer: gguf.GGUFWriter, tokens: list[str], merges: list[str], **keys: Any
) -> None:
    """Put a vocabulary into a GGUF file; `keys` are further ones (`tokenizer_pre="qwen2"`)."""
    normal = len(tokens) - len(CONTROLS) - len(USERS)
    kinds = [gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(CONTROLS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [gguf.TokenType.USER_DEFINED] * len(USERS))
    writer.add_token_merges(merges)
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)


def write_vocabulary(path: Path, tokens: list[str], merges: list[str], **keys: Any) -> Path:
    """A GGUF file that holds nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer, tokens, merges, **keys)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
