"""Messages that wait for a reader who may be slow, without ever growing beyond what is in flight.

The bound is one waiting delta for each choice: a delta that finds another of its choice still
waiting is merged into it, and the reader gets both at once, later. Nothing is dropped, nobody
waits, and the memory held is that of the tokens themselves. Of statistics only the newest waits.
"""

from __future__ import annotations

from collections.abc import Iterable

from ockham.engine.messages import CacheReport, Delta, FromEngine, Loading, Refused, merge


class Mailbox:
    """An ordered set of waiting messages, at most one for each choice of each request."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str, int], FromEngine] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, messages: Iterable[FromEngine]) -> None:
        """Add messages, merging each with the one of its kind that still waits.

        A merged delta moves to the end: the last delta of a request must not overtake those of
        the request's other choices.
        """
        for message in messages:
            key = _key(message)
            waiting = self._waiting.pop(key, None)
            if isinstance(waiting, Delta) and isinstance(message, Delta):
                message = merge(waiting, message)
            self._waiting[key] = message

    def take(self) -> list[FromEngine]:
        """All waiting messages, oldest first; none of them waits afterwards."""
        messages = list(self._waiting.values())
        self._waiting.clear()
        return messages


def _key(message: FromEngine) -> tuple[str, str, int]:
    if isinstance(message, Delta):
        return "delta", message.request_id, message.index
    if isinstance(message, CacheReport):
        return "cache", message.ask_id, 0
    if isinstance(message, Loading):
        return "loading", message.line, 0
    request_id = message.request_id if isinstance(message, Refused) else ""
    return type(message).__name__, request_id, 0
