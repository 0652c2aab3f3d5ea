"""Values that a caller sent: how they are shown in a sentence, and how large they may be.

Everything that a request holds crosses to the engine's process as msgpack, whose integers have 64
bits, and is walked by functions that recurse. So numbers and depth are bounded where they enter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from ockham.core.errors import InvalidRequest

MOST_SHOWN = 80
"""Characters of a caller's value in a message."""
MAX_DEPTH = 100
"""Objects and lists within one another, in a value whose shape is the caller's own."""
MAX_TOKEN_ID = 2**31 - 1
"""The largest id that any vocabulary could have."""
LOWEST_INTEGER, HIGHEST_INTEGER = -(2**63), 2**64 - 1


def shown(value: Any, most: int = MOST_SHOWN) -> str:
    """A value as Python writes it, cut where it is long. Never raises, and never writes out what is
    much longer than `most`."""
    if isinstance(value, (str, bytes)) and len(value) > most:
        return f"{value[: most - 3]!r}..."
    if isinstance(value, int) and value.bit_length() > 4 * most:
        digits = int(value.bit_length() * math.log10(2)) + 1
        return f"an integer of about {digits} digits"
    if isinstance(value, (list, tuple)) and len(value) > most:
        value = value[:most]
    if isinstance(value, dict) and len(value) > most:
        value = dict(list(value.items())[:most])
    try:
        text = repr(value)
    except Exception:  # a huge number within, depth without end, a faulty __repr__
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."


def check_json(value: Any, name: str, param: str | None = None) -> None:
    """Raise InvalidRequest for a JSON value that is nested too deeply, or holds a number that does
    not fit into 64 bits or is none. `param` is the field at fault, if `name` is not.

    What is no JSON at all is left to whoever writes the value as JSON.
    """
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, (list, tuple)):
                below += each
            elif isinstance(each, int):
                if not LOWEST_INTEGER <= each <= HIGHEST_INTEGER:
                    raise InvalidRequest(
                        f"{name} holds {shown(each)}; integers must lie in [-2**63, 2**64 - 1].",
                        param or name,
                    )
            elif isinstance(each, float) and not math.isfinite(each):
                raise InvalidRequest(f"{name} holds {each}, which is no number.", param or name)
        depth += 1
        # A scalar may stand within the last container that is allowed.
        if depth >= MAX_DEPTH and any(isinstance(each, (dict, list, tuple)) for each in below):
            raise InvalidRequest(
                f"{name} is nested more than {MAX_DEPTH} levels deep; make it flatter.",
                param or name,
            )
        level = below


def token_ids(prompt: Any) -> list[int]:
    """`prompt` as a list of token ids. Raises InvalidRequest if it is none."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise InvalidRequest(
            f"a prompt must be text or a list of token ids, got {type(prompt).__name__}.", "prompt"
        )
    for token in prompt:
        wrong = isinstance(token, bool) or not isinstance(token, Integral)
        if wrong or not 0 <= token <= MAX_TOKEN_ID:
            raise InvalidRequest(
                f"the prompt holds {shown(token)}, which is no token id.", "prompt"
            )
    return [int(token) for token in prompt]
