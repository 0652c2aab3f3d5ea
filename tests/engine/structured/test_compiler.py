"""Grammars are compiled beside the engine, within limits, and harm nothing else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured.compiler import MOST_KEPT, Grammars, TooSlow
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


def test_a_grammar_that_takes_too_long_is_given_up_and_not_remembered() -> None:
    slow = Grammars(lambda: tiny_tokenizer().described, VOCABULARY, compile_s=1e-5)
    many = StructuredOutputsParams(choice=[f"total {i}" for i in range(3000)])
    with pytest.raises(TooSlow, match="takes longer than"):
        slow.compile(many).result()
    slow._compile_s = 30.0
    assert slow.compile(many).result().begin(frozenset()).forced()  # in a new process
    slow.close()


def test_a_worker_that_dies_is_the_end_of_one_grammar_only(grammars: Grammars) -> None:
    grammars.compile(choice("here")).result()
    for worker in grammars._workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    answers = [grammars.compile(grammar) for grammar in GRAMMARS]
    assert all(answer.result() for answer in answers)


def test_a_tokenizer_without_bytes_is_said() -> None:
    described = json.loads(tiny_tokenizer().described) | {"decoder": None}
    odd = Grammars(lambda: json.dumps(described), VOCABULARY)
    with pytest.raises(InvalidRequest, match="this one decodes by nothing"):
        odd.compile(choice("here")).result()
    odd.close()
