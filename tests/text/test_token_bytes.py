"""The bytes of tokens are those that the text gets."""

from __future__ import annotations

import json
from pathlib import Path

import llguidance
import pytest
from tokenizers import AddedToken, Tokenizer, decoders

from ockham.core.errors import ModelError
from ockham.text.token_bytes import token_bytes
from tests.helpers.tiny_tokenizers import KINDS

LAB = Path(__file__).parents[2] / "ockham" / "model" / "lab" / "tokenizer.json"
TEXT = "def f(x):  # naïve\n\treturn '日本' + \"🎈\""


def tokenizers() -> dict[str, Tokenizer]:
    return {"lab": Tokenizer.from_file(str(LAB)), **{name: make() for name, make in KINDS.items()}}


@pytest.mark.parametrize("kind", tokenizers())
def test_a_text_is_the_bytes_of_its_tokens(kind: str) -> None:
    backend = tokenizers()[kind]
    tokens, special = token_bytes(backend.to_str())
    text = TEXT if kind != "Unigram" else "The dog jumps over the fox"  # it lacks the others
    ids = [i for i in backend.encode(text, add_special_tokens=False).ids if i not in special]
    assert b"".join(tokens[i] for i in ids).decode().removeprefix(" ") == text


@pytest.mark.parametrize("kind", ["lab", "byte-level BPE", "Metaspace BPE with byte fallback"])
def test_they_are_the_librarys_own_where_it_knows_the_kind(kind: str) -> None:
    described = tokenizers()[kind].to_str()
    tokens, special = token_bytes(described)
    library = llguidance.LLTokenizer(described)
    compared = 0
    for number, spelled in enumerate(tokens):
        # The library also takes what looks like <name> for special, and bytes of 0xFF.
        if not library.is_special_token(number):
            assert library.decode_bytes([number]) == spelled
            assert number not in special
            compared += 1
    assert compared > 350


def test_added_tokens_are_spelled_as_they_stand() -> None:
    backend = KINDS["byte-level BPE"]()
    backend.add_tokens([AddedToken("<é>", special=False)])
    backend.add_special_tokens(["<|é|>"])
    tokens, special = token_bytes(backend.to_str())
    plain, named = backend.token_to_id("<é>"), backend.token_to_id("<|é|>")
    assert tokens[plain] == "<é>".encode()
    assert tokens[named] == "<|é|>".encode()
    assert named in special
    assert plain not in special


def test_word_pieces_are_refused() -> None:
    backend = KINDS["byte-level BPE"]()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="decodes by WordPiece"):
        token_bytes(backend.to_str())
    content = json.loads(backend.to_str()) | {"decoder": None}
    with pytest.raises(ModelError, match="decodes by nothing"):
        token_bytes(json.dumps(content))
