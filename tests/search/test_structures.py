"""What searches are made of: answers, weights, windows, resampling, clusters."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham.search.deepconf import Window
from ockham.search.ets import clustered, inherited
from ockham.search.particles import resampled
from ockham.search.rpc import probable
from ockham.search.structures.answers import MOST_ANSWER, Reader, check_extract
from ockham.search.structures.balance import apportioned, softmax
from ockham.search.structures.behaviour import (
    agreements,
    normal_form,
    program_of,
    similarity,
)
from ockham.search.structures.readings import answer_of
from ockham.search.structures.tally import weigh


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        ("last number", "it is 1,000.50", "1000.5"),
        ("last number", "12.0 of 13.00", "13"),
        ("last number", "3/4", "3/4"),
        ("last number", "12,23,29", "29"),
        ("last number", "1,234,567", "1234567"),
        ("last number", ".5", "0.5"),
        ("last number", "1e5", "100000"),
        ("last number", "1e99999", "1E+99999"),
        ("last number", "5-3", "3"),
        ("last number", "it is -3", "-3"),
        ("last number", "\u22127", "-7"),
        ("last number", "-0", "0"),
        ("last number", "007", "7"),
        ("last number", "none", None),
        ("choice", "Not (A), but (C).", "C"),
        ("choice", "I think BAD is E's", None),
        ("choice", "The answer is B", "B"),
        ("choice", "B. A cat, I think.", "B"),
        ("choice", "It is I.", "I"),
        ("choice", "(I) think", "I"),
        ("choice", "Answer: A", "A"),
        ("choice", "A. Because it is.", "A"),
        ("text", "  The\n Answer ", "the answer"),
        ("text", " \n", None),
        ("json:a", 'so {"a": {"c": 1, "b": "x"}} and {"d": 1}', '{"b": "x", "c": 1}'),
        ("json:a.b", 'so {"a": {"b": "x"}}', '"x"'),
        ("json:a", '{"a": 1} then {"a": 2}', "2"),
        ("json:a", '{"a": 1', None),
        ("json:a", '["a"]', None),
    ],
)
def test_an_answer_is_read(extract: str, text: str, answer: str | None) -> None:
    assert check_extract(extract) is None
    assert Reader(extract)(text) == answer


def test_a_text_full_of_braces_takes_no_time() -> None:
    assert Reader("json:a")("{" * 200_000) is None


@given(
    st.dictionaries(st.integers(0, 9), st.sampled_from(["a", "b", None]), max_size=8),
    st.floats(0.1, 9),
)
def test_weights_are_sums_and_the_heaviest_comes_first(
    answers: dict[int, str | None], weight: float
) -> None:
    weights = {number: weight * (number + 1) for number in answers if number % 3}
    totals = weigh(answers, weights)
    for answer, total in totals.items():
        own = [weights[n] for n, said in answers.items() if said == answer and n in weights]
        assert total == pytest.approx(sum(own))
    assert list(totals.values()) == sorted(totals.values(), reverse=True)
    assert None not in totals


@given(st.lists(st.floats(0.5, 30) | st.just(math.nan), max_size=40), st.integers(1, 8))
def test_a_window_is_the_least_sure_one(confidences: list[float], size: int) -> None:
    """However the tokens come."""
    known = [value for value in confidences if not math.isnan(value)]
    means = [sum(known[i : i + size]) / size for i in range(len(known) - size + 1)]
    expected = min(means, default=sum(known) / len(known) if known else math.inf)
    pieces = [Window(size), Window(size)]
    pieces[0].extend(confidences)
    for upto in range(len(confidences) + 1):
        pieces[1].extend(confidences[:upto])
    assert pieces[0].least == pytest.approx(expected)
    assert pieces[0].least == pieces[1].least


@given(
    st.dictionaries(st.integers(0, 50), st.floats(-5, 5), min_size=1, max_size=12),
    st.integers(0, 64),
    st.floats(0, 0.999),
)
def test_children_are_in_proportion(scores: dict[int, float], room: int, start: float) -> None:
    shares = softmax(scores, 0.5)
    assert sum(shares.values()) == pytest.approx(1.0)
    for counts in (apportioned(shares, room), resampled(shares, room, start)):
        assert sum(counts.values()) == room
        for number, count in counts.items():
            assert abs(count - shares[number] * room) < 1.0 + 1e-6


def test_improbable_paths_are_left_out() -> None:
    high, low = [0.91, 0.93, 0.9, 0.94, 0.92], [0.2, 0.22, 0.18, 0.21]
    kept = probable(np.array([*high, *low]))
    assert kept.tolist() == [True] * 5 + [False] * 4
    assert probable(np.array(high[:3])).all()  # too few to tell
    assert probable(np.full(9, 0.5)).all()
    for chances in ([1e-300, 0.5, 0.6, 0.7], [1.0, 1.0, 1.0, 1e-12], [1e-9] * 3 + [1e-8]):
        kept = probable(np.array(chances))
        assert kept[int(np.argmax(chances))]


def test_steps_that_say_the_same_are_one_kind() -> None:
    steps = ["1 + 2 = 3", "1 + 2 = 3", "4 + 5 = 9", "", "so it is", " "]
    assert clustered(steps) == [0, 0, 1, 2, 3, 2]


def test_who_stays_has_what_its_kind_had() -> None:
    shares = {1: 0.4, 2: 0.1, 3: 0.2, 4: 0.2, 5: 0.1}
    kinds = {1: 0, 2: 0, 3: 1, 4: 1, 5: 2}
    assert inherited(shares, kinds, [2, 3, 4, 5]) == pytest.approx({2: 0.5, 3: 0.2, 4: 0.2, 5: 0.1})
    assert inherited(shares, kinds, [1, 5]) == pytest.approx({1: 5 / 6, 5: 1 / 6})


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nas you see", "x = 1\n"),
        ("```\na\n```\nor\n```py\nb\n```", "b\n"),
        ("```python\nx = 1\ny =", "x = 1\ny ="),
        ("an ``` alone", " alone"),
    ],
)
def test_the_program_is_the_last_block(text: str, program: str) -> None:
    assert program_of(text) == program


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("def f(x):  # so\n\n    return x+1\n", "def f( x ):\n    return x + 1", True),
        ("if not x: y", "if not  x:y", True),
        ("ifx", "if x", False),
        ("s = 'a # b'", "s = 'a'", False),
        ("s = 'a  b'", "s = 'a b'", False),
        ("s = '''a\n\nb'''", "s = '''a\nb'''", False),
        ("if x:\n    y", "if x:\n  y", False),
    ],
)
def test_programs_that_are_written_alike(one: str, other: str, same: bool) -> None:
    assert (normal_form(one) == normal_form(other)) == same


@given(st.text(alphabet="a'\"\\\n #", max_size=60))
def test_a_normal_form_is_its_own(program: str) -> None:
    assert isinstance(normal_form(program), str)


@pytest.mark.parametrize("piece", ["'''\\", '"""x', "'\\\n", " ", "a ", "'", "#"])
def test_a_normal_form_takes_no_time(piece: str) -> None:
    began = time.monotonic()
    normal_form(piece * (100_000 // len(piece)))
    assert time.monotonic() - began < 2


def test_programs_are_similar_where_both_return_the_same() -> None:
    assert similarity(("1", "2", "raises E"), ("1", "3", "raises E")) == 0.5
    assert similarity(("1", "raises E"), ("raises E", "1")) == 0.0
    found = agreements({0: ("1", "2"), 1: ("1", "3"), 2: ("9", "3"), 5: ("1", "3")})
    assert max(found, key=lambda n: (found[n], -n)) == 1
    assert found[0] == 1.0


def test_long_outputs_are_told_apart() -> None:
    long, other = (answer_of(("x" * 2000, last)) for last in "ab")
    assert long != other
    assert len(long) <= MOST_ANSWER
    assert answer_of(("a", "b")) != answer_of(('a", "b',))
