"""From token ids to the text that a caller may see: whole characters, and stop strings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class TextStream(Protocol):
    """An incremental detokenizer; see `ockham.text.tokenizer`."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...

    def fork(self) -> TextStream:
        """Another stream that goes on from here."""
        ...


class TextOutput:
    """The text of one sequence. Text that may turn out to be the start of a stop string is held
    back until it is clear."""

    def __init__(
        self, new_stream: Callable[[], TextStream], stop: list[str], include_stop: bool
    ) -> None:
        self._new_stream = new_stream
        self._stream = new_stream()
        self._stop = stop
        self._include_stop = include_stop
        self._held = ""

    def fresh(self) -> TextOutput:
        """The text of another choice, from its beginning."""
        return TextOutput(self._new_stream, self._stop, self._include_stop)

    def fork(self) -> TextOutput:
        """The text of another choice that has said the same so far."""
        twin = self.fresh()
        twin._stream, twin._held = self._stream.fork(), self._held
        return twin

    def push(
        self, token_id: int, *, may_stop: bool, begins: bool = False
    ) -> tuple[str, str | None]:
        """Add a token. Returns the text that may be shown now, and the stop string it completed.

        With `may_stop=False` (fewer than min_tokens so far) no stop string ends the sequence. Where
        the answer `begins`, the white space before it belongs to no stop string.
        """
        if not self._stop:
            return self._stream.push(token_id), None
        self._held += self._stream.push(token_id)
        if not may_stop:
            return self._release(len(self._held)), None
        if not begins:
            return self._check()
        space = self._release(len(self._held) - len(self._held.lstrip()))
        text, stop = self._check()
        return space + text, stop

    def hold(self, token_id: int) -> str:
        """Add a token of which it is not known yet whether the answer begins with it. Returns the
        text that may be shown now."""
        piece = self._stream.push(token_id)
        if not self._stop:
            return piece
        self._held += piece
        return ""

    def finish(self) -> tuple[str, str | None]:
        """The rest of the text; bytes that never became a character show as U+FFFD. A stop string
        that this completes counts."""
        self._held += self._stream.finish()
        text, stop = self._check()
        return text + self._release(len(self._held)), stop

    def _check(self) -> tuple[str, str | None]:
        """The earliest stop string in the held text (the first listed if two begin together)."""
        found = [(self._held.find(s), i, s) for i, s in enumerate(self._stop) if s in self._held]
        if not found:
            return self._release(len(self._held) - self._overlap()), None
        at, _, stop = min(found)
        text = self._release(at + len(stop) if self._include_stop else at)
        self._held = ""
        return text, stop

    def _overlap(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
