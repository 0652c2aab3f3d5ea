"""What the rules share that keep a budget of cells: settings, borders, and the choice of the best.

No technique lives here. A rule says what a cell is worth, from what it saw of attention; this file
says when cells are dropped and how many stay, and protects the first cells and the latest ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core import asks
from ockham.core.arrays import Doubles, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.seams import NOTHING, Keeping, KeptText, OwnRows, Seen, Wants

MOST = 1 << 30
"""No text is longer."""
LEAST_BLOCK = 16
LEAST = {"sinks": 0, "window": 1, "block": 0, "until": 1}
"""The least value of each number that several rules have."""


class BudgetOptions(msgspec.Struct, forbid_unknown_fields=True):
    """At most `budget` cells of each head stay: a number, or a share of the prompt up to 1.0. The
    first `sinks` are always among them.

    Cells are dropped once, after the prompt, if `block` is 0; else at every multiple of `block`
    tokens and after the prompt, so that no more than budget + block cells are ever held.
    """

    budget: int | float = 0.25
    sinks: int = 4
    block: int = 0

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
    """The most cells of a head that stay."""
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
        return Budget(cells, sinks, latest, block, end, stops)

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
            return min(tokens, self.cells + self.block)
        before = min(tokens, self.end)
        if self.block:
            before = min(before, self.cells + self.block)
        return max(before, min(tokens, self.cells + max(0, tokens - self.end)))


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
        cells, budget = places.shape[-1], self.budget
        tokens = int(places[..., -1].max()) + 1
        if cells <= budget.cells:
            return None
        worth = self.worth(group, places, tokens).copy()
        stays = (places < budget.sinks) | (places >= tokens - budget.window)
        worth[np.broadcast_to(stays, worth.shape)] = np.inf
        worth[np.broadcast_to(places < 0, worth.shape)] = -np.inf  # gaps
        # Of cells that are worth the same the earlier ones stay, on every machine.
        best = np.argsort(-worth, axis=-1, kind="stable")[..., : budget.cells]
        kept: Ints = np.sort(best, axis=-1).astype(np.int32)
        return kept

    def dropped(self, kept: Mapping[int, Ints], tokens: int) -> None:
        """See `Keeping`."""
        self._dropped_at = tokens
        for group, cells in kept.items():
            self.carry(group, cells)

    def fork(self, tokens: int) -> Keeping | None:
        """See `Keeping`."""
        if max(self._seen_until, self._dropped_at) > tokens:
            return None
        twin = type(self).__new__(type(self))
        twin.__dict__ = {**self.__dict__, "totals": deepcopy(self.totals)}
        return twin

    def fresh(self) -> Keeping:
        """See `Keeping`."""
        twin = type(self).__new__(type(self))
        twin.__dict__ = {**self.__dict__, "totals": {}, "_dropped_at": 0, "_seen_until": 0}
        return twin
