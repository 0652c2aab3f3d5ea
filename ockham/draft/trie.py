"""Draft how runs of tokens went on before, in this text or in any other of the tenant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream
from ockham.draft.structures.branch_trie import LENGTHS, NODE_BYTES, SHARES, Trie, make_trie
from ockham.draft.structures.learning import LearningOptions
from ockham.draft.structures.saved_trie import check_place, load_trie, save_trie
from ockham.draft.structures.tenants import Tenants

log = logging.getLogger("ockham.draft")

_BY_LENGTH = (0.25, 0.4, 0.55, 0.65, 0.75, 0.85)
_BY_SHARE = (0.15, 0.3, 0.55, 0.9, 1.05, 1.12)


class TrieOptions(LearningOptions, frozen=True, forbid_unknown_fields=True):
    """In `learned_file` the trie is kept: read when an engine starts, written when it ends."""

    learned_file: str | None = None


@register("drafter", "trie", exact=True, books=("trie",), paper="191")
class TrieDrafter(Drafter):
    """How the last tokens went on before, in this text or another one (Lookahead).

    Every run of up to 12 tokens that a tenant's requests bring or are answered stands in one trie
    with how often it came, and several branches of it are drafted where it is not clear how the
    text goes on. The trie has a bound (`learned_bytes`): branches that were not used for long leave
    first. With `learned_file` it is kept from run to run. A token's kind is the length of the match
    before it and its share among what followed.

    No part of "auto": beside copying it gains no time that could be told (docs/speculation.md).
    """

    name: ClassVar[str] = "trie"
    automatic: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = tuple(
        by_length * by_share for by_length in _BY_LENGTH for by_share in _BY_SHARE
    )

    Options: ClassVar[type[msgspec.Struct]] = TrieOptions

    def __init__(self, options: TrieOptions) -> None:
        assert len(self.kinds) == len(LENGTHS) * len(SHARES), "the structure numbers the kinds"
        self._file = options.learned_file
        self._trie = make_trie(options.learned_bytes // NODE_BYTES)
        self._tenants = Tenants()
        self._vocabulary = ""
        if self._file is not None:
            check_place(self._file)

    def recall(self, vocabulary: Callable[[], str]) -> None:
        if self._file is not None:
            self._vocabulary = vocabulary()
            load_trie(self._file, self._vocabulary, self._trie, self._tenants)

    def open(self, salt: str) -> TrieStream:
        return TrieStream(self._trie, self._tenants.number(salt))

    def save(self) -> None:
        if self._file is not None and self._vocabulary:
            try:
                save_trie(self._file, self._vocabulary, self._trie, self._tenants)
            except OSError as error:
                log.warning("what the trie has learned could not be saved (%s).", error)

    @property
    def bytes(self) -> int:
        return self._trie.bytes


class TrieStream(DraftStream):
    """One sequence's place in the trie."""

    def __init__(self, trie: Trie, tenant: int) -> None:
        self._trie = trie
        self._cursor: Any = trie.open(tenant)

    def extend(self, tokens: Ints) -> None:
        self._trie.extend(self._cursor, tokens)

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        tokens, parents, kinds = self._trie.propose(self._cursor, most, accepted, worth)
        return Draft(tokens, parents, kinds) if tokens else None
