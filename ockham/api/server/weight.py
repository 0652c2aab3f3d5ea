"""How much there is in a request, found without looking at all of it."""

from __future__ import annotations

from typing import Any

import msgspec

ENTRY = 32
"""What an entry of a list or object costs beside its text, as if it were so many characters."""


def weigh(value: Any, most: int) -> int:
    """The characters in `value`, wherever they stand, and `ENTRY` for each of its entries; some
    number above `most` if there are more."""
    weight, waiting = 0, [iter((value,))]
    while waiting:
        for each in waiting[-1]:
            weight += ENTRY + (len(each) if isinstance(each, str) else 0)
            if weight > most:
                return weight
            if isinstance(each, dict):
                waiting.append(iter([*each, *each.values()] if len(each) <= most else each))
            elif isinstance(each, (list, tuple)):
                waiting.append(iter(each))
            elif isinstance(each, msgspec.Struct):
                waiting.append(iter(getattr(each, name) for name in each.__struct_fields__))
            else:
                continue
            break
        else:
            waiting.pop()
    return weight
