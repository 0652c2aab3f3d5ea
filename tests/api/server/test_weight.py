"""What a request weighs is found without walking through all of it."""

from __future__ import annotations

from typing import Any

from ockham.api.server.weight import ENTRY, weigh

from ockham.api.server.protocol import ChatMessage


class Counted(list):  # type: ignore[type-arg]
    """A list that counts how often it is walked through."""

    walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()


def test_text_and_entries_count_wherever_they_stand() -> None:
    message = ChatMessage(role="user", content=[{"type": "text", "text": "x" * 100}])
    assert weigh("abc", 1000) == 3
    assert weigh(["abc", "de"], 1000) == 5 + 2 * ENTRY
    assert weigh({"abc": "de"}, 1000) == 5 + 2 * ENTRY
    assert weigh(message, 1000) == 4 + 100 + len("typetexttext") + ENTRY * 5
    assert weigh([[], {}, 3, None, True], 1000) == 5 * ENTRY


def test_what_is_too_much_is_not_walked_through() -> None:
    many = Counted([["x"]] * 1_000_000)
    assert weigh(many, 1000) > 1000
    assert many.walks == 0
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert weigh(deep, 1000) > 1000
