"""What the tiers hold and did, for metrics and for people."""

from __future__ import annotations

import msgspec


class TierStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Counted since the engine was started; pages are of all layer groups together."""

    memory_pages: int = 0
    memory_bytes: int = 0
    memory_evicted: int = 0
    disk_pages: int = 0
    disk_bytes: int = 0
    """Reserved on the disk."""
    disk_limit_bytes: int = 0
    disk_evicted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    refused: int = 0
    """Entries on disk that were damaged, torn or another's."""
    skipped: int = 0
    """Pages that were not written, because the disk did not keep up or had no room."""
    fetched: int = 0
    """Pages that were brought back into the pool."""
    not_worth: int = 0
    """Times that computing was expected to be faster than reading."""
