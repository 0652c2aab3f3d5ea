"""Techniques are asked for by fields of their own, which are checked as every other field is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from ockham.api.server.errors import decode
from ockham.api.server.extras import EXTRAS
from ockham.api.server.llama_server.infill import InfillBody
from ockham.api.server.messages.request import MessagesBody
from ockham.api.server.ollama.request import ChatBody, GenerateBody
from ockham.api.server.protocol import ChatRequest, CompletionRequest
from ockham.api.server.responses.request import ResponseRequest
from ockham.core import registry
from ockham.core.asks import Ask
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from tests.helpers.live import LiveServer

PATHS = {
    "/v1/completions": {"prompt": "def add("},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "def add("}]},
}


@pytest.mark.parametrize("path", PATHS)
def test_choices_of_one_pass_are_asked_for_by_name(server: LiveServer, path: str) -> None:
    asked = {**PATHS[path], "n": 3, "temperature": 0, "superposed": True, "max_tokens": 4}
    answer = server.post(path, asked).json()
    assert len(answer["choices"]) == 3
    assert answer["usage"]["ockham"]["saved"]["superposed"]["tokens"] > 0
    plain = server.post(path, {**asked, "superposed": None}).json()
    assert "superposed" not in plain["usage"]["ockham"]["saved"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "sentence", "field"),
    [
        ({"superposed": "yes"}, "superposed is wrong: expected 'bool", "superposed"),
        ({"superposed": {}}, "superposed is wrong: expected 'bool", "superposed"),
        ({"superposed": True}, "needs n of at least 2 and temperature 0", "superposed"),
        ({"recompute_fraction": 0.5}, "needs reuse='chunk' beside it", "recompute_fraction"),
        (
            {"reuse": "chunk", "recompute_fraction": "all"},
            "recompute_fraction is wrong: expected 'float",
            "recompute_fraction",
        ),
        (
            {"reuse": "chunk", "recompute_fraction": 10**30},
            "recompute_fraction is 1000000000000000000000000000000; a number must lie in",
            "recompute_fraction",
        ),
        (
            {"reuse": "edit", "recompute_fraction": 0.5},
            "reuse='edit' takes no recompute_fraction",
            "recompute_fraction",
        ),
        ({"reuse": "chunk", "chunks": [[0, 2]]}, "chunks is not a field that this", "chunks"),
        ({"chunk": True}, "chunk is not a field that this server knows", "chunk"),
        ({"prefix": True}, "prefix is not a field that this server knows", "prefix"),
        ({"asks": {"search/superposed": True}}, "asks is not a field that this", "asks"),
        ({"asking": ["n"]}, "asking is not a field that this server knows", "asking"),
    ],
)
def test_what_is_wrong_with_an_ask_names_its_field(
    server: LiveServer, path: str, fields: dict[str, Any], sentence: str, field: str
) -> None:
    response = server.post(path, {**PATHS[path], "max_tokens": 1, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert sentence in error["message"]
    assert error["param"] == field


HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
OTHERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "/v1/messages": (MessagesBody, HELLO),
    "/v1/responses": (ResponseRequest, {"model": "tiny", "input": "Hello", "max_output_tokens": 1}),
    "/api/chat": (
        ChatBody,
        {"model": "tiny", "messages": HELLO["messages"], "options": {"num_predict": 1}},
    ),
    "/api/generate": (
        GenerateBody,
        {"model": "tiny", "prompt": "Hello", "options": {"num_predict": 1}},
    ),
}
BESIDE: dict[str, Any] = {
    "logit_bias": {"7": 1.5},
    "stop_token_ids": [5],
    "bad_words": ["no"],
    "allowed_token_ids": [1, 2],
    "min_tokens": 1,
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": True,
    "structured_outputs": {"choice": ["a"]},
    "chat_template_kwargs": {"style": "plain"},
    "thinking_token_budget": 3,
    "thinking_closing_text": "Enough.",
    "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
    "cache_salt": "mine",
    "cache_hint": "keep",
    "reuse": "chunk",
    "priority": 2,
}


@pytest.mark.parametrize("path", OTHERS)
def test_every_protocol_takes_the_fields_of_the_house(path: str) -> None:
    kind, body = OTHERS[path]
    assert set(BESIDE) == set(EXTRAS)
    asked = {"recent": {"window": 64}, "streaming": True, "recompute_fraction": 0.5}
    sent = json.dumps({**body, **BESIDE, **asked}).encode()
    chat = decode(sent, kind).chat()
    same = {"messages": HELLO["messages"], **BESIDE, **asked}
    wanted = decode(json.dumps(same).encode(), ChatRequest)
    for name in (*EXTRAS, *asked):
        assert getattr(chat, name) == getattr(wanted, name), name
    params = chat.sampling_params({}, max_tokens=1, logprobs=None, prompt_logprobs=None)
    assert set(params.asks) == {"keep/recent", "pattern/streaming"}
    assert chat.reuse_params() == wanted.reuse_params()


@pytest.mark.parametrize("path", OTHERS)
def test_every_protocol_refuses_a_wrong_ask_in_a_sentence(server: LiveServer, path: str) -> None:
    body = OTHERS[path][1]
    response = server.post(path, {**body, "recent": {"window": 0}})
    assert response.status_code == 400
    assert "window must be from 1 to" in response.text
    response = server.post(path, {**body, "all": True, "stream": False})
    assert response.status_code == 200, response.text


def test_a_text_between_two_others_may_ask_too() -> None:
    asked = decode(b'{"input_prefix": "a", "recent": {"window": 64}}', InfillBody).completion()
    params = asked.sampling_params({}, max_tokens=1, logprobs=None, prompt_logprobs=None)
    assert set(params.asks) == {"keep/recent"}


class ToyAsk(Ask, kw_only=True, frozen=True):
    most: int = 3

    def check_params(self, params: SamplingParams) -> None:
        if params.n > self.most:
            raise InvalidRequest(f"toy takes at most {self.most}, got n={params.n}.", "toy")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A technique of one file that nothing else has heard of."""
    modules = registry._modules
    monkeypatch.setattr(
        registry, "_modules", lambda seam: modules(seam) | ({"toy"} if seam == "search" else set())
    )

    @registry.register("search", "toy", exact=False)
    class Toy:
        """A toy."""

        name: ClassVar[str] = "toy"
        Ask: ClassVar[type[ToyAsk]] = ToyAsk

    yield
    del registry._techniques["search", "toy"]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
