"""Byte-level BPE with a large vocabulary, ready in a twentieth of the time.

The `tokenizers` library takes a third of a second to take in 150,000 tokens with their merges. Here
it gets the 256 letters of byte-level BPE, the added tokens and no merges. It still finds added
tokens, normalises, cuts words, adds what stands around a text, and decodes. It gives the letters of
each word, which the native core merges by the library's rule, to the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ockham.kernels.native import core

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

_WITHIN = "\0"
"""Stands before a letter that goes on with the word before it."""

_WITHIN_BIT = 1 << 31
"""Is set in the ids of such letters, as `BytePairs.encode` wants them."""

_IDS = 1 << 32


def read_pairs(tokens: list[str], merges: list[str]) -> core.BytePairs | None:
    """The vocabulary and its merges (`left right`), or None where the library is to take them in:
    without the native core, or where a token stands twice, is missing, or begins like no letter.
    """
    if core is None or any(token.startswith(_WITHIN) for token in tokens):
        return None
    try:
        pairs = core.BytePairs(tokens, merges)
    except ValueError:
        return None
    return pairs if all(pairs.find(letter) is not None for letter in _alphabet()) else None


def letters_model(pairs: core.BytePairs, added: Collection[str]) -> BPE:
    """The model of a tokenizer for `BytePairTokenizer`. `added` are the tokens that will be added
    to it, all of them in the vocabulary."""
    from tokenizers.models import BPE

    letters = {letter: pairs.find(letter) or 0 for letter in _alphabet()}
    within = {_WITHIN + letter: token | _WITHIN_BIT for letter, token in letters.items()}
    named = {token: pairs.find(token) or 0 for token in added}
    return BPE(vocab={**named, **letters, **within}, merges=[], continuing_subword_prefix=_WITHIN)


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters: list[str] = ByteLevel.alphabet()
    return letters


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of one text, under the name that the library gives them."""

    ids: list[int]


class BytePairTokenizer:
    """What `Tokenizer` asks of the library's tokenizer, with the same answers.

    `letters` is one of the library whose model is `letters_model`, `whole` says that a word that is
    a token is not merged. Threads may share it once its special tokens are all known.
    """

    def __init__(self, letters: Tokenizer, pairs: core.BytePairs, whole: bool) -> None:
        self.decoder = letters.decoder
        self._letters = letters
        self._pairs = pairs
        self._whole = whole
        self._special = self._special_ids()

    def encode_batch_fast(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[Encoded]:
        """The token ids of each text."""
        spelled = self._letters.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [Encoded(self._pairs.encode(each.ids, self._whole)) for each in spelled]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; those that are no token have none."""
        if skip_special_tokens:
            ids = [token_id for token_id in ids if token_id not in self._special]
        text: str = self.decoder.decode(self._pairs.spelled(list(ids)))
        return text

    def decode_batch(
        self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """The text of each sequence of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def id_to_token(self, token_id: int) -> str | None:
        """What an id is spelled like in the vocabulary. Raises OverflowError for what is no id."""
        if not 0 <= token_id < _IDS:
            raise OverflowError(f"{token_id} is no token id.")
        spelled: list[str] = self._pairs.spelled([token_id])
        return spelled[0] if spelled else None

    def token_to_id(self, token: str) -> int | None:
        """The id of an entry of the vocabulary."""
        return self._pairs.find(token)

    def get_vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return len(self._pairs)

    def get_added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The added tokens by their ids."""
        added: Mapping[int, AddedToken] = self._letters.get_added_tokens_decoder()
        return added

    def add_special_tokens(self, tokens: Sequence[str]) -> None:
        """Make tokens special, which `letters_model` was told of."""
        self._letters.add_special_tokens(list(tokens))
        self._special = self._special_ids()

    def _special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.get_added_tokens_decoder().items() if token.special)

    def to_str(self) -> str:
        """The tokenizer as the library's JSON, with its whole vocabulary and all merges."""
        described: dict[str, Any] = json.loads(self._letters.to_str())
        tokens: list[str] = self._pairs.spelled(list(range(len(self._pairs))))
        described["model"] |= {
            "continuing_subword_prefix": None,
            "ignore_merges": self._whole,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [[tokens[left], tokens[right]] for left, right in self._pairs.merges()],
        }
        return json.dumps(described, ensure_ascii=False, separators=(",", ":"))

    def save(self, path: str) -> None:
        """Write a tokenizer.json, as the library does."""
        from tokenizers import Tokenizer

        Tokenizer.from_str(self.to_str()).save(path)
