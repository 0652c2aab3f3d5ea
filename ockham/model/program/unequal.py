"""What config.json says of layers that are not like the others, after transforms."""

from __future__ import annotations

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.program.values import Values

WITHOUT_ATTENTION = "layers_without_attention"
"""The key of config.json for the numbers of the layers whose attention was removed."""

EXPERT_WIDTHS = "expert_widths"
"""The key of config.json for the width of each expert of each layer that has some."""


def without_attention(values: Values, layers: int) -> tuple[int, ...]:
    """The layers that config.json says have no attention. Raises ModelError unless they are layers
    of the model, ascending, and some layer keeps its own."""
    given = values.config.get(WITHOUT_ATTENTION)
    if given is None:
        return ()
    known = isinstance(given, list) and all(type(each) is int for each in given)
    if not known or given != sorted(set(given) & set(range(layers))) or len(given) >= layers:
        raise ModelError(
            f"{values.spelling.of(WITHOUT_ATTENTION)} must be some of the layers 0 to {layers - 1} "
            f"in ascending order, and not all, not {shown(given)}."
        )
    return tuple(given)


def expert_widths(values: Values, layers: int, count: int) -> tuple[tuple[int, ...], ...] | None:
    """What config.json says of experts of unequal widths; None where it says nothing."""
    given = values.config.get(EXPERT_WIDTHS)
    if given is None:
        return None
    whole = isinstance(given, list) and all(isinstance(each, list) for each in given)
    if not whole or [len(each) for each in given] != [count] * layers:
        raise ModelError(
            f"{values.spelling.of(EXPERT_WIDTHS)} must be {layers} lists of {count} widths."
        )
    return tuple(tuple(values.whole(EXPERT_WIDTHS, each) for each in widths) for widths in given)
