"""How much there is in a request, found without looking at all of it."""

from __future__ import annotations

from typing import Any

import msgspec

ENTRY = 32
"""What an entry of a list or object costs beside its text, as if it were so many characters."""


def weigh(value: Any, most: int) -> int:
    """The characters in `value`, wherever they stand, and `ENTRY` for each of its entries; some
    number above `most` if there are more."""
    weight, left = 0, [value]
    while left:
        each = left.pop()
        entries: list[Any] = []
        if isinstance(each, str):
            weight += len(each)
        elif isinstance(each, dict):
            weight += 2 * ENTRY * len(each)  # before they are listed
            entries = [*each, *each.values()] if weight <= most else []
        elif isinstance(each, (list, tuple)):
            weight += ENTRY * len(each)
            entries = list(each) if weight <= most else []
        elif isinstance(each, msgspec.Struct):
            entries = [getattr(each, name) for name in each.__struct_fields__]
        if weight > most:
            return weight
        left += entries
    return weight
