"""Grammars are compiled beside the engine, within limits, and harm nothing else."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured import compiler
from ockham.engine.structured.compiler import MOST_KEPT, Grammars
from ockham.engine.structured.worker import Outcome
from tests.helpers.grammars import GRAMMARS, VOCABULARY, tiny_tokenizer


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(lambda: tiny_tokenizer().described, VOCABULARY)
    yield made
    made.close()


def choice(text: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(choice=[text])


def test_a_grammar_is_compiled_once(grammars: Grammars) -> None:
    first = grammars.compile(choice("total")).result()
    assert grammars.compile(choice("total")).result() is first
    assert grammars.compile(choice("yes")).result() is not first


def test_what_was_not_asked_for_lately_is_forgotten(grammars: Grammars) -> None:
    first = grammars.compile(choice("false")).result()
    for number in range(MOST_KEPT):
        grammars.compile(choice(f"{number}")).result()
    assert grammars.compile(choice("false")).result() is not first


def test_what_is_no_grammar_is_refused_with_a_reason_and_each_time(grammars: Grammars) -> None:
    for _ in range(2):
        with pytest.raises(
            InvalidRequest, match=r"cannot be compiled: .* unclosed group"
        ) as refused:
            grammars.compile(StructuredOutputsParams(regex="a(")).result()
        assert refused.value.status == 400
        assert len(str(refused.value)) < 500


HEAVY = StructuredOutputsParams(
    grammar="start: T\nT: /(.|\\n)*a(.|\\n){18}/ & /(.|\\n)*b(.|\\n){17}/ & ~/(.|\\n)*c(.|\\n){16}/"
)
"""Takes a minute of CPU time to compile."""


def test_a_grammar_that_takes_too_long_is_refused_and_that_is_remembered() -> None:
    slow = Grammars(lambda: tiny_tokenizer().described, VOCABULARY, compile_s=0.5)
    with pytest.raises(InvalidRequest, match=r"more than 0\.5 s of CPU time; make it simpler\."):
        slow.compile(HEAVY).result()
    again = slow.compile(HEAVY)
    assert again.done()
    with pytest.raises(InvalidRequest, match="CPU time"):
        again.result()
    assert slow.compile(choice("here")).result().begin(frozenset()).forced()
    slow.close()


def test_refusals_are_remembered_within_bounds(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "MOST_REFUSED", 3)
    wrong = [StructuredOutputsParams(regex=f"{letter}(") for letter in "abcdef"]
    for each in wrong:
        with pytest.raises(InvalidRequest, match="unclosed"):
            grammars.compile(each).result()
    # The remembered ones are asked for first: a grammar that is tried again displaces one of them.
    assert all(grammars.compile(each).done() for each in reversed(wrong[3:]))
    tried: list[StructuredOutputsParams] = []
    submit = grammars._worker.submit

    def counted(asked: StructuredOutputsParams, owner: str = "") -> Future[Outcome]:
        tried.append(asked)
        return submit(asked, owner=owner)

    monkeypatch.setattr(grammars._worker, "submit", counted)
    for each in wrong[:3]:
        with pytest.raises(InvalidRequest, match="unclosed"):
            grammars.compile(each).result()
    assert tried == wrong[:3]


def test_nothing_waits_for_a_grammar_that_is_asked_for(grammars: Grammars) -> None:
    """Not for its process, not for the vocabulary, not for others."""
    fresh = Grammars(lambda: tiny_tokenizer().described, VOCABULARY, compile_s=1.0)
    began_s = time.monotonic()
    heavy = [
        fresh.compile(StructuredOutputsParams(grammar=f"{HEAVY.grammar} & /(.|\\n)*{i}/"))
        for i in range(4)
    ]
    honest = fresh.compile(choice("here"), owner="another")
    assert time.monotonic() - began_s < 0.5
    assert honest.result().begin(frozenset()).forced()
    assert not all(each.done() for each in heavy), "owners take turns"
    fresh.close()


def test_a_worker_that_dies_is_the_end_of_one_grammar_only(grammars: Grammars) -> None:
    grammars.compile(choice("here")).result()
    for pid in grammars._worker.pids:
        os.kill(pid, signal.SIGKILL)
    answers = [grammars.compile(grammar) for grammar in GRAMMARS]
    assert all(answer.result() for answer in answers)


@pytest.mark.parametrize(
    "hostile",
    [
        {"regex": "(" * 60_000 + "a" + ")" * 60_000},
        {"regex": "((((a{0,999}){0,999}){0,999}){0,999}){0,999}"},
        {"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000},
        {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
        {"grammar": "start: a\na: a a | a"},
        {"json": {"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}},
        {"json": '{"type": "string", "pattern": "' + "(a|" * 20_000 + "b" + ")" * 20_000 + '"}'},
    ],
)
def test_a_hostile_grammar_is_compiled_or_refused_with_a_sentence(
    grammars: Grammars, hostile: dict[str, Any]
) -> None:
    error = grammars.compile(StructuredOutputsParams(**hostile)).exception()
    if error is not None:
        assert isinstance(error, InvalidRequest)
        assert str(error).startswith("the grammar of the output cannot be compiled: ")
        assert len(str(error)) < 600
    assert grammars.compile(choice("here")).result()


def test_a_tokenizer_without_bytes_is_said() -> None:
    described = json.loads(tiny_tokenizer().described) | {"decoder": None}
    odd = Grammars(lambda: json.dumps(described), VOCABULARY)
    with pytest.raises(InvalidRequest, match="this one decodes by nothing"):
        odd.compile(choice("here")).result()
    odd.close()
