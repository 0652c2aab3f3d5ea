"""Answers of the bundled formats, split into thoughts, text and calls of tools.

No input makes it fail. What cannot be read as a call stays text, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterable

from ockham.text.reply.calls import NoCall, read_calls
from ockham.text.reply.channels import read_channels
from ockham.text.reply.formats import Format, Frame, TagCall, Thought
from ockham.text.reply.reader import Marks, Reader, Steps, Unparsed
from ockham.text.reply.schemas import Tools
from ockham.text.reply.splitter import ReplyDelta, Splitter

NO_TOOLS = Tools()


class ReplyParser(Splitter):
    """Splits one answer of a model whose format is known."""

    def __init__(
        self,
        format_: Format | None,
        thought: Thought | None,
        tools: Tools | None = None,
        *,
        frame: Frame | None = None,
        prompt: str = "",
        hidden: Iterable[str] = (),
    ) -> None:
        """`tools` are None where no calls are looked for. What stands around an answer, `frame`, is
        left out of it. `prompt` is the text that the answer goes on from, which may have opened a
        thought. `hidden` are special tokens that are left out of the text."""
        looked_for = None if tools is None else format_
        super().__init__(
            id_length=None if format_ is None else format_.id_length, calls=looked_for is not None
        )
        self.tools = tools or NO_TOOLS
        self.bare = False
        self.reader = Reader()
        self._format = looked_for
        self._channels = format_ is not None and format_.channels
        self._thought = thought
        self._frame = frame
        self._hidden = frozenset(hidden)
        self._steps = self._run(_opens(thought, prompt))
        self._over = False
        self._advance()

    @property
    def position(self) -> int:
        return self.reader.position

    def feed(self, text: str) -> ReplyDelta:
        if text and not self._over:
            self.reader.add(text)
            self._advance()
        return self._taken()

    def finish(self, *, cut: bool = False) -> ReplyDelta:
        self.reader.ended, self.reader.cut = True, cut
        self._advance()
        return self._taken()

    def end(self) -> None:
        super().end()
        self.reader.marked = self.reader.at  # the call's text is not needed any more

    def not_read(self, error: Unparsed) -> None:
        """Give back as text what could not be read as a call."""
        if self._open or not (self.bare or isinstance(error, NoCall)):
            self.warn(f"A call of a tool could not be read and is given as text: {error}.")
        self.unread(self.reader.since())

    def _advance(self) -> None:
        if not self._over:
            try:
                next(self._steps)
            except StopIteration:
                self._over = True

    # -- reading -------------------------------------------------------------------------------

    def _run(self, thinking: bool) -> Steps[None]:
        yield
        if self._channels:
            yield from read_channels(self, calls=self._format is not None)
        else:
            if thinking:
                yield from self._think()
            yield from self._answer()
        self.end_answer()

    def _answer(self) -> Steps[None]:
        """Read text, with thoughts and calls in it."""
        reader, format_ = self.reader, self._format
        opening = format_.open if format_ is not None else ()
        yield from self._maybe_thought()
        framed = self._frame if (yield from self._framed()) else None
        closing = () if framed is None else (framed.close,)
        marks = Marks([*opening, *self._hidden, *closing])
        if format_ is not None and format_.bare:
            yield from self._section(format_, None)
        while True:
            text, found = reader.before(marks)
            self.say(text)
            if found is None:
                if not (yield from reader.more()) and reader.at == len(reader.text):
                    return
            elif found[0] in self._hidden:
                reader.at += len(found[0])
            elif found[0] in closing:
                reader.at += len(found[0])
                self._fresh, self._space = True, ""
            elif format_ is not None:
                yield from self._section(format_, found[0])
                yield from self._maybe_thought()

    def _maybe_thought(self) -> Steps[None]:
        """Read a thought if one comes next."""
        thought = self._thought
        if thought is not None and (yield from self._comes(thought.open)):
            yield from self._think(len(thought.open))

    def _framed(self) -> Steps[bool]:
        """Whether the answer has a frame, which is opened here. White space before its end is held
        back then."""
        if self._frame is None or not (yield from self._comes(self._frame.open)):
            return False
        self._fresh, self._holds_space = True, True
        return True

    def _comes(self, mark: str) -> Steps[bool]:
        """Read a mark, and white space before it, if they come next; whether they did."""
        reader = self.reader
        reader.marked = reader.at
        yield from reader.space()
        found = yield from reader.skip(mark)
        if not found and not reader.skip_cut(Marks([mark])):
            reader.at = reader.at if reader.marked is None else reader.marked
        reader.marked = None
        return found

    def _think(self, opened: int = 0) -> Steps[None]:
        """Read a thought to its end. A call ends it too: models forget to close thoughts."""
        reader, thought = self.reader, self._thought
        assert thought is not None, "somebody saw one open"
        self.begin_thought()
        self._thinking_since = reader.position - opened
        opening = self._format.open if self._format is not None else ()
        marks = Marks([thought.close, *opening, *self._hidden])
        while True:
            text, found = reader.before(marks)
            self.think(text)
            if found is None:
                if not (yield from reader.more()) and reader.at == len(reader.text):
                    self._space = ""
                    return
            elif found[0] in self._hidden:
                reader.at += len(found[0])
            else:
                if found[0] == thought.close:
                    reader.at += len(found[0])
                self.end_thought()
                return

    def _section(self, format_: Format, mark: str | None) -> Steps[None]:
        """Read calls behind an opening mark, which comes next; without one, if the answer is a call
        and nothing else. What is no call is text."""
        reader = self.reader
        reader.marked = reader.at
        start = reader.position
        self.bare, self._open = mark is None, False
        calls = len(self._calls)
        if mark is not None and not _is_part(format_, mark):
            reader.at += len(mark)
        try:
            if mark is None:
                yield from reader.space()
                if (yield from reader.peek()) not in ("{", "["):
                    raise NoCall("text")
            yield from read_calls(reader, format_.calls, format_.close, self)
        except Unparsed as error:
            self.not_read(error)
        else:
            self._fresh, self._space = True, ""
        finally:
            reader.marked, self.bare = None, False
        if mark is not None and len(self._calls) == calls and reader.position == start:
            self.say(mark)  # never the same mark twice
            reader.at += len(mark)


def _opens(thought: Thought | None, prompt: str) -> bool:
    """Whether a prompt ends within a thought that it opened."""
    return thought is not None and prompt.rstrip().endswith(thought.open)


def _is_part(format_: Format, mark: str) -> bool:
    """Whether an opening mark is already the beginning of a call."""
    begins = [call.name[0] for call in format_.calls if isinstance(call, TagCall)]
    return any(begin.startswith(mark) for begin in begins)
