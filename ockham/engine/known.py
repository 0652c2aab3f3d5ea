"""Texts of which a vector was made before: asked again, it is given without computing anything.

A text's hidden states are a function of the text alone, whatever runs beside it, so that what was
made of them once is what would be made of them again, to the bit.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from ockham.core.arrays import Floats
from ockham.engine.messages import Request

MOST_BYTES = 32 << 20
"""Some twenty thousand vectors of 384 values."""
BOOK = "texts"
"""The entry in the ledger of what was not computed again."""


class TextKey(NamedTuple):
    """What a text's pooled hidden state depends on, but for the model."""

    state: str
    """The key of its state (`core.state_key`): its salt, and what alters what is computed."""
    tokens: bytes
    second_text_at: int | None
    prompt_skip: int


def key_of(request: Request, state_key: str) -> TextKey:
    tokens = np.asarray(request.prompt_token_ids, np.int32).tobytes()
    return TextKey(state_key, tokens, request.second_text_at, request.prompt_skip)


class KnownTexts:
    """The pooled hidden states of the texts that were asked for last, up to `most_bytes` of them
    and of the texts' tokens."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._found: OrderedDict[TextKey, Floats] = OrderedDict()

    def get(self, key: TextKey) -> Floats | None:
        """What was pooled of a text; None if it is not known."""
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
        return found

    def put(self, key: TextKey, pooled: Floats) -> None:
        if key in self._found:
            return
        self._found[key] = pooled
        self._bytes += _size(key, pooled)
        while self._bytes > self._most_bytes:
            self._bytes -= _size(*self._found.popitem(last=False))


def _size(key: TextKey, pooled: Floats) -> int:
    return len(key.tokens) + 2 * len(key.state) + pooled.nbytes + 256
