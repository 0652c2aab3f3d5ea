"""What patterns share whose rows choose by their own query (`core.choices`): their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.choices import Choice
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.seams import AttentionGroup, SequencePattern
from ockham.core.visits import BLOCK_KEYS, BlockVisits


class ChoosingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query visits as many blocks of 64 keys as `tokens` fill, or a `share` of the keys that it
    sees if that is more: among them the first `sinks` blocks and the latest `local`, its own
    included. The first `dense_layers` layers of the model visit all. Prompts are read whole; with
    `first`, every token from that one on chooses, of the prompt too. A query in `every`, a divisor
    of 64, chooses, by its place, and those after it visit the same blocks. What a request leaves
    out of its ask is taken from here."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"tokens": (512, 1024, 2048)}

    tokens: int = 1024
    share: float = 0.0
    sinks: int = 1
    local: int = 2
    dense_layers: int = 2
    first: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        try:
            check(self)
            check_budget(self)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class ChoosingAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    name: ClassVar[str]
    tokens: int | None = None
    share: float | None = None
    sinks: int | None = None
    local: int | None = None
    dense_layers: int | None = None
    first: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        try:
            check(self)
        except ValueError as error:
            raise InvalidRequest(str(error), self.name) from None


def check(numbers: ChoosingOptions | ChoosingAsk) -> None:
    """Raise ValueError, with a sentence, for what makes sense on no model."""
    for field, least in (
        ("tokens", 0),
        ("sinks", 0),
        ("local", 1),
        ("dense_layers", 0),
        ("first", 0),
    ):
        value = getattr(numbers, field)
        if value is not None and not least <= value < 1 << 31:
            raise ValueError(f"{field} must lie in [{least}, 2^31), got {value}.")
    if numbers.share is not None and not 0.0 <= numbers.share <= 1.0:
        raise ValueError(f"share must lie in [0, 1], got {numbers.share}.")
    if numbers.every is not None and not (
        1 <= numbers.every <= BLOCK_KEYS and BLOCK_KEYS % numbers.every == 0
    ):
        raise ValueError(
            f"every must divide {BLOCK_KEYS}, so that a choice serves rows of one block alone, got "
            f"{numbers.every}."
        )


def check_budget(numbers: ChoosingOptions) -> None:
    """Raise ValueError for `tokens` that the first and the latest blocks fill alone. 0 asks for
    these, and for what `share` adds."""
    least = BLOCK_KEYS * (numbers.sinks + numbers.local)
    if 0 < numbers.tokens < least:
        raise ValueError(
            f"tokens={numbers.tokens} leaves nothing to choose: sinks={numbers.sinks} and "
            f"local={numbers.local} are {least} tokens, in blocks of {BLOCK_KEYS}; ask for more "
            "tokens, or for fewer sinks or local blocks."
        )


def numbers_of(options: ChoosingOptions, ask: ChoosingAsk) -> ChoosingOptions:
    """The ask's numbers, and the options' where it has none. Raises InvalidRequest for numbers that
    do not go together."""
    try:
        return merged(options, ask)
    except ConfigError as error:
        raise InvalidRequest(str(error), ask.name) from None


@dataclass(frozen=True, slots=True)
class ChoosingPattern(SequencePattern):
    """The choices of one sequence, of each group of layers; None where a window bounds what its
    rows read, or all of its layers read everything."""

    choices: tuple[Choice | None, ...]

    @classmethod
    def of(
        cls,
        chooser: str,
        numbers: ChoosingOptions,
        groups: Sequence[AttentionGroup],
        within: float = float("inf"),
    ) -> ChoosingPattern | None:
        """None if no layer chooses."""
        found: list[Choice | None] = []
        for group in groups:
            layers = tuple(layer >= numbers.dense_layers for layer in group.layers)
            choice = Choice(
                chooser,
                layers,
                first=numbers.first,
                tokens=numbers.tokens,
                share=numbers.share,
                sinks=numbers.sinks,
                local=numbers.local,
                within=within,
                every=numbers.every,
            )
            found.append(choice if group.window is None and any(layers) else None)
        return cls(tuple(found)) if any(found) else None

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`: nothing is left out before the queries are known."""
        return None

    def choice(self, group: int) -> Choice | None:
        """See `SequencePattern`."""
        return self.choices[group]
