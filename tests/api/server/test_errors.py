"""Every wrong request gets its status and OpenAI's error object, and harms nobody else."""

from __future__ import annotations

import concurrent.futures

import httpx
import openai
import pytest

from tests.helpers.live import LiveServer

COMPLETIONS = "/v1/completions"


def refused(response: httpx.Response, status: int) -> dict[str, str | None]:
    """The error object of an answer with this status; every field of OpenAI's is there."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return dict(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "many"),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 2**40),
        ("n", 0),
        ("n", 10**6),
        ("n", 65),
        ("temperature", -0.1),
        ("temperature", 1e9),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", 2),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 1000),
        ("stop", ["x"] * 65),
        ("stop", [""]),
        ("stop", ["x" * 5000]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [4096]),
        ("stop_token_ids", list(range(20000))),
        ("bad_words", ["x"] * 20000),
        ("logit_bias", {"5": 200}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"99999": 1}),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [10**9]),
        ("seed", 2**70),
        ("seed", "x"),
        ("best_of", 0),
        ("verbosity", "high"),
        ("echo", "yes"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", ["a", [1]]),
        ("prompt", [-5]),
        ("prompt", [4096]),
        ("prompt", [2**63]),
        ("prompt", 7),
        ("prompt", None),
        ("prompt", {"text": "a"}),
        ("prompt", [5] * 8193),
        ("min_tokens", 9),
        ("top_n_sigma", 1),
        ("priority", 2**31),
        ("use_beam_search", True),
        ("tools", [{"type": "function"}]),
    ],
)
def test_a_wrong_field_is_refused_by_name(server, field, value):
    body = {"prompt": "a", "max_tokens": 8, field: value}
    error = refused(server.post(COMPLETIONS, body), 400)
    assert error["type"] == "invalid_request_error"
    assert field in f"{error['param']} {error['message']}"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b'{"prompt": "a"} x', b'"\xff"', b"[" * 50000, b"\x00"]
)
def test_what_is_no_json_object_is_refused(server, body):
    refused(server.post_bytes(COMPLETIONS, body), 400)


def test_half_a_character_in_a_prompt_is_refused(server):
    refused(server.post_bytes(COMPLETIONS, b'{"prompt": "a\\ud800b"}'), 400)


def test_only_json_is_taken(server):
    response = httpx.post(f"{server.url}{COMPLETIONS}", content=b'{"prompt": "a"}')
    assert refused(response, 415)["code"] == "unsupported_media_type"


def test_more_tokens_than_the_context_has_room_for_are_refused(server):
    error = refused(server.post(COMPLETIONS, {"prompt": [5] * 10, "max_tokens": 100_000}), 400)
    assert error["param"] == "max_tokens"
    assert "the prompt has 10" in str(error["message"])


def test_an_unknown_path_is_404(server):
    refused(server.get("/v1/images"), 404)


def test_a_wrong_method_is_405_and_names_the_right_one(server):
    response = server.get(COMPLETIONS)
    refused(response, 405)
    assert response.headers["allow"] == "POST"


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_known_model_can_be_looked_up(client):
    assert client.models.retrieve("tiny").id == "tiny"
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_an_unknown_model_cannot_be_looked_up(client):
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_stream_that_is_refused_has_the_status_of_its_error(client):
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=[99999], stream=True)


def test_more_completions_than_ever_fit_are_refused_at_once(server):
    body = {"prompt": ["a"] * 1000, "n": 64, "max_tokens": 1}
    assert "Split it" in refused(server.post(COMPLETIONS, body), 400)["message"]


def test_more_prompts_than_allowed_are_refused(server):
    refused(server.post(COMPLETIONS, {"prompt": ["a"] * 1025}), 400)


def test_a_prompt_that_no_tokenization_could_fit_is_refused_before_it(server):
    error = refused(server.post(COMPLETIONS, {"prompt": "a " * 1_500_000}), 400)
    assert "characters" in str(error["message"])


def test_a_request_that_masks_every_token_is_refused(server):
    word = server.post("/detokenize", {"tokens": [300]}).json()["prompt"]
    body = {"prompt": "a", "allowed_token_ids": [300], "bad_words": [word]}
    error = refused(server.post(COMPLETIONS, body), 400)
    assert "No token could be chosen" in str(error["message"])


def test_wrong_requests_among_good_ones_harm_none(server: LiveServer):
    expected = server.complete(prompt="def f(", max_tokens=10)["choices"]
    good = {"prompt": "def f(", "max_tokens": 10, "temperature": 0}
    wrong = [{"prompt": [99999]}, {"prompt": "a", "n": 0}, {"nonsense": 1}, {"prompt": []}]
    bodies = [good if i % 2 else wrong[i // 2 % len(wrong)] for i in range(24)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: server.post(COMPLETIONS, body), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        if body is good:
            assert answer.json()["choices"] == expected
        else:
            refused(answer, 400)


def test_one_wrong_prompt_of_a_list_refuses_the_list_and_frees_the_rest(server):
    body = {"prompt": [[5, 6], [99999], [7, 8]], "max_tokens": 4000, "ignore_eos": True}
    refused(server.post(COMPLETIONS, body), 400)
    server.wait_idle()


def test_a_chat_of_no_tokens_is_refused(server):
    body = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 0}
    refused(server.post("/v1/chat/completions", body), 400)


def test_a_list_of_more_tokens_than_the_context_is_refused_by_its_length(server):
    error = refused(server.post(COMPLETIONS, {"prompt": [5] * 1_000_000}), 400)
    assert "1000000 tokens" in str(error["message"])


def test_a_prompt_that_is_too_long_has_the_code_by_which_agents_shorten_theirs(server):
    """Refused by its characters, by its tokens before they are looked at, and by the engine."""
    for prompt in ("a " * 1_500_000, [5] * 8193, [5] * 8192):
        error = refused(server.post(COMPLETIONS, {"prompt": prompt}), 400)
        assert error["code"] == "context_length_exceeded"
        assert str(error["message"]).startswith("the prompt is too long: ")
    chat = {"messages": [{"role": "user", "content": "a b " * 8000}]}
    error = refused(server.post("/v1/chat/completions", chat), 400)
    assert error["code"] == "context_length_exceeded"
