"""llama-server's routes: filling in, and facts about the server."""

from __future__ import annotations

import json

import pytest

from ockham.text.tokenizer import Tokenizer
from tests.helpers.live import LiveServer, wait_for

BEFORE = "def add(a, b):\n    return "
BEHIND = "\n\nprint(add(1, 2))\n"


def test_infill_puts_the_gap_between_the_fill_in_tokens(server: LiveServer) -> None:
    body = {"input_prefix": BEFORE, "input_suffix": BEHIND, "n_predict": 8, "temperature": 0}
    answer = server.post("/infill", body).json()
    tokenizer = Tokenizer(server.model)  # type: ignore[arg-type]
    fill_in = tokenizer.fill_in
    assert fill_in is not None
    prompt = fill_in.prompt(lambda t: tokenizer.encode(t, False), [], BEFORE, BEHIND).token_ids
    same = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0})
    assert answer["content"] == same.json()["choices"][0]["text"]
    assert answer["stop"] is True
    assert answer["tokens_evaluated"] == len(prompt)
    assert answer["tokens_predicted"] == len(answer["tokens"]) <= 8
    assert answer["truncated"] is False
    assert answer["timings"]["predicted_n"] == answer["tokens_predicted"]
    by_suffix = {"prompt": BEFORE, "suffix": BEHIND, "max_tokens": 8, "temperature": 0}
    found = server.post("/v1/completions", by_suffix).json()
    assert found["choices"][0]["text"] == answer["content"]


def test_infill_streams(server: LiveServer) -> None:
    body = {"input_prefix": BEFORE, "input_suffix": BEHIND, "n_predict": 8, "temperature": 0}
    whole = server.post("/infill", body).json()
    text = server.post("/infill", {**body, "stream": True}).text
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]


def test_the_request_of_llama_vim_is_answered_with_the_fields_that_it_names(
    server: LiveServer,
) -> None:
    named = ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "tokens_cached"]
    body = {
        "input_prefix": BEFORE,
        "input_suffix": BEHIND,
        "input_extra": [{"text": "x = 1\n", "time": [3, 5], "filename": "a.py"}],
        "prompt": "a +",
        "n_predict": 4,
        "stop": [],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.9,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 250,
        "response_fields": named,
    }
    answer = server.post("/infill", body)
    assert list(answer.json()) == named
    assert "X-Ockham-Ignored-Fields" not in answer.headers


def test_typing_computes_what_follows_the_change(server: LiveServer) -> None:
    """The text before the cursor stays in the cache; what stands behind it is computed again."""
    before = "".join(f"def function_{i}(a, b):\n    return a + b * {i}\n\n" for i in range(60))
    computed = []
    for typed in ("", "d", "de", "def", "def m", "def main"):
        body = {"input_prefix": before, "prompt": typed, "input_suffix": BEHIND, "n_predict": 1}
        timings = server.post("/infill", body).json()["timings"]
        computed.append(timings["prompt_n"])
    assert computed[0] > 1000
    assert max(computed[1:]) < 100


def test_an_answer_ends_in_time_once_its_line_is_whole(server: LiveServer) -> None:
    body = {
        "input_prefix": BEFORE,
        "input_suffix": BEHIND,
        "n_predict": 4000,
        "t_max_predict_ms": 1,
        "temperature": 1.5,
        "seed": 3,
    }
    answer = server.post("/infill", body).json()
    assert answer["tokens_predicted"] < 4000
    assert answer["stop_type"] in ("limit", "eos")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_prefix": 5}, "input_prefix"),
        ({"n_predict": 0}, "n_predict"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_a_wrong_request_is_told_by_its_field(server: LiveServer, body, param) -> None:
    answer = server.post("/infill", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_suffix_goes_with_texts(server: LiveServer) -> None:
    answer = server.post("/v1/completions", {"prompt": [5, 6], "suffix": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"
    body = {"prompt": "a", "max_tokens": 2, "temperature": 0}
    plain = server.post("/v1/completions", body).json()
    empty = server.post("/v1/completions", {**body, "suffix": ""}).json()
    assert empty["choices"] == plain["choices"]


def test_props_say_what_the_model_is(server: LiveServer) -> None:
    props = server.get("/props").json()
    [model] = server.get("/v1/models").json()["data"]
    assert props["default_generation_settings"]["n_ctx"] == model["max_model_len"]
    assert props["model_alias"] == "tiny"
    assert props["fill_in"] is True
    assert props["total_slots"] == 64
    on = props["techniques"]
    assert (on["reuse"], on["keep"], on["attention_pattern"]) == (["prefix"], "all", "full")
    assert on["kv_store"] is False


def test_slots_show_what_runs_of_the_caller_and_no_text(server: LiveServer) -> None:
    with server.openai().completions.create(
        model="tiny",
        prompt="a secret",
        max_tokens=4000,
        stream=True,
        extra_body={"ignore_eos": True, "cache_salt": "mine"},
    ) as stream:
        next(iter(stream))
        [slot] = server.get("/slots?cache_salt=mine").json()
        assert slot["n_prompt_tokens"] > 0
        assert "secret" not in json.dumps(slot)
        assert server.get("/slots").json() == []
    wait_for(lambda: server.get("/slots?cache_salt=mine").json() == [], 20)


def test_apply_template_shows_the_prompt(talking: LiveServer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    prompt = talking.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert "Hello" in prompt
    tokens = talking.post("/tokenize", {"messages": messages}).json()["tokens"]
    said = talking.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    assert said == prompt
