"""What the rules share that keep a budget of cells: settings, borders, and the choice of the best.

No technique lives here. A rule says what a cell is worth, from what it saw of attention; this file
says when cells are dropped and how many stay, and protects the first cells and the latest ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.cache.keep.gaps import with_gaps
from ockham.core import asks
from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.seams import (
    NOTHING,
    HeldCells,
    Keeping,
    KeptText,
    LayerAttention,
    OwnRows,
    Seen,
    Wants,
)
from ockham.core.visits import BLOCK_KEYS

MOST = 1 << 30
"""No text is longer."""
LEAST_BLOCK = 16
READ = 1024
"""Cells whose keys and values are in memory at once."""
HELD = 256 << 20
"""Bytes of output matrices that are held while the cells of a group are read, at most; of more,
each is unpacked again for each `READ` cells."""
EVEN = 1e-4
"""Added to a cell's share of the worth, so that one that was not looked at is not worth nothing."""
LEAST = {"sinks": 0, "window": 1, "block": 0, "until": 1}
"""The least value of each number that several rules have."""


class BudgetOptions(msgspec.Struct, forbid_unknown_fields=True):
    """At most `budget` cells of each head stay: a number, or a share of the prompt up to 1.0. The
    first `sinks` are always among them.

    Cells are dropped once, after the prompt, if `block` is 0; else at every multiple of `block`
    tokens and after the prompt, so that no more than budget + block cells are ever held.

    With a `floor` below 1.0 heads keep different numbers: each at least that share of the budget,
    and the rest goes to those heads of the layer whose cells are worth most, in blocks of 64
    (Ada-KV, Feng et al. 2024, arXiv:2407.11550, with 0.2). A head may hold several budgets then.
    With `by_output`, half of a head's cells stay by their worth, and the others by their worth
    times how much their value changes what attention gives (CriticalKV, Feng et al. 2025,
    arXiv:2502.03805).
    """

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"budget": (0.25, 0.5)}

    budget: int | float = 0.25
    sinks: int = 4
    block: int = 0
    floor: float = 1.0
    by_output: bool = False

    def __post_init__(self) -> None:
        try:
            check(self)
        except WrongSetting as error:
            raise ConfigError(str(error)) from None


class BudgetAsk(asks.Ask, kw_only=True, frozen=True):
    """The same, of one request; None for what the engine's setting says. Cells are dropped after
    the first `until` tokens, and none after those; None for the whole prompt."""

    budget: int | float | None = None
    sinks: int | None = None
    block: int | None = None
    floor: float | None = None
    by_output: bool | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        try:
            check(self)
        except WrongSetting as error:
            raise InvalidRequest(str(error), error.setting) from None

    def check_prompt(self, tokens: int) -> None:
        if self.until is not None and self.until > tokens:
            raise InvalidRequest(
                f"until is {self.until}, but the prompt has {tokens} tokens; name one of them, or "
                "leave it out.",
                "until",
            )


class WrongSetting(ValueError):
    """A setting that makes sense on no text, with the sentence that says why."""

    def __init__(self, setting: str, sentence: str) -> None:
        super().__init__(sentence)
        self.setting = setting


def check(given: Any) -> None:
    """Raise WrongSetting for a setting that makes sense on no text."""
    budget = given.budget
    if isinstance(budget, float) and not 0.0 < budget <= 1.0:
        raise WrongSetting(
            "budget",
            "budget must be a share of the prompt above 0.0 and up to 1.0, or a number of cells, "
            f"got {shown(budget)}.",
        )
    if isinstance(budget, int) and not 1 <= budget <= MOST:
        raise WrongSetting("budget", f"budget must be from 1 to {MOST} cells, got {shown(budget)}.")
    for name, least in LEAST.items():
        value = getattr(given, name, None)
        if value is not None and not least <= value <= MOST:
            raise WrongSetting(name, f"{name} must be from {least} to {MOST}, got {shown(value)}.")
    floor = given.floor
    if floor is not None and not 0.0 <= floor <= 1.0:
        raise WrongSetting("floor", f"floor must be a share from 0.0 to 1.0, got {shown(floor)}.")
    block = given.block
    if block is not None and 0 < block < LEAST_BLOCK:
        raise WrongSetting(
            "block", f"block must be 0 or from {LEAST_BLOCK} to {MOST}, got {block}."
        )


