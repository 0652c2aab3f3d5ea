"""What each token of a vocabulary adds to a text, as bytes: grammars are walked byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ockham.core.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece and its kin show a space."""


def token_bytes(described: str) -> tuple[list[bytes], list[int]]:
    """The bytes of each token id, and the ids of special tokens, whose bytes are their names.

    `described` is a tokenizer of the `tokenizers` library as JSON. Ids that stand for nothing have
    no bytes. Raises ModelError for a tokenizer whose tokens are no bytes of the text, such as the
    word pieces of BERT.
    """
    content = json.loads(described)
    spell = speller(content.get("decoder"))
    added: list[dict[str, Any]] = content.get("added_tokens", [])
    vocabulary = dict(_entries(content["model"]["vocab"]))
    count = 1 + max([*vocabulary.values(), *(token["id"] for token in added)])
    found = [b""] * count
    for token, number in vocabulary.items():
        found[number] = spell(token)
    for entry in added:
        found[entry["id"]] = entry["content"].encode()
    return found, [token["id"] for token in added if token["special"]]


def _entries(vocabulary: Mapping[str, int] | list[list[Any]]) -> Iterator[tuple[str, int]]:
    """(token, id), whether the model lists tokens by id (with scores) or maps them."""
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    else:
        yield from ((entry[0], number) for number, entry in enumerate(vocabulary))


def speller(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    """From a token as the vocabulary shows it to its bytes. Raises ModelError as `token_bytes`."""
    parts = [] if decoder is None else list(decoder.get("decoders", [decoder]))
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        letters = _byte_letters()
        return lambda token: b"".join(
            bytes([letters[c]]) if c in letters else c.encode() for c in token
        )
    replaced = any(
        part["type"] == "Replace" and part["pattern"].get("String") == _SPACE for part in parts
    )
    if not replaced and "Metaspace" not in kinds:
        raise ModelError(
            "structured outputs need a tokenizer whose tokens are bytes of the text (byte-level "
            f"BPE or SentencePiece); this one decodes by {', '.join(sorted(kinds)) or 'nothing'}."
        )

    def spell(token: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(token) if "ByteFallback" in kinds else None
        return bytes([int(match[1], 16)]) if match else token.replace(_SPACE, " ").encode()

    return spell


def _byte_letters() -> dict[str, int]:
    """Letter -> byte, as byte-level BPE shows bytes: those that print stand for themselves, the
    others for letters from U+0100 on (GPT-2's encoder)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
