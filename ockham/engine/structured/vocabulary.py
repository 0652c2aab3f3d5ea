"""A tokenizer as the library of grammars sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ockham.core.errors import InvalidRequest, ModelError
from ockham.text.token_bytes import token_bytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_SENTINEL = "\x02"
"""Stands before a text that is cut out of another one, so that nothing is put in front of it."""
_BYTES = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]
"""Those of which UTF-8 is made."""
_MOST_BYTES = 1024
"""Of a text that must come, what is cut into tokens at one place. It is cut again at the next."""


class _Wrapped:
    """What `llguidance.TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, described: str, vocabulary: int) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(described)
        self._backend.encode_special_tokens = True  # their names in a text are text
        tokens, special = token_bytes(described)
        tokens = [*tokens[:vocabulary], *[b""] * (vocabulary - len(tokens))]
        # The end of the text is a token of our own beyond the vocabulary: which of the model's
        # tokens end it, and whether they may, is for the engine to say.
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = vocabulary
        self.special_token_ids = [*(i for i in special if i < vocabulary), vocabulary]
        self._sentinel = self._ids(_SENTINEL)
        self._by_bytes = {token: i for i, token in enumerate(tokens) if token and i not in special}
        self.spells_all = all(bytes([byte]) in self._by_bytes for byte in _BYTES)
        self._longest = max(map(len, self._by_bytes), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text in the middle of another one, or of its beginning if it is long."""
        text = _beginning(text)
        ids = self._ids(_SENTINEL + text.decode())
        sentinel = len(self._sentinel)
        found = ids[sentinel:] if ids[:sentinel] == self._sentinel else []
        spelled = b"".join(self.tokens[i] if i < self.eos_token_id else b"" for i in found)
        return found if spelled == text else self._longest_first(text)

    def _longest_first(self, text: bytes) -> list[int]:
        """Tokens for a text that the tokenizer itself changes, or takes for something unknown."""
        found, at = [], 0
        while at < len(text):
            for length in range(min(self._longest, len(text) - at), 0, -1):
                token = self._by_bytes.get(text[at : at + length])
                if token is not None:
                    found.append(token)
                    at += length
                    break
            else:
                break  # no token has this byte: the text cannot be said
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


class GrammarVocabulary:
    """The tokens of a model as a grammar sees them."""

    def __init__(self, described: str, size: int) -> None:
        """`described` is a tokenizer as the `tokenizers` library's JSON, of a model with logits for
        `size` ids. Number `size` is a token of the library's own that ends the text.

        Raises InvalidRequest where llguidance is not installed, or a token is no bytes.
        """
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise InvalidRequest(
                f"structured outputs need the package llguidance, which is not installed ({error});"
                " install it, or leave response_format and structured_outputs out.",
                "structured_outputs",
            ) from error
        try:
            wrapped = _Wrapped(described, size)
        except ModelError as error:
            raise InvalidRequest(str(error), "structured_outputs") from error
        self.size = size
        self.spells_all = wrapped.spells_all
        """Whether every text can be said, byte by byte if need be."""
        self.tokenizer: LLTokenizer = LLTokenizer(TokenizerWrapper(wrapped))


def _beginning(text: bytes) -> bytes:
    """At most so many bytes of a text that a step can take the time to cut it, in whole
    characters."""
    return text if len(text) <= _MOST_BYTES else text[:_MOST_BYTES].decode(errors="ignore").encode()
