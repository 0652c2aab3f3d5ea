"""What streaming text into a terminal takes: wrapping at words, a note while nothing comes, and no
echo of what is typed meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator

TAB = 8
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Wrapped:
    """Text that comes in pieces, as the terminal is to show it: a word that would be cut at the
    right edge is taken back and begun again on the next line."""

    def __init__(self, columns: int | None = None) -> None:
        """`columns` of the terminal; its own, as they are then, by default."""
        self._columns = columns
        self._column = 0
        self._word = ""

    def add(self, text: str) -> str:
        """What to write for the next piece of text."""
        from prompt_toolkit.utils import get_cwidth

        # The last column stays empty: terminals differ in where the cursor is once it is filled.
        most = max(2, (self._columns or shutil.get_terminal_size().columns) - 1)
        out = ""
        for character in text:
            if character in "\r\n":
                out += character
                self._column, self._word = 0, ""
                continue
            if character == "\t":
                character = " " * (TAB - self._column % TAB)
            width = get_cwidth(character)
            if self._column + width <= most:
                out += character
                self._column += width
                self._word = "" if character.isspace() else self._word + character
            elif character.isspace():
                out += "\n"
                self._column, self._word = 0, ""
            else:
                taken = get_cwidth(self._word)
                if taken < self._column:  # there is more than this word on the line
                    back = f"\x1b[{taken}D\x1b[K" if taken else ""
                    out += f"{back}\n{self._word}{character}"
                    self._word += character
                    self._column = taken + width
                else:
                    out += f"\n{character}"
                    self._column, self._word = width, character
        return out


class Note:
    """A dim line that stands where the answer will, until something is written."""

    def __init__(self, text: str) -> None:
        self._shown = True
        sys.stdout.write(f"{DIM}{text}{PLAIN}")
        sys.stdout.flush()

    def remove(self) -> None:
        """Take the line back; doing so again does nothing."""
        if self._shown:
            self._shown = False
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Keep what is typed into the terminal from being shown; it waits for whoever reads next. Keys
    that send signals do so still."""
    try:
        import termios

        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    changed = [*before]
    changed[3] &= ~termios.ECHO
    termios.tcsetattr(number, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
