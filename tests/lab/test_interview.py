"""Questions over one context: what is asked, how answers score, and that each way of asking gives
what separate requests give."""

from __future__ import annotations

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import check_tasks, task_cases
from ockham.lab.evaluate import Result, evaluate, summarise
from ockham.lab.interview import Interview, Talk, interview_of
from ockham.lab.running import drive
from ockham.lab.tasks.shared import LEVELS, QUESTIONS, SHARED, WAYS, Question, shared

TOKENS = 1000


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(model="lab", speculative_config="none", max_num_seqs=8))


def drawn(engine: Engine, task: str, way: str) -> Interview:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    found = shared(task, 0, 0, TOKENS, lambda text: len(tokenizer.encode(text)))
    return interview_of(tokenizer, found, way)


def answers(engine: Engine, interview: Interview) -> list[list[int]]:
    talk = Talk(interview, engine.eos)
    drive(engine, [interview.request("talk", None)], lambda output: None, {"talk": talk})
    return list(talk.answers)


def answer(engine: Engine, prompt: list[int], most: int) -> list[int]:
    """What one plain request is answered with, without the token that ends it."""
    outputs: list[RequestOutput] = []
    params = SamplingParams(temperature=0.0, max_tokens=most)
    drive(
        engine, [Request(request_id="one", prompt_token_ids=prompt, params=params)], outputs.append
    )
    tokens = list(outputs[0].outputs[0].token_ids)
    return tokens[:-1] if tokens[-1] in engine.eos else tokens


@pytest.mark.parametrize("task", SHARED)
def test_contexts_are_decided_by_seed_and_number_and_their_answers_score(task: str) -> None:
    one = shared(task, 1, 0, TOKENS)
    assert one == shared(task, 1, 0, TOKENS)
    assert one != shared(task, 1, 1, TOKENS)
    assert one != shared(task, 2, 0, TOKENS)
    assert len({question.text for question in one.questions}) == QUESTIONS
    for question in one.questions:
        assert question.score(question.answer) == 1.0
        assert question.score(f" {question.answer}\n") == 1.0
        assert question.score("") == 0.0


def test_only_the_first_lines_of_an_answer_count() -> None:
    question = Question("Which?", "one", ("one", "two"), 8)
    assert question.score("one of them") == 0.5
    assert question.score("none\none two") == 0.5
    assert question.score("neither\none two") == 0.0


@pytest.mark.parametrize("task", SHARED)
@pytest.mark.parametrize("tokens", [1000, 8000])
def test_a_conversation_is_about_as_long_as_its_level_says(
    engine: Engine, task: str, tokens: int
) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    found = shared(task, 0, 0, tokens, lambda text: len(tokenizer.encode(text)))
    longest = interview_of(tokenizer, found, "turns").longest
    assert 0.75 * tokens < longest < tokens + 160


def test_turns_are_a_conversation(engine: Engine) -> None:
    interview = drawn(engine, "shared-recall", "turns")
    prompt = list(interview.prompt)
    for said, asked, most in zip(
        answers(engine, interview), interview.asked, interview.max_tokens, strict=True
    ):
        prompt += asked
        assert said == answer(engine, prompt, most)
        prompt += said


@pytest.mark.parametrize("way", ["requests", "after"])
def test_questions_side_by_side_are_requests_of_their_own(engine: Engine, way: str) -> None:
    interview = drawn(engine, "shared-documents", way)
    said = answers(engine, interview)
    first = answer(engine, list(interview.first), interview.max_tokens[0])
    assert said[0] == first
    before = list(interview.prompt) + (first if way == "after" else [])
    for number in range(1, QUESTIONS):
        prompt = [*before, *interview.asked[number]]
        assert said[number] == answer(engine, prompt, interview.max_tokens[number])


def test_questions_need_seats() -> None:
    engine = Engine(EngineConfig(model="lab", speculative_config="none", max_num_seqs=2))
    with pytest.raises(InvalidRequest, match="runs 5 sequences at once, but at most 2"):
        answers(engine, drawn(engine, "shared-recall", "requests"))


def test_scores_of_the_first_question_and_of_the_others_stand_apart(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    level = f"requests, tokens={TOKENS}"
    found = task_cases(["shared-recall"], 2, 0, [level], tokenizer, engine.max_model_len)
    results: list[Result] = []
    evaluate(engine, found.cases, results.append)
    whole, *levels = summarise(results)
    assert whole.items == 2
    assert whole.any_right is None
    assert {each.level for each in levels} == {
        f"{level}, question 1",
        f"{level}, questions 2 to {QUESTIONS}",
    }
    assert [len(each.scores or []) for each in results] == [QUESTIONS - 1, 1] * 2
    assert whole.score is not None
    assert whole.score > 0.5


def test_what_does_not_fit_is_left_out_and_said(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    found = task_cases(["shared-recall"], 1, 0, ["turns, tokens=8000"], tokenizer, 4096)
    assert not found.cases
    assert "1 items of shared-recall at turns, tokens=8000 do not fit" in found.left_out[0]


def test_levels_and_tasks_are_checked() -> None:
    assert len(LEVELS) == 4 * len(WAYS)
    check_tasks(["shared-edit", "recall"], [LEVELS[0], "tokens=128"])
    with pytest.raises(ConfigError, match="no task 'shared-nothing'"):
        check_tasks(["shared-nothing"], [])
    with pytest.raises(ConfigError, match="no task 'nothing'"):
        shared("nothing", 0, 0, 1000)
    with pytest.raises(ConfigError, match="no chosen task has the level"):
        check_tasks(["shared-edit"], ["turns"])
