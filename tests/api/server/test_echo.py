"""Log probabilities of prompts: something is said where there is something, null where not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.live import LiveServer


def choices(server: LiveServer, stream: bool, **body: Any) -> list[dict[str, Any]]:
    """The choices of a completion; a stream's are put together."""
    body = {"temperature": 0, "max_tokens": 2, "ignore_eos": True, **body, "stream": stream}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    if not stream:
        return list(response.json()["choices"])
    whole: dict[int, dict[str, Any]] = {}
    for line in response.text.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            before = whole.setdefault(choice["index"], {"text": "", "logprobs": None})
            before["text"] += choice["text"]
            for name in ("finish_reason", "stop_reason", "prompt_logprobs"):
                if choice.get(name) is not None:
                    before[name] = choice[name]
            shown = choice["logprobs"]
            if shown is not None and before["logprobs"] is not None:
                for name, values in shown.items():
                    before["logprobs"][name] += values
            elif shown is not None:
                before["logprobs"] = shown
    return [whole[index] for index in sorted(whole)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("max_tokens", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("logprobs", [0, 1])
@pytest.mark.parametrize("prompt", [[5], "hi", [[5]], [[5], [5, 6, 7]], ["hi", "hi there you"]])
def test_an_echo_has_an_entry_for_each_token(server, prompt, logprobs, n, max_tokens, stream):
    if max_tokens == 0 and n == 2:
        pytest.skip("n choices of nothing are refused")
    asked = {"prompt": prompt, "echo": True, "logprobs": logprobs, "n": n, "max_tokens": max_tokens}
    found = choices(server, stream, **asked)
    prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    assert len(found) == n * len(prompts)
    for number, choice in enumerate(found):
        given = prompts[number // n]
        if isinstance(given, str):
            assert choice["text"].startswith(given)
            given = server.post("/tokenize", {"prompt": given}).json()["tokens"]
        shown = choice["logprobs"]
        for values in shown.values():
            assert len(values) == len(given) + max_tokens
        assert shown["token_logprobs"][0] is None
        assert shown["top_logprobs"][0] is None
        assert None not in shown["token_logprobs"][1:]
        assert "".join(shown["tokens"]) == choice["text"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("prompt", [[5], [5, 6]])
def test_prompt_logprobs_begin_with_null_whatever_follows(server, prompt, max_tokens, stream):
    (choice,) = choices(server, stream, prompt=prompt, prompt_logprobs=1, max_tokens=max_tokens)
    assert choice["prompt_logprobs"][0] is None
    assert len(choice["prompt_logprobs"]) == len(prompt)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_prompt_logprobs_of_a_chat_come_once(server, stream):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "prompt_logprobs": 0}
    response = server.post("/v1/chat/completions", {**body, "stream": stream})
    assert response.text.count('"prompt_logprobs":[null') == 1


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"echo": True, "logprobs": 1}])
@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", ""]])
def test_a_prompt_of_no_token_is_refused(server, prompt, fields):
    response = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 0, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("prompt", "max_tokens")


def test_bytes_of_log_probabilities_are_the_tokens_own(server):
    text = "é🙂 naïve €"
    tokens = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    parts = tokens["tokens"]
    found = b""
    for token in parts:
        body = {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": 1,
            "allowed_token_ids": [token],
            "ignore_eos": True,
        }
        answer = server.post("/v1/chat/completions", body).json()
        (shown,) = answer["choices"][0]["logprobs"]["content"]
        assert None not in [each["bytes"] for each in shown["top_logprobs"]]
        found += bytes(shown["bytes"])
    assert found.decode() == text
    assert len(parts) > len(text.split())
