"""Streamed text wraps at words, whatever its pieces are."""

from __future__ import annotations

import random
import re
import textwrap

import pytest

from ockham.cli.terminal import Wrapped


def shown(text: str, columns: int) -> list[str]:
    """The lines of a terminal of so many columns to which a text was written."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[(\d+)D\x1b\[K|([\s\S])", text):
        back, character = part
        if back:
            column -= int(back)
            assert column >= 0, "the cursor goes back into the line before"
            lines[-1] = lines[-1][:column]
        elif character == "\n":
            lines.append("")
            column = 0
        else:
            assert column < columns, "the terminal itself would wrap"
            lines[-1] += character
            column += 1
    return lines


@pytest.mark.parametrize("columns", [12, 20, 37, 80])
@pytest.mark.parametrize("seed", range(5))
def test_no_word_is_cut_that_fits_into_a_line(columns: int, seed: int) -> None:
    chance = random.Random(seed)
    words = ["x" * chance.randint(1, 10) for _ in range(200)]
    text = " ".join(words)
    wrapped, out, rest = Wrapped(columns), "", text
    while rest:
        size = chance.randint(1, 9)
        out += wrapped.add(rest[:size])
        rest = rest[size:]
    lines = shown(out, columns)
    assert [line.rstrip() for line in lines] == textwrap.wrap(text, columns - 1)


def test_a_word_longer_than_a_line_is_cut_and_nothing_is_lost() -> None:
    lines = shown(Wrapped(10).add("ab " + "c" * 25 + " d"), 10)
    assert "".join(lines).replace(" ", "") == "ab" + "c" * 25 + "d"
    assert max(map(len, lines)) <= 9


def test_line_breaks_and_indentation_of_the_text_stay() -> None:
    text = "def f():\n    return 1\n\nf()"
    assert Wrapped(40).add(text) == text


def test_wide_characters_take_two_columns() -> None:
    lines = Wrapped(9).add("\u6f22" * 6).split("\n")
    assert lines == ["\u6f22" * 4, "\u6f22" * 2]
