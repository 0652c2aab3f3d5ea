"""What is drafted, for which sequence, and how much of it."""

from ockham.engine.speculation.controller import Speculation

__all__ = ["Speculation"]
