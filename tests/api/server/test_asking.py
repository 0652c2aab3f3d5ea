"""Techniques are asked for by fields of their own, which are checked as every other field is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from ockham.api.server.errors import decode
from ockham.api.server.protocol import ChatRequest, CompletionRequest
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
