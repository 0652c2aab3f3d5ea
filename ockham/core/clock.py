"""What time it is: an engine is given the clock that it times and decides by."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since some moment, as `time.monotonic` gives them. A simulation has a clock of its own,
which moves on by the seconds that a step is predicted to take."""