def settings(options: Any, ask: Any) -> dict[str, Any]:
    """What holds for a request: what it asks, else what the engine's options say."""
    return {
        name: getattr(options, name) if (asked := getattr(ask, name)) is None else asked
        for name in options.__struct_fields__
    }


class Budget(msgspec.Struct, frozen=True):
    """How many cells stay, and when the others are dropped."""

    cells: int
    """How many cells of a head stay, on the average of a layer's heads."""
    most: int
    """The most cells of a head that stay."""
    least: int
    """The least."""
    by_output: bool
    """Whether half of them stay by what their values are worth, too."""
    sinks: int
    window: int
    """So many of the latest cells are among them."""
    block: int
    end: int
    """The tokens after which the prompt is over, or all that is to be dropped is."""
    stops: bool
    """Whether nothing is dropped after `end`."""

    @staticmethod
    def of(given: dict[str, Any], ask: BudgetAsk, text: KeptText, window: int | float) -> Budget:
        """The budget of a text; a `window` below 1 is a share of it. Raises InvalidRequest where it
        leaves no room for a choice, or the model has no layer whose cells could be dropped."""
        if text.groups and all(group.window is not None for group in text.groups):
            raise InvalidRequest(
                "all layers of this model see a sliding window, which drops cells by itself; leave "
                "the budget of cells out.",
                "budget",
            )
        end = text.prompt_tokens if ask.until is None else ask.until
        share, sinks, block = given["budget"], given["sinks"], given["block"]
        cells = math.ceil(share * end) if isinstance(share, float) else share
        latest = math.ceil(window * cells) if window < 1 else int(window)
        if isinstance(share, float):  # of a short text it is no less than what always stays
            cells = max(cells, sinks + latest)
        elif cells <= sinks + latest:
            raise InvalidRequest(
                f"a budget of {cells} cells leaves none to choose beside the first {sinks} and the "
                f"latest {latest}; raise it, or lower those.",
                "budget",
            )
        stops = not block or ask.until is not None
        most = least = cells
        if given["floor"] < 1.0:
            # Numbers differ by whole blocks: the least is the first that leaves room for all that
            # stays in any case.
            least = max(math.ceil(given["floor"] * cells), sinks + latest, 1)
            least = cells - (cells - least) // BLOCK_KEYS * BLOCK_KEYS
            heads = max((g.kv_heads for g in text.groups if g.window is None), default=1)
            most = cells + (heads - 1) * (cells - least)
        return Budget(cells, most, least, given["by_output"], sinks, latest, block, end, stops)

    def border(self, tokens: int) -> int | None:
        """See `Keeping.border`."""
        found = []
        if tokens < self.end and self.cells < self.end:
            found.append(self.end)
        if self.block:
            whole = -(-(max(tokens, self.cells) + 1) // self.block) * self.block
            if not self.stops or whole < self.end:
                found.append(whole)
        return min(found, default=None)

    def most_cells(self, tokens: int) -> int:
        """See `Keeping.most_cells`."""
        if self.block and not self.stops:
            return min(tokens, self.most + self.block)
        before = min(tokens, self.end)
        if self.block:
            before = min(before, self.most + self.block)
        return max(before, min(tokens, self.most + max(0, tokens - self.end)))


class BudgetKeeping(Keeping):
    """The cells of one sequence that are worth most stay, each head of each layer its own.

    What a cell is worth is up to the rule, a subclass: from the attention probabilities of rows
    that it names, summed over those of each set (`totals`, (layers, kv_heads, cells)).
    """

    observes: ClassVar[bool] = True

    def __init__(self, name: str, budget: Budget, text: KeptText) -> None:
        self.name, self.budget, self._text = name, budget, text
        self._layers = {
            layer: (number, index)
            for number, group in enumerate(text.groups)
            if group.window is None
            for index, layer in enumerate(group.layers)
        }
        self.totals: dict[int, list[Doubles]] = {}
        """Of each group, the sums over each set of rows, of the cells that were seen."""
        self._dropped_at = self._seen_until = 0
        self.reads = budget.by_output
        self._outputs: dict[int, Doubles] = {}
        """Of each group that was read, how much the values of its cells change what attention
        gives: (layers, kv_heads, cells)."""

    # -- the rule ------------------------------------------------------------------------------

    def rows(self, places: Ints, border: int) -> Sequence[Ints]:
        """Which of the rows in `places` are looked at, in sets that are summed apart, if cells are
        dropped next at `border`: here the latest ones."""
        return [np.flatnonzero(places >= border - self.budget.window).astype(np.int32)]

    def worth(self, group: int, places: Ints, tokens: int) -> Doubles:
        """What each cell is worth that stands for `tokens` tokens: (layers, kv_heads, cells), of
        the tokens in `places`, which broadcast to that."""
        raise NotImplementedError

    def carry(self, group: int, kept: Ints) -> None:
        """Take along what is known of the cells `kept`, (layers, kv_heads, n): here nothing."""
        self.totals.pop(group, None)

    # -- as every rule does it -----------------------------------------------------------------

    def border(self, tokens: int) -> int | None:
        return self.budget.border(tokens)

    def most_cells(self, tokens: int) -> int:
        return self.budget.most_cells(tokens)

    def wants(self, own: OwnRows) -> Wants:
        border = self.border(int(own.places[0]))
        if border is None:
            return NOTHING
        sets = self.rows(own.places, border)
        if not any(map(len, sets)):
            return NOTHING
        return Wants(totals=tuple(self._layers), totalled=sets)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self._seen_until = int(own.places[-1]) + 1
        for layer, found in seen.totals.items():
            group, index = self._layers[layer]
            for number, sums in enumerate(found):
                if sums is not None:
                    kept = self._totals_of(group, number, sums.shape[1])
                    kept[index, :, : sums.shape[1]] += sums

    def _totals_of(self, group: int, number: int, cells: int) -> Doubles:
        """The sums of a set of rows of a group, with room for so many cells."""
        of_group = self._text.groups[group]
        sets = self.totals.setdefault(group, [])
        while len(sets) <= number:
            sets.append(np.zeros((len(of_group.layers), of_group.kv_heads, 0)))
        missing = cells - sets[number].shape[2]
        if missing > 0:
            sets[number] = np.pad(sets[number], ((0, 0), (0, 0), (0, missing)))
        return sets[number]

    def total(self, group: int, number: int, cells: int) -> Doubles:
        """What was seen of so many cells by the rows of a set: (layers, kv_heads, cells)."""
        return self._totals_of(group, number, cells)[:, :, :cells]

    def keep(self, group: int, places: Ints) -> Ints | None:
        if places.shape[-1] <= self.budget.cells:
            return None
        best, counts = self.ranked(group, places)
        if self.budget.least == self.budget.cells:
            kept: Ints = np.sort(best[..., : self.budget.cells], axis=-1)
            return kept
        return with_gaps(
            [
                [np.sort(of_head[:count]) for of_head, count in zip(*of_layer, strict=True)]
                for of_layer in zip(best, counts.tolist(), strict=True)
            ]
        )

    def ranked(self, group: int, places: Ints) -> tuple[Ints, Ints]:
        """The cells of each head (layers, kv_heads, n), from the one that is worth most on, and how
        many of them stay (layers, kv_heads). Those that always stay are the first, gaps the
        last."""
        budget, tokens = self.budget, int(places[..., -1].max()) + 1
        worth = self.worth(group, places, tokens).copy()
        gaps = np.broadcast_to(places < 0, worth.shape)
        stays = (places < budget.sinks) | (places >= tokens - budget.window)
        worth[np.broadcast_to(stays, worth.shape)] = np.inf
        worth[gaps] = -np.inf
        # Of cells that are worth the same the earlier ones stay, on every machine.
        best = in_order(worth)
        counts: Ints = np.full(worth.shape[:-1], budget.cells, np.int32)
        if budget.least < budget.cells:
            counts = self._spread(worth, best)
        if group in self._outputs:
            best = in_order(by_output(worth, best, counts, self._outputs[group]))
        return best, counts

    def _spread(self, worth: Doubles, best: Ints) -> Ints:
        """How many cells each head of each layer keeps (layers, kv_heads): the least, and of the
        layer's other cells, in blocks of 64, the blocks that are worth most. `best` are the cells
        of each head in the order of their worth."""
        budget = self.budget
        ordered = np.take_along_axis(worth, best, axis=-1)[..., budget.least :]
        whole = ordered.shape[-1] // BLOCK_KEYS
        blocks = ordered[..., : whole * BLOCK_KEYS]
        blocks = blocks.reshape(*blocks.shape[:-1], whole, BLOCK_KEYS).sum(axis=-1)
        layers, heads = blocks.shape[:2]
        flat = blocks.reshape(layers, heads * whole)
        given = heads * (budget.cells - budget.least) // BLOCK_KEYS
        # A head's blocks are worth less and less, so those that are taken are its first.
        taken = np.zeros(flat.shape, np.bool_)
        first = np.argsort(-flat, axis=-1, kind="stable")[:, :given]
        np.put_along_axis(taken, first, True, axis=-1)
        taken &= np.isfinite(flat)  # a block that reaches into a gap has too few cells
        counts = taken.reshape(blocks.shape).sum(axis=-1)
        found: Ints = (budget.least + BLOCK_KEYS * counts).astype(np.int32)
        return found

    def read(self, group: int, places: Ints, held: HeldCells) -> None:
        """See `Keeping`."""
        if not self.budget.by_output or places.shape[-1] <= self.budget.cells:
            return
        layers = [self._text.layers[layer] for layer in self._text.groups[group].layers]
        outputs = [each.output for each in layers]
        if sum(4 * self._text.hidden_size * each.heads * each.head_dim for each in layers) <= HELD:
            outputs = [cache(each) for each in outputs]
        found = []
        for first in range(0, places.shape[-1], READ):
            _, values = held.read(first, min(first + READ, places.shape[-1]))
            found.append(
                np.stack(
                    [
                        change(layer, output(), own)
                        for layer, output, own in zip(layers, outputs, values, strict=True)
                    ]
                )
            )
        self._outputs[group] = np.concatenate(found, axis=-1)

    def dropped(self, kept: Mapping[int, Ints], tokens: int) -> None:
        """See `Keeping`."""
        self._dropped_at = tokens
        self._outputs = {}
        for group, cells in kept.items():
            self.carry(group, cells)

    def fork(self, tokens: int) -> Keeping | None:
        """See `Keeping`."""
        if max(self._seen_until, self._dropped_at) > tokens:
            return None
        twin = type(self).__new__(type(self))
        outputs = dict(self._outputs)
        twin.__dict__ = {**self.__dict__, "totals": deepcopy(self.totals), "_outputs": outputs}
        return twin

    def fresh(self) -> Keeping:
        """See `Keeping`."""
        twin = type(self).__new__(type(self))
        forgotten = {"totals": {}, "_outputs": {}, "_dropped_at": 0, "_seen_until": 0}
        twin.__dict__ = {**self.__dict__, **forgotten}
        return twin


def in_order(worth: Doubles) -> Ints:
    """The cells of the last axis in the order of their worth, the largest first."""
    found: Ints = np.argsort(-worth, axis=-1, kind="stable").astype(np.int32)
    return found


def by_output(worth: Doubles, best: Ints, counts: Ints, changes: Doubles) -> Doubles:
    """What cells are worth, all of (layers, kv_heads, n), where half of the `counts` (layers,
    kv_heads) that stay of each head are the first of `best`, and the others those of the largest
    (share + 1e-4) * change, where the share is that of the head's worth."""
    half = -(-counts // 2)
    rank = np.empty(best.shape, np.int64)
    np.put_along_axis(rank, best, np.broadcast_to(np.arange(best.shape[-1]), best.shape), axis=-1)
    finite = np.where(np.isfinite(worth), worth, 0.0)
    total = finite.sum(axis=-1, keepdims=True)
    shares = finite / np.where(total > 0, total, 1.0)
    found = (shares + EVEN) * changes
    found[np.isneginf(worth)] = -np.inf
    found[(rank < half[..., None]) | np.isposinf(worth)] = np.inf
    return found


def change(layer: LayerAttention, matrix: Floats, values: Floats) -> Doubles:
    """How much values (kv_heads, n, head_dim) change what a layer's attention gives if they are
    looked at with all weight: the sum of the magnitudes of W v, where W are the columns of its
    output `matrix` (hidden, heads * head_dim) that belong to a query head, as the mean over the
    heads that read them."""
    repeat = layer.heads // len(values)
    by_head = matrix.reshape(len(matrix), len(values), repeat, layer.head_dim)
    found: Doubles = np.zeros(values.shape[:2])
    for head, own in enumerate(values):
        for one in range(repeat):
            found[head] += np.abs(own @ by_head[:, head, one].T).sum(axis=-1, dtype=np.float64)
    return found / repeat
