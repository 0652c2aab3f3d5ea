"""`/v1/decisions` and `/v1/systemone`: typed questions about one state."""

from __future__ import annotations

import openai
import pytest

from tests.helpers.live import LiveServer

STATE = "The package arrived with a broken screen, two weeks late. " * 6
SYSTEM_ONE = {
    "team": {
        "type": "choice",
        "instructions": "Who handles this?",
        "criteria": {"returns": "broken goods", "billing": None},
    },
    "damaged": {"type": "noul", "instructions": "Is it damaged?", "criteria": {"true": "broken"}},
    "tone": {"type": "score", "instructions": "How upset?", "criteria": ["calm", "furious"]},
}


def test_system_one_gives_a_probability_for_every_option(talking: LiveServer) -> None:
    asked = {"state": {"text": STATE}, "questions": SYSTEM_ONE, "model": "tiny"}
    answer = talking.post("/v1/systemone", asked).json()
    assert answer["object"] == "structured_decision"
    team, damaged, tone = (answer["answers"][name] for name in SYSTEM_ONE)
    assert team["choice"] in team["probabilities"].keys() == {"returns", "billing"}
    assert damaged["noul"] == damaged["probabilities"]["yes"]
    assert tone["score"] == pytest.approx(tone["probabilities"]["1"])
    assert tone["legend"] == {"0": "calm", "1": "furious"}
    for name in SYSTEM_ONE:
        assert sum(answer["answers"][name]["probabilities"].values()) == pytest.approx(1)
        assert 0 < answer["diagnostics"][name]["label_mass"] <= 1
    usage = answer["usage"]
    assert usage["output_tokens"] == 3
    # The state was computed once, and is reused for two of the three questions.
    assert usage["input_tokens_details"]["cached_tokens"] > usage["input_tokens"] // 3
    assert usage["ockham"]["prompt_tokens_computed"] < usage["input_tokens"] // 2


def test_openai_python_decides(talking: LiveServer) -> None:
    decision = talking.openai().decisions.create(
        model="tiny",
        input=[{"role": "user", "content": [{"type": "input_text", "text": STATE}]}],
        questions=[
            {"type": "predicate", "name": "damaged", "instructions": "Is it damaged?"},
            {
                "type": "choice",
                "instructions": "Did it arrive?",
                "choices": [{"value": True}, {"value": "no", "description": "lost"}],
            },
            {
                "type": "score",
                "instructions": "How bad?",
                "levels": [{"label": "cosmetic"}, {"label": "broken", "description": "useless"}],
            },
        ],
    )
    predicate, choice, score = decision.answers
    assert isinstance(decision, openai.types.decision.Decision)
    assert predicate.name == "damaged"
    assert 0 <= predicate.probability <= 1
    assert choice.choice in (True, "no")
    assert [each.value for each in choice.probabilities] == [True, "no"]
    assert [each.label for each in score.probabilities] == ["cosmetic", "broken"]
    assert decision.usage.output_tokens == 3
    assert decision.usage.input_tokens_details.cached_tokens > 0


def test_decisions_with_the_fields_of_sglang(talking: LiveServer) -> None:
    questions = [
        {"id": "a", "type": "yes_no", "question": "Is it damaged?", "yes": "broken"},
        {
            "id": "b",
            "type": "choice",
            "question": "Who?",
            "options": [{"name": "x"}, {"name": "y"}],
        },
        {"id": "c", "type": "score", "question": "How bad?", "levels": ["low", "high"]},
    ]
    answer = talking.post("/v1/decisions", {"input": STATE, "questions": questions}).json()
    assert answer["object"] == "decisions"
    assert set(answer["answers"]["a"]["probabilities"]) == {"yes", "no"}
    assert answer["answers"]["b"]["choice"] in "xy"
    assert answer["answers"]["c"]["score"] <= 1
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("systemone", {"state": STATE, "questions": {}}, "questions"),
        ("systemone", {"state": " ", "questions": SYSTEM_ONE}, "state"),
        ("systemone", {"questions": SYSTEM_ONE}, "state"),
        (
            "systemone",
            {"state": STATE, "questions": {"a": {"type": "choice", "criteria": ["b"]}}},
            "questions.a",
        ),
        (
            "systemone",
            {"state": STATE, "questions": {"a": {"type": "noul", "criteria": {"maybe": ""}}}},
            "questions.a",
        ),
        ("decisions", {"input": STATE, "questions": []}, "questions"),
        (
            "decisions",
            {"input": [{"role": "tool", "content": "x"}], "questions": [{"type": "predicate"}]},
            "input[0]",
        ),
        (
            "decisions",
            {
                "input": [{"role": "user", "content": [{"type": "input_image"}]}],
                "questions": [{"type": "predicate", "instructions": "?"}],
            },
            "input[0]",
        ),
        (
            "decisions",
            {"input": STATE, "questions": [{"type": "choice", "choices": [{"description": "x"}]}]},
            "questions[0]",
        ),
        ("decisions", {"input": STATE, "questions": [{"type": "yes_no"}]}, "questions[0].id"),
    ],
)
def test_a_wrong_request_is_told_by_its_field(talking: LiveServer, path, body, param) -> None:
    answer = talking.post(f"/v1/{path}", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_template_that_opens_a_thought_cannot_decide(talking: LiveServer) -> None:
    body = {
        "state": STATE,
        "questions": SYSTEM_ONE,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    answer = talking.post("/v1/systemone", body)
    assert answer.status_code == 400
    assert "begins the answer with a thought" in answer.json()["error"]["message"]
