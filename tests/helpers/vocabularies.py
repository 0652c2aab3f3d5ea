"""Made-up vocabularies of byte-level BPE in GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from ockham.lab.vocabulary import CONTROLS, USERS


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
