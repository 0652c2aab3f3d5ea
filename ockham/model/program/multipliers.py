"""What single products of a model are multiplied with (muP: Yang et al. 2022, arXiv:2203.03466).

They are constants of the program: scales of what operations read and add, and weights of norms and
of convolutions, which are held in fp32. No matrix is multiplied, so that each format holds what the
checkpoint has.
"""

from __future__ import annotations

from dataclasses import dataclass

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.program.record import Architecture
from ockham.model.program.values import Values


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Of what attention reads, its keys, and what it gives; of a feed-forward's gate, and what it
    gives; of what a state space reads and gives, and of the parts of its projection: z, values,
    keys, queries and steps."""

    attention_input: float = 1.0
    keys: float = 1.0
    attention_output: float = 1.0
    gate: float = 1.0
    feed_forward_output: float = 1.0
    space_input: float = 1.0
    space_output: float = 1.0
    space_parts: tuple[float, ...] = (1.0,) * 5


def read_multipliers(architecture: Architecture, values: Values) -> Multipliers:
    """Those of config.json; 1 for what it leaves out."""
    record = architecture.multipliers
    if record is None:
        return Multipliers()
    gate, down = _numbers(values, record.feed_forward, 2)
    return Multipliers(
        values.number(record.attention_input, 1.0),
        values.number(record.keys, 1.0),
        values.number(record.attention_output, 1.0),
        gate,
        down,
        values.number(record.space_input, 1.0),
        values.number(record.space_output, 1.0),
        _numbers(values, record.space_parts, 5),
    )


def _numbers(values: Values, key: str, count: int) -> tuple[float, ...]:
    given = values.config.get(key)
    if given is None:
        return (1.0,) * count
    numbers = given if isinstance(given, list | tuple) else []
    if len(numbers) != count or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 < each < 1e30
        for each in numbers
    ):
        raise ModelError(
            f"{values.spelling.of(key)} must be {count} positive numbers, not {shown(given)}."
        )
    return tuple(float(each) for each in numbers)
