"""Draft what followed in texts that were indexed before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream, OwnModel
from ockham.draft.structures.text_index import LONGEST, TextIndex, kind_shares, make_text_index
from ockham.model.checkpoint.corpus_files import read_corpus
from ockham.model.hub import resolve_drafter


class CorpusOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model` is the directory of an index that `ockham draft index` wrote."""

    model: str | None = None


@register("drafter", "corpus", exact=True, books=("corpus",), paper="191")
class CorpusDrafter(Drafter):
    """What followed in a body of text that was indexed before (`ockham draft index`).

    The repository that is worked on, the documents that are asked about, the answers of last month:
    where the latest tokens stand in them, the draft is a tree of what came next, with how often, of
    all places at once (a suffix array). Retrieval, as Lookahead (paper 191) feeds its trie with,
    without a bound of memory: 8 bytes a token. A token's kind is the length of the match, how many
    places there are, and the share of them that goes on so.
    """

    name: ClassVar[str] = "corpus"
    automatic: ClassVar[bool] = False
    kinds: ClassVar[tuple[float, ...]] = kind_shares()

    Options: ClassVar[type[msgspec.Struct]] = CorpusOptions

    def __init__(self, options: CorpusOptions) -> None:
        if options.model is None:
            raise ConfigError(
                'the method "corpus" needs a "model": a directory that `ockham draft index` wrote, '
                'such as {"method": "corpus", "model": "DIR"}.'
            )
        self._name = options.model

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        try:
            corpus = read_corpus(resolve_drafter(self._name))
        except ModelError as error:
            raise ConfigError(str(error)) from None
        if corpus.vocab_size > model.vocabulary:
            raise ConfigError(
                f"the texts of {self._name} have {corpus.vocab_size} different tokens, and the "
                f"model has {model.vocabulary}: index them for this model."
            )
        meaning = model.tokenizer
        if corpus.tokenizer and meaning is not None and meaning != corpus.tokenizer:
            raise ConfigError(
                f"the texts of {self._name} were read with another tokenizer than the model's: "
                "index them for this model with `ockham draft index`."
            )
        self._index = make_text_index(corpus.tokens, corpus.order)

    def open(self, salt: str) -> CorpusStream:
        """See `Drafter`. The texts belong to the engine: every tenant may be drafted from them."""
        return CorpusStream(self._index)

    @property
    def bytes(self) -> int:
        """See `Drafter`."""
        return self._index.bytes


class CorpusStream(DraftStream):
    """The latest tokens of one sequence."""

    def __init__(self, index: TextIndex) -> None:
        self._index = index
        self._last = np.empty(0, np.int32)

    def extend(self, tokens: Ints) -> None:
        self._last = np.concatenate((self._last, tokens))[-LONGEST:]

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        tokens, parents, kinds = self._index.propose(self._last, most, accepted, worth)
        return Draft(tokens, parents, kinds) if tokens else None

    @property
    def bytes(self) -> int:
        return self._last.nbytes
