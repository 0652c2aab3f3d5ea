"""Quantities as a reader wants to see them."""

from __future__ import annotations


def readable(nbytes: int) -> str:
    """Bytes in the unit that suits them, e.g. "1.50 GiB"."""
    if nbytes >= 1 << 30:
        return f"{nbytes / (1 << 30):.2f} GiB"
    if nbytes >= 1 << 20:
        return f"{nbytes / (1 << 20):.1f} MiB"
    return f"{nbytes / (1 << 10):.1f} KiB" if nbytes >= 1 << 10 else f"{nbytes} bytes"
