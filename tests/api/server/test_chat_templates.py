"""What a checkpoint's chat template does concerns the requests that need it, and nobody else."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.live import LiveServer

CHAT = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
ODD = """{% if 'loop' in messages[0].content %}\
{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}\
{% if 'wide' in messages[0].content %}{{ 'x'.center(3000000000) }}{% endif %}\
{% if 'deep' in messages[0].content %}{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}{% endif %}\
{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"""


def ask(live: LiveServer, text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return live.post("/v1/chat/completions", {"messages": messages, "max_tokens": 3, **fields})


def copy(tiny: Path, directory: Path, template: str) -> Path:
    shutil.copytree(tiny, directory)
    (directory / "chat_template.jinja").write_text(template)
    return directory


@pytest.fixture(scope="module")
def odd(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    root = tmp_path_factory.mktemp("odd")
    with LiveServer(copy(tiny, root / "m", ODD), root, "--kv-cache-memory-bytes", "4M") as live:
        yield live


@pytest.mark.parametrize(
    ("text", "limit"),
    [("loop", "CPU time"), ("wide", "memory"), ("deep", "calls itself without end")],
)
def test_a_chat_whose_template_exceeds_a_limit_is_400_and_others_go_on(
    odd: LiveServer, text: str, limit: str
) -> None:
    found: list[Any] = []
    slow = threading.Thread(target=lambda: found.append(ask(odd, text)))
    slow.start()
    while slow.is_alive():
        assert odd.get("/health").status_code == 200
        assert ask(odd, "hello").status_code == 200
    error = found[0].json()["error"]
    assert found[0].status_code == 400, error
    assert error["message"].startswith("The checkpoint's chat template")
    assert limit in error["message"]
    assert "--" not in error["message"]


def test_null_content_beside_tool_calls_is_answered(odd: LiveServer) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ]
    answer = odd.post("/tokenize", {"messages": messages})
    prompt = odd.post("/detokenize", {"tokens": answer.json()["tokens"]}).json()["prompt"]
    assert prompt == "user: hello\nassistant: \ntool: done\n"


def test_large_bodies_leave_the_event_loop_free(odd: LiveServer) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[[],[]]"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call] * 250}
    messages = [{"role": "user", "content": "hello"}, calling] * 20
    answers: list[Any] = []
    body = {"messages": messages}
    large = threading.Thread(target=lambda: answers.append(odd.post("/tokenize", body)))
    large.start()
    while large.is_alive():
        assert odd.get("/health").status_code == 200
    assert answers[0].status_code == 200


def test_more_variables_than_any_template_has_are_refused(odd: LiveServer) -> None:
    many = {f"k{i}": 1 for i in range(1001)}
    response = ask(odd, "hello", chat_template_kwargs=many)
    assert response.status_code == 400
    assert "chat_template_kwargs has 1001 entries" in response.json()["error"]["message"]


def test_the_processes_that_render_end_with_the_server(tiny: Path, tmp_path: Path) -> None:
    live = LiveServer(tiny, tmp_path, "--kv-cache-memory-bytes", "4M")
    try:
        assert ask(live, "hello").status_code == 200
        children = psutil.Process(live.process.pid).children()
        live.process.kill()
        live.process.wait()
        assert len(children) == 2, "an engine, and what renders chats"
        assert not psutil.wait_procs(children, timeout=20)[1]
    finally:
        live.process.kill()


def test_a_broken_template_is_told_once_and_another_may_be_given(
    tiny: Path, tmp_path: Path
) -> None:
    model = copy(tiny, tmp_path / "m", "{# #}\n{% for %}")
    flags = ("--kv-cache-memory-bytes", "4M")
    with LiveServer(model, tmp_path, *flags) as live:
        errors = [ask(live, "hello").json()["error"]["message"] for _ in range(3)]
        assert live.complete(prompt="hello")["choices"]
        assert live.log.count("is not valid Jinja (line 2:") == 1
        assert "give another template with --chat-template FILE" in live.log
    assert len(set(errors)) == 1
    assert errors[0].startswith("The checkpoint's chat template is not valid Jinja (line 2:")
    assert "--" not in errors[0]
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with LiveServer(model, tmp_path, *flags, "--chat-template", str(other)) as live:
        assert ask(live, "hello").status_code == 200
        assert live.get("/tokenizer_info").json()["chat_template"] == other.read_text()


def test_a_role_that_the_template_leaves_out_is_refused(tiny: Path, tmp_path: Path) -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    model = copy(tiny, tmp_path / "m", template)
    with LiveServer(model, tmp_path, "--kv-cache-memory-bytes", "4M") as live:
        assert "does not show the content of system messages" in live.log
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        response = live.post("/v1/chat/completions", {"messages": talk})
        assert response.status_code == 400
        assert "messages[0]" in response.json()["error"]["message"]


def test_chats_have_sampling_defaults_that_the_list_of_models_tells(
    server: LiveServer, tiny: Path, tmp_path: Path
) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert model["chat_sampling_defaults"] == CHAT
    assert model["sampling_defaults"] == {}
    assert model["eos_token_ids"]

    def said(live: LiveServer, **fields: Any) -> str:
        answer = ask(live, "hello", seed=5, max_tokens=20, ignore_eos=True, **fields)
        return str(answer.json()["choices"][0]["message"]["content"])

    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert said(server) == said(server, **CHAT)
    assert said(server) != said(server, **neutral)
    flags = ("--kv-cache-memory-bytes", "4M", "--generation-config", "vllm")
    with LiveServer(tiny, tmp_path, *flags) as live:
        (model,) = live.get("/v1/models").json()["data"]
        assert model["chat_sampling_defaults"] == {}
        assert said(live) == said(live, **neutral)
