"""Who is let in, for how long, and what happens to the work of those who leave."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import ROOT, LiveServer, wait_for

LONG = {"prompt": [5, 6, 7], "max_tokens": 8000, "ignore_eos": True}
"""A request that runs for many seconds."""


@contextlib.contextmanager
def running(server: LiveServer, count: int = 1, **fields) -> Iterator[list[threading.Thread]]:
    """So many long streams, read by clients that leave at the end of the block."""
    leave = threading.Event()

    def read() -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream(
                "POST",
                f"{server.url}/v1/completions",
                json={**LONG, "stream": True, **fields},
                timeout=60,
            ) as response,
        ):
            for _ in response.iter_lines():
                if leave.is_set():
                    return

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: server.metric("ockham_num_requests_running") >= count, 15)
        yield threads
    finally:
        leave.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def narrow(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    """A server with room for two sequences, one waiting place, and little patience."""
    directory = tmp_path_factory.mktemp("narrow")
    flags = (
        *("--max-num-seqs", "2", "--max-queue", "1", "--request-timeout", "3"),
        *("--max-body-bytes", "20000", "--sse-keep-alive", "0.2"),
        # The compiled kernels would be done before the patience is.
        *("--backend", "reference"),
    )
    with LiveServer(tiny, directory, *TINY_FLAGS, *flags) as live:
        yield live


def test_a_client_that_leaves_a_stream_frees_its_work(server):
    with running(server, 3):
        assert server.metric("ockham_num_requests_running") == 3
    server.wait_idle()


def test_a_client_that_leaves_is_counted_as_an_abort(server):
    before = server.metric("ockham_request_success_total", finished_reason="abort")
    with running(server, 1, n=2):
        pass
    server.wait_idle()
    assert server.metric("ockham_request_success_total", finished_reason="abort") == before + 2


def test_a_client_that_leaves_before_the_answer_frees_its_work(server):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=0.5)
    server.wait_idle()


def test_a_client_that_leaves_a_stream_of_several_prompts_frees_all_of_them(server):
    with running(server, 1, prompt=[[5, 6], [7, 8], [9]], n=2):
        wait_for(lambda: server.metric("ockham_num_requests_running") >= 6, 15)
    server.wait_idle()


def test_beyond_the_queue_the_answer_is_429_with_a_time_to_come_back(narrow):
    with running(narrow, 2), concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(narrow.post, "/v1/completions", LONG)
        wait_for(lambda: narrow.metric("ockham_num_requests_waiting") == 1, 5)
        response = narrow.post("/v1/completions", {"prompt": "a"})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
        assert waiting.result().status_code == 408
    narrow.wait_idle()


def test_a_response_that_waits_says_so_in_events_and_fails_in_its_words(narrow):
    """Codex waits for events only so long, and comments are none."""
    asked = {"input": "x", "stream": True, "max_output_tokens": 8000, "ignore_eos": True}
    with running(narrow, 2):
        text = narrow.post("/v1/responses", asked).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    kinds = [each["type"] for each in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "keepalive"]
    assert kinds[-2:] == ["error", "response.failed"]
    numbers = [each["sequence_number"] for each in events if each["type"] != "keepalive"]
    assert numbers == list(range(len(numbers)))
    assert "did not finish within 3 s" in events[-2]["message"]
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")


def test_ollamas_stream_that_waits_sends_objects_and_ends_with_the_error(narrow):
    """Its clients read each line as JSON."""
    messages = [{"role": "user", "content": "x"}]
    asked = {"model": narrow.model, "messages": messages, "options": {"num_predict": 8000}}
    with running(narrow, 2):
        text = narrow.post("/api/chat", asked).text
    *objects, last = map(json.loads, text.splitlines())
    assert objects[0]["message"] == {"role": "assistant", "content": ""}
    assert not any(each["done"] for each in objects)
    assert list(last) == ["error"]
    assert "did not finish within 3 s" in last["error"]


def test_a_request_that_takes_too_long_is_408_and_frees_its_work(narrow):
    """When exactly its time is up, is tested where the clock can be moved (test_job.py)."""
    begin_s = time.monotonic()
    with pytest.raises(openai.APIStatusError, match="did not finish within 3 s") as caught:
        narrow.openai().completions.create(model=narrow.model, extra_body=LONG, prompt=[5])
    assert caught.value.status_code == 408
    assert time.monotonic() - begin_s >= 3
    narrow.wait_idle()


def test_a_stream_that_takes_too_long_ends_with_an_error(narrow):
    chunks = narrow.openai().completions.create(
        model=narrow.model,
        prompt=[5],
        max_tokens=8000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    with pytest.raises(openai.APIError, match="did not finish"):
        list(chunks)
    narrow.wait_idle()


def test_a_body_that_is_too_large_is_413(narrow):
    response = narrow.post("/v1/completions", {"prompt": "a" * 30000})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_say_its_size_is_413_as_well(narrow):
    def parts() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(30):
            yield b"a" * 1000
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{narrow.url}/v1/completions", content=parts(), headers=headers)
    assert response.status_code == 413


def test_a_stream_that_waits_sends_comments(narrow):
    """Long before its patience is at an end, and again and again."""
    with running(narrow, 2):
        with httpx.stream(
            "POST",
            f"{narrow.url}/v1/completions",
            json={**LONG, "stream": True},
            timeout=10,
        ) as response:
            lines = [line for line in response.iter_lines() if line]
        comments = next(i for i, line in enumerate(lines) if not line.startswith(":"))
        assert comments >= 2
    narrow.wait_idle()


def test_a_reader_that_stops_reading_slows_nobody(server):
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=30
    ) as lazy:
        next(lazy.iter_raw())
        begin_s = time.monotonic()
        server.complete(prompt="a", max_tokens=20)
        assert time.monotonic() - begin_s < 10
    server.wait_idle()


def test_clients_that_never_read_do_not_keep_their_places(narrow):
    body = {**LONG, "stream": True, "logprobs": 20}  # more than the buffers between us hold
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(
                httpx.stream("POST", f"{narrow.url}/v1/completions", json=body, timeout=30)
            )
        assert narrow.post("/v1/completions", {"prompt": "a"}).status_code == 429
        wait_for(lambda: narrow.post("/v1/completions", {"prompt": "a"}).status_code == 200, 15)
    narrow.wait_idle()


def test_the_request_id_comes_back(server):
    response = server.get("/version", headers={"X-Request-Id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"


def test_a_request_without_an_id_gets_one(server):
    ids = {server.get("/version").headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2


def test_the_request_id_names_the_completion(server):
    response = server.post(
        "/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "abc"}
    )
    assert response.json()["id"] == "cmpl-abc"


def test_two_requests_with_one_id_are_both_served(server):
    async def ask() -> list[int]:
        async with httpx.AsyncClient(headers={"X-Request-Id": "same"}, timeout=30) as client:
            body = {"prompt": "a", "max_tokens": 20}
            posts = [client.post(f"{server.url}/v1/completions", json=body) for _ in range(4)]
            return [response.status_code for response in await asyncio.gather(*posts)]

    assert asyncio.run(ask()) == [200] * 4


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a b", "a_b"),
        ("a;b", "a_b"),
        ("a\tb", "a_b"),
        ("x" * 129, "x" * 128),
        ("é".encode().decode("latin-1"), "__"),
    ],
)
def test_a_strange_request_id_is_made_safe(server, given, shown):
    headers = {b"X-Request-Id": given.encode("latin-1")}
    response = server.get("/version", headers=headers)
    assert response.status_code == 200
    assert response.headers["x-request-id"] == shown


def test_an_empty_request_id_is_as_none(server):
    assert server.get("/version", headers={"X-Request-Id": ""}).headers["x-request-id"]


def chat(count: int, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "a"}] * count, "max_tokens": 1, **fields}


def calls(arguments: str) -> dict[str, object]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        (chat(4097), "--max-messages"),
        (chat(1, metadata={f"k{number}": "v" for number in range(60_000)}), "--max-json-items"),
        (chat(1, tools=[{}] * 100_001), "--max-json-items"),
        (chat(1, chat_template_kwargs={"a": nested(100)}), "--max-json-depth"),
        (chat(1, chat_template_kwargs={"a": [1] * 1_000_001}), "--max-json-values"),
        (calls("[" * 101 + "]" * 101), "--max-json-depth"),
        (calls("[" + "[]," * 100_000 + "[]]"), "--max-json-items"),
    ],
)
def test_the_parts_of_a_body_are_bounded_and_the_flag_is_named(server, body, flag):
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert flag in response.json()["error"]["message"]


def test_a_flag_moves_its_bound(tiny, tmp_path):
    flags = ("--max-messages", "2", "--max-json-depth", "8")
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, *flags) as live:
        assert live.post("/v1/chat/completions", chat(2)).status_code == 200
        assert live.post("/v1/chat/completions", chat(3)).status_code == 400
        deep = chat(1, chat_template_kwargs={"a": nested(8)})
        assert "8 deep" in live.post("/v1/chat/completions", deep).json()["error"]["message"]


def test_names_of_megabytes_are_cut_in_the_answer(server):
    for body in (
        b'{"%s": 1}' % (b"k" * 4_000_000),
        b'{"prompt": "a", "model": "%s"}' % (b"m" * 10**6),
    ):
        response = server.post_bytes("/v1/completions", body)
        assert response.status_code in (400, 404)
        assert len(response.content) < 2000


def test_a_prompt_has_so_many_chunks(tiny, tmp_path):
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, "--reuse", "prefix,chunk") as live:
        body = {"prompt": "ab" * 5000, "reuse": "chunk", "chunk_separator": "a", "max_tokens": 1}
        response = live.post("/v1/completions", body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "chunk_separator"


def test_the_words_that_are_forbidden_are_bounded(server):
    for words in (["x"] * 1025, ["x" * 100] * 1000):
        response = server.post("/v1/completions", {"prompt": "a", "bad_words": words})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "bad_words"


def test_a_schema_as_text_is_measured_before_it_is_parsed(server):
    text = "[" * 300_000  # no JSON: whoever parses it says so
    response = server.post("/v1/completions", {"prompt": "a", "structured_outputs": {"json": text}})
    assert response.status_code == 400
    assert "262144" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-json-depth", "100000"),
        ("--max-connections", "0"),
        ("--max-bodies-bytes", "-1"),
        ("--header-timeout", "0"),
        ("--body-timeout", "inf"),
        ("--idle-timeout", "nan"),
        ("--max-connections", "1000000000"),
    ],
)
def test_a_bound_that_cannot_be_is_a_sentence(tiny, flags):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from ockham.cli.main import main; main()"),
            "serve",
            str(tiny),
            "--port",
            "0",
            *flags,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert flags[0][2:].replace("-", "_") in done.stderr


def test_many_large_requests_and_answers_are_right_by_whichever_thread(server):
    """What is small is worked on in the event loop, what is large in threads: with one result."""
    text = "The quick brown fox. " * 150
    whole = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": whole}).json()["prompt"].endswith(text)
    body = {"prompt": whole, "max_tokens": 4, "temperature": 0, "logprobs": 5, "echo": True}
    answers = [server.complete(**{**body, "prompt": each})["choices"][0] for each in (whole, text)]
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["logprobs"] == answers[1]["logprobs"]
    streamed = server.post("/v1/completions", {**body, "stream": True}).text
    parts = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    chosen = [part["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in chosen) == answers[0]["text"]
    tokens = [token for choice in chosen for token in choice["logprobs"]["tokens"]]
    assert tokens == answers[0]["logprobs"]["tokens"]
