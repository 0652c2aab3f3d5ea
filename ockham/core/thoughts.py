"""What a request says of the thought before its answer, and of loops in what it generates."""

from __future__ import annotations

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

CLOSING = "\n\nI have thought for long enough and answer now.\n"
"""What closes a thought that must end, unless a request says otherwise."""
MAX_MARK_CHARACTERS = 256
MAX_PATTERN_SIZE = 1024
MAX_PATTERN_COUNT = 1024


class ThoughtMarks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands around the thought of a text. `LLM.chat` and the server take them from the model.

    A text has a thought if it begins with `open`, white space aside, or if its prompt has opened
    one (`inside`). The thought ends with `close`, or at one of `or_at`. `after` is written behind
    `close` where a thought is made to end.
    """

    open: str
    close: str
    inside: bool = False
    or_at: tuple[str, ...] = ()
    after: str = ""

    def __post_init__(self) -> None:
        marks = {"open": [self.open], "close": [self.close], "or_at": self.or_at}
        for name, texts in marks.items():
            for text in texts:
                if not text.strip() or len(text) > MAX_MARK_CHARACTERS:
                    raise InvalidRequest(
                        f"thought.{name} must have 1 to {MAX_MARK_CHARACTERS} characters that are "
                        f"not only white space, got {shown(text)}.",
                        "thought",
                    )
        if len(self.after) > MAX_MARK_CHARACTERS:
            raise InvalidRequest(
                f"thought.after has {len(self.after)} characters, at most {MAX_MARK_CHARACTERS}.",
                "thought",
            )

    def closing(self, text: str | None) -> str:
        """What ends a thought: `text` (None for the default), the mark, and what follows it. A
        `text` that holds the mark is cut there."""
        return (
            (CLOSING if text is None else text).partition(self.close)[0] + self.close + self.after
        )


class RepetitionDetectionParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Ends a text whose latest tokens are one pattern, `min_count` times in a row.

    Patterns have `min_pattern_size` (0 means 1) to `max_pattern_size` tokens; 0 for the latter is
    off. The names are vLLM's.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_pattern_size", 0, MAX_PATTERN_SIZE),
            ("min_pattern_size", 0, MAX_PATTERN_SIZE),
            ("min_count", 0, MAX_PATTERN_COUNT),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _wrong(f"{name} must be an integer in [{low}, {high}], got {shown(value)}.")
        if self.max_pattern_size == 0:
            return
        if self.min_pattern_size > self.max_pattern_size:
            raise _wrong(
                f"min_pattern_size ({self.min_pattern_size}) must not exceed max_pattern_size "
                f"({self.max_pattern_size})."
            )
        if self.min_count < 2:
            raise _wrong(f"min_count must be at least 2, got {self.min_count}.")


def _wrong(sentence: str) -> InvalidRequest:
    return InvalidRequest(f"repetition_detection.{sentence}", "repetition_detection")
