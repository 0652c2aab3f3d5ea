"""Reuse the state of chunks of text wherever they return, and compute a share of them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np

from ockham.cache.originals import Original, Originals, Recording, joined
from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.asks import ChunksAsk, ReuseAsk
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import Given, OwnRows, PagePool, Seen, Splice, Wants


class ChunkOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`recompute_fraction` of the tokens of reused chunks is computed all the same, where a request
    does not say how much. Chunks below `min_tokens` are left alone; all together may hold `share`
    of the pool."""

    recompute_fraction: float = 0.15
    min_tokens: int = 16
    share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("recompute_fraction", "share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.min_tokens < 1:
            raise ConfigError(f"min_tokens must be at least 1, got {self.min_tokens}.")


class ChunkAsk(ChunksAsk, kw_only=True, frozen=True):
    """`recompute_fraction` of the chunks' tokens is computed all the same; None: as many as the
    engine's options say."""

    recompute_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction = self.recompute_fraction
        if fraction is not None and not 0.0 <= fraction <= 1.0:
            raise InvalidRequest(
                f"recompute_fraction must lie in [0, 1], got {shown(fraction)}.",
                "recompute_fraction",
            )


@dataclass(slots=True, eq=False)
class Chunk:
    """A chunk as it was first computed, and what its tokens looked at then."""

    original: Original
    outside: Floats
    """(tokens,) attention of each token to the chunks before its own."""
    context: dict[int, float]
    """Of each chunk before it, in order, how much of that attention it got."""
    inside: float
    """Attention of its tokens to the chunk itself, summed."""

    @property
    def impact(self) -> float:
        """How much it depended on what stood before it, in [0.5, 1): Cache-Craft's cache context
        impact, from the mean attention to a token outside and inside of it."""
        tokens = len(self.outside)
        own = self.inside / (tokens * (tokens + 1) / 2)
        other = float(self.outside.sum()) / (tokens * max(1, self.original.positions[0]))
        return float(1 / (1 + np.exp(-other / own))) if own else 1.0

    def overlap(self, context: Sequence[int]) -> float:
        """How much of what it looked at stands before it again, and in that order: Cache-Craft's
        prefix overlap, times the share of pairs whose order is kept."""
        whole = sum(self.context.values())
        if not whole:
            return 1.0
        places = {name: place for place, name in enumerate(context)}
        kept = [name for name in self.context if name in places]
        order = [places[name] for name in kept]
        pairs = len(order) * (len(order) - 1) // 2
        right = sum(a < b for i, a in enumerate(order) for b in order[i + 1 :])
        share = sum(self.context[name] for name in kept) / whole
        return share * (right / pairs if pairs else 1.0)


@register("reuse", "chunk", exact=False, books=("chunk",), paper="249")
class ChunkReuse:
    """Chunks of a prompt take over the keys and values that they had in an earlier one.

    Wherever a chunk returns and whatever stands before it, its keys are rotated to their new
    positions and its values copied, from what was first computed; a share of its tokens is computed
    again, those that looked most at other chunks when it was first computed, and more of a chunk
    that depended more on what stood before it and finds less of that again (Cache-Craft, Agarwal et
    al. 2025, arXiv:2502.15734). Measured by `ockham techniques measure chunk`.
    """

    name: ClassVar[str] = "chunk"
    Options: ClassVar[type[msgspec.Struct]] = ChunkOptions
    Ask: ClassVar[type[ChunkAsk]] = ChunkAsk

    def __init__(self, options: ChunkOptions | None = None) -> None:
        self.options = options or ChunkOptions()

    def attach(self, pool: PagePool, slope: float, layers: Sequence[int]) -> None:
        self._chunks: dict[tuple[str, bytes], Chunk] = {}
        self.originals = Originals(pool, self.options.share, self._evicted)
        self._slope = slope
        self._layers = [layers[3 * len(layers) // 4]]

    def open(self, tokens: Ints, first: int, salt: str, ask: ReuseAsk) -> ChunkSplice | None:
        assert isinstance(ask, ChunkAsk), "an ask is of its technique"
        fraction = ask.recompute_fraction
        if fraction is None:
            fraction = self.options.recompute_fraction
        marked = [
            Marked(start, stop, (salt, tokens[start:stop].tobytes()))
            for start, stop in ask.chunks
            if stop - start >= self.options.min_tokens
        ]
        if not marked:
            return None
        return ChunkSplice(self, marked, first, len(tokens), fraction)

    def find(self, key: tuple[str, bytes]) -> Chunk | None:
        return self._chunks.get(key)

    def keep(self, recording: Recording, watched: Watched, key: tuple[str, bytes]) -> None:
        """Keep a chunk that was computed, unless another sequence was faster."""
        if key in self._chunks:
            self.originals.cancel(recording)
            return
        count = recording.stop - recording.start
        cost = count * (1 + self._slope * (recording.start + count / 2))
        original = self.originals.keep(recording, key, cost)
        if original is not None:
            self._chunks[key] = Chunk(original, watched.outside, watched.context, watched.inside)

    @property
    def layers(self) -> list[int]:
        return self._layers

    def evictable(self) -> list[int]:
        return self.originals.evictable()

    def forget(self) -> None:
        self.originals.forget()

    def held(self) -> list[Ints]:
        return self.originals.held()

    def _evicted(self, key: object) -> None:
        del self._chunks[key]  # type: ignore[arg-type]  # what `keep` named it


@dataclass(slots=True)
class Marked:
    """A chunk of one prompt."""

    start: int
    stop: int
    key: tuple[str, bytes]

    @property
    def name(self) -> int:
        """The same for the same text of the same tenant."""
        return hash(self.key)


@dataclass(slots=True)
class Watched:
    """The attention of a chunk's tokens while it is first computed."""

    outside: Floats
    context: dict[int, float]
    inside: float = 0.0


@dataclass(slots=True)
class _Taken:
    """A chunk that is taken over, from the cell `start` on."""

    start: int
    marked: Marked
    chunk: Chunk


class ChunkSplice(Splice):
    """The chunks of one prompt: those that are held are taken over, the others left behind."""

    def __init__(
        self, reuse: ChunkReuse, marked: list[Marked], first: int, tokens: int, fraction: float
    ) -> None:
        self._reuse = reuse
        self._marked = marked
        self._taken: list[_Taken] = []
        self._new: list[tuple[Marked, Recording, Watched]] = []
        keys = set()
        for each in marked:
            chunk = reuse.find(each.key)
            if chunk is None and each.key not in keys:
                keys.add(each.key)
                self._record(each)
            elif chunk is not None and fraction < 1.0 and each.stop > first:
                self._taken.append(_Taken(max(first, each.start), each, chunk))
                reuse.originals.lock(chunk.original)
        skipped = np.zeros(tokens, np.bool_)
        for taken, count in zip(self._taken, self._counts(fraction), strict=True):
            skipped[taken.start : taken.marked.stop] = True
            skipped[taken.marked.start + _most(taken.chunk.outside, count)] = False
        skipped[tokens - 1] = False
        self.todo: Ints = (first + np.flatnonzero(~skipped[first:])).astype(np.int32)

    def given(self, start: int, stop: int) -> Given:
        pieces = []
        for taken in self._taken:
            cells = np.arange(max(start, taken.start), min(stop, taken.marked.stop), dtype=np.int32)
            if len(cells):
                pieces.append(taken.chunk.original.given(cells, cells - taken.marked.start))
        return joined(pieces)

    def wants(self, own: OwnRows) -> Wants:
        wanted = np.zeros(len(own.places), np.bool_)
        for marked, _, _ in self._new:
            wanted |= (own.places >= marked.start) & (own.places < marked.stop)
        return Wants(score_sums=self._reuse.layers, rows=np.flatnonzero(wanted).astype(np.int32))

    def saw(self, own: OwnRows, seen: Seen) -> None:
        cells = own.places[seen.rows]
        for marked, _, watched in self._new:
            before = [other for other in self._marked if other.stop <= marked.start]
            of_chunk = np.flatnonzero((cells >= marked.start) & (cells < marked.stop))
            for place in of_chunk.tolist():
                cell = int(cells[place])
                for layer in seen.score_sums.values():
                    sums = np.concatenate(([0.0], np.cumsum(layer[place], dtype=np.float64)))
                    first = cell + 1 - len(layer[place])  # what a window lets it see
                    watched.inside += float(sums[-1] - sums[max(0, marked.start - first)])
                    for other in before:
                        low, high = max(0, other.start - first), max(0, other.stop - first)
                        looked = float(sums[high] - sums[low])
                        watched.outside[cell - marked.start] += looked
                        watched.context[other.name] = watched.context.get(other.name, 0.0) + looked

    def reached(self, cells: int, tables: Sequence[Ints]) -> None:
        for marked, recording, watched in self._new:
            recording.reached(cells, tables)
            if recording.complete:
                self._reuse.keep(recording, watched, marked.key)
        self._new = [new for new in self._new if new[1].done < new[1].stop]

    def leave(self) -> None:
        for taken in self._taken:
            self._reuse.originals.unlock(taken.chunk.original)
        for _, recording, _ in self._new:
            self._reuse.originals.cancel(recording)
        self._taken, self._new = [], []

    def _record(self, marked: Marked) -> None:
        recording = self._reuse.originals.record(marked.start, marked.stop)
        watched = Watched(np.zeros(marked.stop - marked.start, np.float32), {})
        self._new.append((marked, recording, watched))

    def _counts(self, fraction: float) -> list[int]:
        """How many tokens of each chunk taken over are computed again: `fraction` of them all, in
        proportion to what each depends on that it does not find again."""
        names = [marked.name for marked in self._marked]
        sizes = np.array([len(taken.chunk.outside) for taken in self._taken], np.float64)
        weights = np.array(
            [
                taken.chunk.impact
                * (1 - taken.chunk.overlap(names[: self._marked.index(taken.marked)]))
                for taken in self._taken
            ]
        )
        return shared_out(fraction * sizes.sum(), sizes, weights)


def shared_out(amount: float, sizes: Doubles, weights: Doubles) -> list[int]:
    """`amount` in proportion to sizes * weights, of each at most its size, rounded up."""
    counts = np.zeros(len(sizes))
    open_ = np.ones(len(sizes), np.bool_)
    claims = sizes * (weights if weights.any() else np.ones(len(sizes)))
    claims = np.maximum(claims, 1e-9)
    while open_.any() and amount > 1e-9:
        part = amount * claims / claims[open_].sum()
        full = open_ & (part >= sizes)
        if not full.any():
            counts[open_] = part[open_]
            break
        counts[full] = sizes[full]
        amount -= sizes[full].sum()
        open_ &= ~full
    return [int(count) for count in np.ceil(counts - 1e-6)]


def _most(values: Floats, count: int) -> Longs:
    """Indices of the `count` largest values, the first of those that tie."""
    return np.argsort(-values, kind="stable")[:count]
