"""Thoughts: where they end, how they are made to end, and what applies to the answer only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ockham import LLM, SamplingParams
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.thoughts import CLOSING, RepetitionDetectionParams, ThoughtMarks
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.repetition import Repetition
from ockham.engine.thinking import Phase, Thinking
from tests.helpers.tiny import tiny_llama

INSIDE = ThoughtMarks(open="<think>", close="</think>", inside=True)
OUTSIDE = ThoughtMarks(open="<think>", close="</think>")
PROMPT = "hello <think>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("thinking"), tokenizer=True))


@pytest.fixture(scope="module", params=["none", "auto"])
def llm(request: pytest.FixtureRequest, directory: str) -> Iterator[LLM]:
    with LLM(directory, speculative_config=request.param) as made:
        yield made


def said(llm: LLM, prompt: Any = PROMPT, **params: Any) -> list[Any]:
    asked = SamplingParams(**{"seed": 3, "max_tokens": 80, "ignore_eos": True, **params})
    [output] = llm.generate(prompt, asked, use_tqdm=False)
    return output.outputs


def closing(llm: LLM, text: str = CLOSING + "</think>") -> list[int]:
    return llm.get_tokenizer().encode(text, add_special_tokens=False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_budget_is_as_good_as_writing_the_closing_text_oneself(
    llm: LLM, temperature: float, logprobs: int | None
) -> None:
    asked = {"temperature": temperature, "logprobs": logprobs}
    budget = {"thinking_token_budget": 10, "thought": INSIDE}
    free = said(llm, **asked)[0].token_ids
    for choice in said(llm, **asked, **budget, n=2):
        ended = closing(llm)
        # The thought ends behind a whole character, up to three tokens later.
        own = next(k for k in range(10, 14) if choice.token_ids[k : k + len(ended)] == ended)
        if choice.index == 0:
            assert choice.token_ids[:own] == free[:own]
            written = llm.get_tokenizer().encode(PROMPT) + free[:own] + ended
            (rest,) = said(
                llm, {"prompt_token_ids": written}, **asked, max_tokens=80 - own - len(ended)
            )
            assert rest.token_ids == choice.token_ids[own + len(ended) :]
        if logprobs is not None:
            pairs = zip(choice.token_ids, choice.logprobs, strict=True)
            assert all(token in entry for token, entry in pairs)


def test_a_budget_of_nothing_ends_a_thought_before_its_first_token(llm: LLM) -> None:
    params = {"thinking_token_budget": 0, "thought": INSIDE, "thinking_closing_text": "No.\n"}
    ended = closing(llm, "No.\n</think>")
    for choice in said(llm, **params, n=2, temperature=0.7):
        assert choice.token_ids[: len(ended)] == ended


def test_stops_apply_to_the_answer_only(llm: LLM) -> None:
    (free,) = said(llm, temperature=0.0, thinking_token_budget=12, thought=INSIDE)
    thought, answer = free.text.split("</think>")
    stop = answer.strip()[6:9]
    letter = next(c for c in thought if c.isalpha())
    (stopped,) = said(
        llm, temperature=0.0, thinking_token_budget=12, thought=INSIDE, stop=[stop, "\n\n" + letter]
    )
    assert stopped.text == thought + "</think>" + answer[: answer.index(stop)]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    early = free.token_ids[3]
    (late,) = said(
        llm, temperature=0.0, thinking_token_budget=12, thought=INSIDE, stop_token_ids=[early]
    )
    assert len(late.token_ids) > 12
    (plain,) = said(llm, temperature=0.0, stop_token_ids=[early])
    assert len(plain.token_ids) <= 4


def test_a_thought_ends_on_demand_at_the_next_step(directory: str) -> None:
    engine = Engine(EngineConfig(model=directory))
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, thought=INSIDE)
    engine.take(Request(request_id="a", prompt_token_ids=tokenizer.encode(PROMPT), params=params))
    tokens: list[int] = []
    with pytest.raises(InvalidRequest, match="is not running"):
        engine.end_thought("b")
    while engine.has_work:
        tokens += [token for delta in engine.step() for token in delta.token_ids]
        if len(tokens) == 7:
            engine.end_thought("a")
    ended = tokenizer.encode(CLOSING + "</think>", add_special_tokens=False)
    assert tokens[7 : 7 + len(ended)] == ended
    assert len(tokens) == 60
    engine.close()


def test_what_does_not_think_is_not_ended(directory: str) -> None:
    engine = Engine(EngineConfig(model=directory))
    for name, thought in (("a", OUTSIDE), ("b", None)):
        params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True, thought=thought)
        engine.take(Request(request_id=name, prompt_token_ids=[5, 6, 7], params=params))
    engine.step()
    engine.step()
    for name in "ab":
        with pytest.raises(InvalidRequest, match="is not thinking"):
            engine.end_thought(name)
    engine.close()


def test_a_thought_that_is_being_ended_moves_to_another_engine(directory: str) -> None:
    first, second = (Engine(EngineConfig(model=directory)) for _ in range(2))
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, thought=INSIDE)
    told: list[list[int]] = []
    for moves in (False, True):
        engine, tokens = first, []
        engine.take(Request(request_id="a", prompt_token_ids=[5, 6, 7], params=params))
        while engine.has_work:
            tokens += [token for delta in engine.step() for token in delta.token_ids]
            if len(tokens) == 7:
                engine.end_thought("a")
            if moves and engine is first and len(tokens) > 8:
                data, engine = first.export_request("a"), second
                engine.import_request(data)
        told.append(tokens)
    assert told[0] == told[1]
    first.close()
    second.close()


def follow(marks: ThoughtMarks, *pieces: bytes, budget: int | None = None) -> Thinking:
    thinking = Thinking(marks, budget, [0], lambda token: pieces[token], watched=True)
    for token in range(len(pieces)):
        thinking.advance(token)
    return thinking


@pytest.mark.parametrize(
    ("marks", "pieces", "phase"),
    [
        (OUTSIDE, [b" ", b"\n<th"], Phase.BEFORE),
        (OUTSIDE, [b" ", b"\n<th", b"ink>"], Phase.INSIDE),
        (OUTSIDE, [b"<th", b"ere"], Phase.ANSWER),
        (OUTSIDE, [b"<think>a</think>"], Phase.CLOSED),
        (INSIDE, [b"<", b"/thi", b"nk", b"> "], Phase.CLOSED),
        (INSIDE, [b"</think>", b"\n\n"], Phase.CLOSED),
        (INSIDE, [b"</think>", b"\n\n", b"So"], Phase.ANSWER),
        (
            ThoughtMarks(open="<t>", close="</t>", inside=True, or_at=("[C",)),
            [b"[", b"C"],
            Phase.CLOSED,
        ),
    ],
)
def test_marks_are_found_wherever_tokens_cut_them(
    marks: ThoughtMarks, pieces: list[bytes], phase: Phase
) -> None:
    assert follow(marks, *pieces).phase is phase


def test_a_thought_is_cut_behind_a_whole_character() -> None:
    wine = "é".encode()
    assert not follow(INSIDE, b"a", wine[:1], budget=2).closing
    assert follow(INSIDE, b"a", wine[:1], wine[1:], budget=2).closing


def test_repetitions_are_found_when_they_are_complete(llm: LLM) -> None:
    params = RepetitionDetectionParams(max_pattern_size=3, min_pattern_size=2, min_count=3)
    for text, found in (
        *(("abababab", 5), ("aaaaaa", 5), ("xabcabcabc", 9), ("abcdabcdabcd", None)),
        *(("aabbaabb", None), ("abaabaab", 8)),
    ):
        repetition = Repetition(params)
        at = None
        for place, letter in enumerate(text):
            repetition.push(ord(letter))
            at = place if at is None and repetition.found else at
        expected = next(
            (
                end - 1
                for end in range(1, len(text) + 1)
                for size in (2, 3)
                if end >= 3 * size and text[end - 3 * size : end] == 3 * text[end - size : end]
            ),
            None,
        )
        assert at == expected, (text, found)
    (choice,) = said(
        llm,
        allowed_token_ids=[5, 6],
        temperature=0,
        repetition_detection={"max_pattern_size": 8, "min_count": 4},
    )
    assert (choice.finish_reason, choice.stop_reason) == ("repetition", "repetition_detected")


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"thinking_token_budget": -1}, "thinking_token_budget must be an integer in"),
        ({"thinking_closing_text": 3}, "thinking_closing_text must be a text"),
        ({"repetition_detection": {"max_pattern_size": 4}}, "min_count must be at least 2, got 0"),
        (
            {"repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 5}},
            "must not exceed",
        ),
        ({"repetition_detection": {"max_pattern_size": 1025}}, r"an integer in \[0, 1024\]"),
        ({"repetition_detection": 3}, "must be RepetitionDetectionParams"),
        ({"thought": {"open": " ", "close": "b"}}, "thought.open must have 1 to"),
    ],
)
def test_what_makes_no_sense_is_refused(params: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        SamplingParams(**params)


def test_a_budget_needs_marks(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="thinking_token_budget needs thought"):
        said(llm, thinking_token_budget=3)


def test_a_search_that_says_what_comes_next_has_no_budget(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="superposed says itself what comes next"):
        said(llm, thinking_token_budget=3, thought=INSIDE, superposed=True, n=2, temperature=0)
