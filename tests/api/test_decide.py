"""`LLM.decide`: typed questions about one state."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path

import pytest

from ockham import LLM, AsyncLLM, Choice, InvalidRequest, SamplingParams, Score, YesNo
from ockham.api import decisions

STATE = {"ticket": "My card was charged twice for one order, and nobody answers. " * 8}
QUESTIONS = {
    "team": Choice("Which team?", {"billing": "payments", "shipping": None}),
    "urgent": YesNo("Is it urgent?", yes="money is moving"),
    "tone": Score("How upset?", ["calm", "annoyed", "furious"]),
}


def test_probabilities_are_those_of_the_labels_at_the_first_token(llm: LLM) -> None:
    found = llm.decide(STATE, QUESTIONS)
    for answer in found.answers.values():
        assert math.isclose(sum(answer.probabilities.values()), 1.0)
        assert 0 < answer.label_mass <= 1
        assert answer.probabilities[answer.choice] == max(answer.probabilities.values())
    [asked] = decisions.read_questions({"team": QUESTIONS["team"]}).values()
    message = {"role": "user", "content": f"{decisions.text_of(STATE)}\n\n{asked.prompt()}"}
    tokenizer = llm.get_tokenizer()
    spelled = {
        label: [t for t in range(tokenizer.vocab_size) if tokenizer.token_text(t).strip() == label]
        for label in "AB"
    }
    params = SamplingParams(
        temperature=0, max_tokens=1, logprobs=0, logprob_token_ids=[*spelled["A"], *spelled["B"]]
    )
    [chat] = llm.chat([message], params, use_tqdm=False)
    entry = (chat.outputs[0].logprobs or [])[0]
    masses = [math.fsum(math.exp(entry[t].logprob) for t in spelled[label]) for label in "AB"]
    assert math.isclose(
        found.answers["team"].probabilities["billing"], masses[0] / sum(masses), rel_tol=1e-6
    )


def test_the_state_is_computed_once(llm: LLM) -> None:
    many = {str(i): YesNo(f"Question {i}?") for i in range(8)}
    one = llm.decide({"fresh": STATE}, {"0": many["0"]}).ledger
    assert one.prompt_tokens_reused < 32
    eight = llm.decide({"other": STATE}, many).ledger
    state_tokens = one.prompt_tokens - 30
    assert eight.prompt_tokens > 8 * state_tokens
    assert eight.prompt_tokens_computed < state_tokens + 8 * 64
    assert eight.generated_tokens == 8


def test_a_question_is_answered_alike_alone_and_beside_others(llm: LLM) -> None:
    together = llm.decide(STATE, QUESTIONS).answers
    with LLM("lab", reuse="none") as fresh:
        for name, question in QUESTIONS.items():
            assert fresh.decide(STATE, {name: question}).answers[name] == together[name]

    async def asked() -> decisions.DecisionOutput:
        async with AsyncLLM("lab") as llm:
            return await llm.decide(STATE, QUESTIONS)

    assert asyncio.run(asked()).answers == together


@pytest.mark.parametrize(
    ("state", "questions", "said"),
    [
        ("", QUESTIONS, "state must not be empty"),
        ("x", {}, "questions has 0 entries; send 1 to 64"),
        ("x", {"a": "Is it?"}, "must be a Choice, Score or YesNo"),
        ("x", {"a": Choice("Which?", [str(i) for i in range(27)])}, "has 27 options"),
        ("x", {"a": Choice("Which?", ["b", "b"])}, None),
        ("x", {"a": Score("How?", ["one"])}, "has 1 levels"),
        (float("nan"), QUESTIONS, "a state must be text or JSON"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(llm: LLM, state, questions, said) -> None:
    if said is None:  # the same name twice is one option
        assert llm.decide(state, questions).answers["a"].probabilities == {"b": 1.0}
        return
    with pytest.raises(InvalidRequest, match=said):
        llm.decide(state, questions)


def test_log_probabilities_of_named_tokens_need_logprobs() -> None:
    with pytest.raises(InvalidRequest, match="logprob_token_ids needs logprobs"):
        SamplingParams(logprob_token_ids=[1])
    with pytest.raises(InvalidRequest, match="has 129 entries, at most 128"):
        SamplingParams(logprobs=0, logprob_token_ids=list(range(129)))


@pytest.fixture(scope="module")
def llm():
    with LLM("lab") as llm:
        yield llm


def test_the_example_of_the_page_works_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/decisions.md").read_text()
    [example] = re.findall(r"(?ms)^```python\n(.*?)^```", page)
    exec(example, {})
    assert "billing" in capsys.readouterr().out