@pytest.mark.parametrize(("said", "most"), [(True, 3), ({"most": 5}, 5), ({}, 3)])
def test_a_technique_is_asked_for_as_its_own_file_says(kind: type, said: Any, most: int) -> None:
    body = next(iter(PATHS.values())) if kind is CompletionRequest else list(PATHS.values())[1]
    request = decode(json.dumps({**body, "n": 3, "toy": said}).encode(), kind)
    made = request.sampling_params({}, max_tokens=1, logprobs=None, prompt_logprobs=None)
    assert made.asks == {"search/toy": ToyAsk(most=most)}
    assert made == SamplingParams(n=3, max_tokens=1, toy=said)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"most": 2}, "toy takes at most 2, got n=3"),
        ({"most": "x"}, "toy.most is wrong: expected 'int', got 'str'"),
        ({"least": 1}, "toy.least is not a field that this server knows"),
        (5, "toy is wrong: expected 'bool | object"),
    ],
)
def test_its_fields_are_checked_as_others_are(said: Any, sentence: str) -> None:
    body = json.dumps({"prompt": "a", "n": 3, "toy": said}).encode()
    with pytest.raises(InvalidRequest) as caught:
        decode(body, CompletionRequest).sampling_params(
            {}, max_tokens=1, logprobs=None, prompt_logprobs=None
        )
    assert sentence in str(caught.value)
