"""Reuse the state of a text that was edited: compute what is new, move on what stands behind."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.cache.originals import Original, Originals, Recording, joined
from ockham.core.arrays import Ints
from ockham.core.asks import ReuseAsk
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Given, PagePool, Splice

ANCHOR_TOKENS = 8
"""So many equal tokens in a row are taken for the same place of two texts."""

NEARLY_ALL = 0.9
"""A text that has such a share of a prompt is not compared with earlier ones."""

Block = tuple[int, int, int]
"""(start in the new text, start in the old text, tokens)."""


class EditOptions(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt is compared with the `texts` latest of its tenant; runs of less than `min_tokens`
    are computed, and so are the first `margin_tokens` behind an edit, which looked at what stands
    there no longer. All texts together may hold `share` of the pool."""

    texts: int = 4
    min_tokens: int = 16
    margin_tokens: int = 8
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"share must lie in [0, 1], got {self.share}.")
        for name, least in (("texts", 1), ("min_tokens", 1), ("margin_tokens", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")


class Text:
    """A prompt that was computed, and where its state stands."""

    def __init__(self, tokens: Ints, salt: str) -> None:
        self.tokens = tokens
        self.salt = salt
        self.original: Original | None = None
        self._places: dict[bytes, list[int]] | None = None

    def places(self, anchor: bytes) -> list[int]:
        """Where these tokens stand in the text, ascending."""
        if self._places is None:
            self._places = {}
            for place, key in enumerate(anchors(self.tokens)):
                self._places.setdefault(key, []).append(place)
        return self._places.get(anchor, [])


@register("reuse", "edit", exact=False, books=("edit",), paper="93")
class EditReuse:
    """A prompt that is an edited text takes over the keys and values of what was not edited.

    Only tokens that were inserted or replaced are computed, and a few behind them; the rest keeps
    its values, and its keys are rotated to their new positions, from what was first computed
    (Positional Integrity Encoding, He et al. 2024, arXiv:2407.03157, which computes none behind an
    edit). Meant for completion while somebody types. Measured by `ockham techniques measure edit`.
    """

    name: ClassVar[str] = "edit"
    Options: ClassVar[type[msgspec.Struct]] = EditOptions
    Ask: ClassVar[type[ReuseAsk]] = ReuseAsk

    def __init__(self, options: EditOptions | None = None) -> None:
        self.options = options or EditOptions()

    def attach(self, pool: PagePool, slope: float, layers: Sequence[int]) -> None:
        self._texts: dict[str, list[Text]] = {}
        self.originals = Originals(pool, self.options.share, self._evicted)
        self._slope = slope

    def open(self, tokens: Ints, first: int, salt: str, ask: ReuseAsk) -> EditSplice:
        found: tuple[Text | None, list[Block]] = (None, [])
        most = 0
        for text in reversed(self._texts.get(salt, [])[-self.options.texts :]):
            blocks = align(text, tokens, self.options.min_tokens)
            same = sum(count for _, _, count in blocks)
            if same > most:
                found, most = (text, blocks), same
            if most >= NEARLY_ALL * len(tokens):
                break
        return EditSplice(self, Text(tokens, salt), *found, first)

    def keep(self, text: Text, recording: Recording) -> None:
        """Keep as much of a text as was computed."""
        count = recording.done
        if recording.failed or count < self.options.min_tokens:
            self.originals.cancel(recording)
            return
        text.tokens = text.tokens[:count]
        cost = count * (1 + self._slope * count / 2)
        text.original = self.originals.keep(recording, text, cost)
        if text.original is not None:
            self._texts.setdefault(text.salt, []).append(text)

    def replace(self, base: Original, text: Text) -> None:
        """Nobody reads what a text was made of: it goes, if the text has most of it."""
        if len(text.tokens) >= len(base.positions) // 2:
            self.originals.remove(base)

    def evictable(self) -> list[int]:
        return self.originals.evictable()

    def forget(self) -> None:
        self.originals.forget()

    def held(self) -> list[Ints]:
        return self.originals.held()

    def _evicted(self, text: object) -> None:
        assert isinstance(text, Text), "texts are what is kept"
        texts = self._texts[text.salt]
        texts.remove(text)
        if not texts:
            del self._texts[text.salt]


class EditSplice(Splice):
    """One prompt, which takes over the `blocks` that it has in common with `base`, if any."""

    def __init__(
        self, reuse: EditReuse, text: Text, base: Text | None, blocks: list[Block], first: int
    ) -> None:
        self._reuse, self._text, self._base, self._blocks = reuse, text, base, blocks
        self._recording = reuse.originals.record(0, len(text.tokens))
        if base is not None and base.original is not None:
            reuse.originals.lock(base.original)
        self._first = first
        self._left = False
        given = np.zeros(len(text.tokens), np.bool_)
        for start, there, count in blocks:
            edited = start > 0 or there > 0
            given[start + edited * reuse.options.margin_tokens : start + count] = True
        given[-1] = False
        self.todo: Ints = (first + np.flatnonzero(~given[first:])).astype(np.int32)

    def given(self, start: int, stop: int) -> Given:
        if self._base is None or self._base.original is None:
            return joined([])
        pieces = []
        for own, theirs, count in self._blocks:
            cells = np.arange(max(start, own), min(stop, own + count), dtype=np.int32)
            if len(cells):
                pieces.append(self._base.original.given(cells, cells - own + theirs))
        return joined(pieces)

    def reached(self, cells: int, tables: Sequence[Ints]) -> None:
        done = self._recording.done
        given = self.given(max(done, self._first), cells)
        taken = ~np.isin(given.cells, self.todo)
        self._recording.reached(
            cells,
            tables,
            Given(given.cells[taken], [s[taken] for s in given.slots], given.shifts[taken]),
        )

    def leave(self) -> None:
        if self._left:
            return
        self._left = True
        self._reuse.keep(self._text, self._recording)
        base = self._base.original if self._base is not None else None
        if base is not None:
            self._reuse.originals.unlock(base)
            if self._text.original is not None and not base.locks:
                self._reuse.replace(base, self._text)


def align(old: Text, new: Ints, least: int) -> list[Block]:
    """The runs of at least `least` tokens that `new` has in common with an old text, in the order
    of both: the longest common beginning, then each next place where a few tokens are the same."""
    most = min(len(old.tokens), len(new))
    differ = np.flatnonzero(old.tokens[:most] != new[:most])
    same = int(differ[0]) if len(differ) else most
    blocks = [(0, 0, same)]
    keys = anchors(new[same:])
    own = theirs = same
    while own - same < len(keys):
        places = old.places(keys[own - same])
        after = bisect_left(places, theirs)
        if after == len(places):
            own += 1
            continue
        count = _common(old.tokens[places[after] :], new[own:])
        blocks.append((own, places[after], count))
        own, theirs = own + count, places[after] + count
    return [block for block in blocks if block[2] >= least]


def anchors(tokens: Ints) -> list[bytes]:
    """The few tokens from each place on, but for the last places."""
    whole, width = tokens.tobytes(), tokens.itemsize
    count = len(tokens) - ANCHOR_TOKENS + 1
    return [whole[i * width : (i + ANCHOR_TOKENS) * width] for i in range(count)]


def _common(one: Ints, other: Ints) -> int:
    most = min(len(one), len(other))
    differ = np.flatnonzero(one[:most] != other[:most])
    return int(differ[0]) if len(differ) else most
