"""`/v1/chat/completions`, as the official client sees it."""

from __future__ import annotations

import json

import pytest

MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Say hello."},
]
GREEDY = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}


def test_an_answer_is_a_message_of_the_assistant(client):
    answer = client.chat.completions.create(**GREEDY)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.object == "chat.completion"


def test_the_prompt_is_what_the_chat_template_makes_of_the_messages(server):
    tokens = server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
    chat = server.post("/v1/chat/completions", GREEDY).json()
    plain = server.complete(prompt=tokens, max_tokens=12)
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert chat["usage"]["prompt_tokens"] == len(tokens)


def test_a_stream_begins_with_the_role_and_adds_up_to_the_answer(client):
    whole = client.chat.completions.create(**GREEDY).choices[0]
    chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_each_choice_of_a_stream_has_its_own_text(client):
    asked = {**GREEDY, "n": 3, "temperature": 1, "seed": 4}
    whole = client.chat.completions.create(**asked)
    texts = [""] * 3
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_usage_is_the_last_chunk_when_asked(client):
    chunks = list(
        client.chat.completions.create(
            **GREEDY, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def test_logprobs_name_each_token_and_the_likeliest_others(client):
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=4)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 4
        # Greedy at temperature 0: the chosen token is the likeliest.
        assert entry.top_logprobs[0].token == entry.token


def test_logprobs_without_alternatives_have_none(client):
    answer = client.chat.completions.create(**GREEDY, logprobs=True)
    assert all(not entry.top_logprobs for entry in answer.choices[0].logprobs.content)


def test_logprobs_of_a_stream_are_those_of_the_whole(client):
    asked = {**GREEDY, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [e.token for e in streamed] == [e.token for e in whole]


def test_max_completion_tokens_is_the_new_name_of_max_tokens(client):
    asked = {k: v for k, v in GREEDY.items() if k != "max_tokens"}
    answer = client.chat.completions.create(
        **asked, max_completion_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 3


def test_content_may_be_a_list_of_text_parts(client):
    def ask(content):
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(**{**GREEDY, "messages": messages}).usage

    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert ask(parts).prompt_tokens == ask("one\ntwo").prompt_tokens


def test_an_answer_can_be_sent_back_as_it_came(client):
    answer = client.chat.completions.create(**GREEDY).choices[0].message
    messages = [*MESSAGES, answer.model_dump(), {"role": "user", "content": "Again."}]
    assert client.chat.completions.create(**{**GREEDY, "messages": messages}).choices


def test_a_developer_speaks_as_the_system(server):
    def count(role):
        return server.post("/tokenize", {"messages": [{"role": role, "content": "x"}]}).json()

    assert count("developer") == count("system")


def test_the_generation_prompt_can_be_left_out(server):
    def count(**fields):
        return server.post("/tokenize", {"messages": MESSAGES, **fields}).json()["count"]

    assert count(add_generation_prompt=False) < count()


def test_the_fields_of_openai_that_mean_nothing_here_are_accepted(client):
    answer = client.chat.completions.create(
        **GREEDY,
        user="someone",
        store=False,
        metadata={"key": "value"},
        service_tier="auto",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        tool_choice="none",
        tools=[],
        modalities=["text"],
        prompt_cache_key="k",
        safety_identifier="s",
        reasoning_effort="none",
        verbosity="medium",
    )
    assert answer.service_tier == "default"


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_schema"}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "f g"}}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"service_tier": "priority"},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"reasoning_effort": "endless"},
        {"web_search_options": {}},
        {"prediction": {"type": "content", "content": "x"}},
        {"functions": [{"name": "f"}]},
        {"top_logprobs": 2},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template": "{{ 1 }}"},
        {"max_completion_tokens": 3},
        {"stream_options": {"include_usage": True}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_cannot_be_done_is_refused_by_name(server, field):
    response = server.post("/v1/chat/completions", {**GREEDY, **field})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert next(iter(field)) in f"{error['message']} {error['param']}"


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "role"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
        ([{"role": "user", "content": "x", "mood": "bad"}], "mood"),
        ([{"content": "x"}], "role"),
        ("hello", "messages"),
    ],
)
def test_malformed_messages_are_refused(server, messages, word):
    response = server.post("/v1/chat/completions", {**GREEDY, "messages": messages})
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]


def test_an_answer_goes_on_from_the_last_message(server):
    """The prompt is that of a template's answer, begun: as a completion of the same text."""
    asked = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 6}
    prompt = server.post("/apply-template", asked).json()["prompt"]
    begun = {"role": "assistant", "content": "Once upon"}
    chat = {**asked, "messages": [*asked["messages"], begun], "continue_final_message": True}
    answer = server.post("/v1/chat/completions", chat).json()
    whole = server.complete(prompt=prompt + "Once upon", max_tokens=6, add_special_tokens=False)
    assert answer["choices"][0]["message"]["content"] == whole["choices"][0]["text"]
    assert answer["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    parts = {
        **begun,
        "content": [{"type": "text", "text": "Once"}, {"type": "text", "text": " upon"}],
    }
    chat = {**chat, "messages": [*asked["messages"], parts], "add_generation_prompt": False}
    again = server.post("/v1/chat/completions", chat).json()
    assert again["choices"] == answer["choices"]
    assert server.post("/apply-template", chat).json()["prompt"] == f"{prompt}Once upon"


def test_nothing_goes_on_from_what_is_no_text_of_the_assistants(server):
    user = {"role": "user", "content": "x"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"continue_final_message": True, "max_tokens": 3}
    for messages, more in (
        ([user], {}),
        ([user, {"role": "assistant", "content": ""}], {}),
        ([user, {"role": "assistant", "content": None, "tool_calls": [call]}], {}),
        ([user, {"role": "assistant", "content": "a"}], {"add_generation_prompt": True}),
    ):
        body = {**asked, "messages": messages, **more}
        response = server.post("/v1/chat/completions", body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "continue_final_message"


def test_an_answer_begins_with_the_tokens_that_are_given(server):
    asked = {"messages": [{"role": "user", "content": "Go on from a token."}], "max_tokens": 12}
    asked |= {"temperature": 0, "return_token_ids": True, "logprobs": True, "top_logprobs": 2}
    path = "/v1/chat/completions"
    first = server.post(path, asked).json()["choices"][0]
    told = first["logprobs"]["content"]
    assert [each["token_id"] for each in told] == first["token_ids"]
    tokens = first["token_ids"][:5]
    answer = server.post(path, {**asked, "prefix_token_ids": tokens, "max_tokens": 7}).json()
    again = answer["choices"][0]
    assert tokens + again["token_ids"] == first["token_ids"]
    assert again["message"]["content"] == first["message"]["content"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] == 1
    streamed = server.post(path, {**asked, "prefix_token_ids": tokens, "stream": True}).text
    assert server.post(path, {**asked, "prefix_token_ids": [10**6]}).status_code == 400
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    said = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(said).startswith(first["message"]["content"])


@pytest.mark.parametrize(
    "beside",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"choice": ["a"]}}],
)
def test_given_tokens_do_not_go_together_with_a_grammar(server, beside):
    asked = {"messages": [{"role": "user", "content": "x"}], "prefix_token_ids": [5], **beside}
    answer = server.post("/v1/chat/completions", asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prefix_token_ids"
