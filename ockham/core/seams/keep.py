"""Which state stays: `Keep`."""

from __future__ import annotations

from typing import ClassVar, Protocol


class Keep(Protocol):
    """Which state stays, beside what lies before a sliding window: no later row sees that, and it
    is let go in any case."""

    name: ClassVar[str]
