"""Durations as people write them: `5m`, `1h30m`, `300`."""

from __future__ import annotations

import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|ms|s|m|h)")
_WHOLE = re.compile(r"([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:ns|us|\u00b5s|ms|s|m|h))+|\d+)")
_LONGEST = 64


def duration_s(text: str) -> float:
    """Seconds of a duration as Go writes it (`1h30m`, `-1s`), or of a number of seconds. Raises
    ValueError for anything else."""
    found = _WHOLE.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        raise ValueError(f"{text[:_LONGEST]!r} is no duration; write 300, 5m or 1h30m")
    sign, amount = found.groups()
    seconds = (
        float(amount)
        if amount.isdigit()
        else sum(float(count) * _UNITS_S[unit] for count, unit in _PART.findall(amount))
    )
    return -seconds if sign == "-" else seconds
