"""What a request sees of its own course: how its prompt is read, its times, its bill, its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ockham.api.server.timings import Course
from ockham.core.ledger import Ledger
from ockham.core.outputs import CompletionOutput, RequestOutput
from tests.helpers.live import LiveServer, wait_for

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WORDS = 3000  # tokens of a prompt that takes several steps


def prompt(seed: int) -> list[int]:
    return [(seed + 7 * place) % 200 + 10 for place in range(WORDS)]


def chunks(server: LiveServer, path: str, **body: Any) -> list[dict[str, Any]]:
    asked = {"stream": True, "max_tokens": 4, "ignore_eos": True, "temperature": 0, **body}
    response = server.post(path, asked)
    assert response.status_code == 200, response.text
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def text_of(told: list[dict[str, Any]]) -> str:
    return "".join(each["choices"][0]["text"] for each in told)


def test_a_stream_tells_how_far_its_prompt_is_read_where_that_is_asked_for(server):
    told = chunks(server, COMPLETIONS, prompt=prompt(1), return_progress=True)
    progress = [each["prompt_progress"] for each in told if "prompt_progress" in each]
    assert len(progress) > 1
    assert {each["total"] for each in progress} == {WORDS}
    assert {each["cache"] for each in progress} == {0}
    steps = [each["processed"] for each in progress]
    assert steps == sorted(set(steps))
    assert steps[-1] == WORDS
    times = [each["time_ms"] for each in progress]
    assert times == sorted(times)
    first_text = next(i for i, each in enumerate(told) if each["choices"][0]["text"])
    assert all("prompt_progress" in each for each in told[:first_text])

    again = chunks(server, COMPLETIONS, prompt=prompt(1), return_progress=True)
    (last,) = [each["prompt_progress"] for each in again if "prompt_progress" in each]
    assert last["cache"] > WORDS // 2
    assert last["processed"] == WORDS
    plain = chunks(server, COMPLETIONS, prompt=prompt(1))
    assert text_of(told) == text_of(again) == text_of(plain), "the telling changes no token"
    assert not any("prompt_progress" in each for each in plain)


def test_a_chat_tells_its_progress_before_its_first_word(server):
    said = [{"role": "user", "content": "word " * 800}]
    told = chunks(server, CHAT, messages=said, return_progress=True)
    assert told[0]["prompt_progress"]["total"] > 800
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert told[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("path", "said"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
def test_timings_are_those_of_the_bill(server, path, said):
    text: Any = "some words " * 50
    given = [{"role": "user", "content": text}] if said == "messages" else text
    body = {said: given, "max_tokens": 6, "ignore_eos": True, "return_timings": True}
    answer = server.post(path, body).json()
    timings, bill = answer["timings"], answer["usage"]["ockham"]
    assert timings["cache_n"] == bill["prompt_tokens_reused"]
    assert timings["prompt_n"] == bill["prompt_tokens_computed"]
    assert timings["prompt_ms"] == pytest.approx(bill["prefill_s"] * 1000, abs=0.001)
    assert timings["predicted_n"] == 6
    assert timings["predicted_ms"] == pytest.approx(bill["decode_s"] * 1000, abs=0.001)
    each_ms = timings["predicted_ms"] / 5
    assert timings["predicted_per_token_ms"] == pytest.approx(each_ms, abs=0.001)
    assert timings["predicted_per_second"] == pytest.approx(1000 / each_ms, rel=0.01)
    assert "timings" not in server.post(path, {**body, "return_timings": None}).json()


def test_each_part_of_a_stream_has_timings_where_they_are_asked_for(server):
    told = chunks(server, COMPLETIONS, prompt=prompt(2), timings_per_token=True)
    seen = [each["timings"] for each in told]
    assert [each["predicted_n"] for each in seen] == sorted(each["predicted_n"] for each in seen)
    assert seen[-1]["predicted_n"] == 4
    assert {each["prompt_n"] + each["cache_n"] for each in seen} == {WORDS}
    assert not any("prompt_progress" in each for each in told)


def test_a_stream_has_its_bill_where_it_is_asked_for(server):
    told = chunks(server, COMPLETIONS, prompt="a b c", return_ledger=True)
    assert told[-1]["usage"]["ockham"]["generated_tokens"] == 4
    assert told[-1]["choices"] == []


def test_drafts_are_in_the_timings() -> None:
    course, ledger = Course(), Ledger(generated_tokens=9, decode_s=2.0)
    ledger.save("prefix", 100)
    ledger.save("copying", 5)
    ledger.waste("copying", 2)
    ledger.waste("cascade", 1)
    choice = CompletionOutput(0, "", list(range(9)), finish_reason="stop")
    course.add(RequestOutput("a", None, [1], [choice], finished=True, ledger=ledger))
    timings = course.timings(("copying", "cascade"))
    assert (timings.draft_n, timings.draft_n_accepted) == (8, 5)
    assert timings.predicted_per_second == 4.0
    assert course.timings(()).draft_n is msgspec.UNSET
    assert (
        "5 of 8 drafted accepted, ended by stop"
        in course.figures(1, ("copying", "cascade")).in_words()
    )


SEEN = {"return_progress": True, "return_timings": True, "return_ledger": True}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/responses", "/v1/messages"])
def test_other_protocols_show_the_same(server, path, stream):
    text = f"{path} {stream} " + "word " * 40
    said = [{"role": "user", "content": text}]
    body = {"model": "tiny", "stream": stream}
    if path == "/v1/responses":
        body |= {"input": text, "max_output_tokens": 8}
    elif path == "/v1/messages":
        body |= {"messages": said, "max_tokens": 8}
    else:
        body |= {"messages": said, "options": {"num_predict": 8}}
    answer = server.post(path, {**body, **SEEN}).text
    lines = [line.removeprefix("data: ") for line in answer.splitlines()]
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    # The Responses API has its whole answer in the last event.
    objects = [each.get("response", each) if "ockham" not in each else each for each in objects]
    (report,) = [each["ockham"] for each in objects if "ockham" in each]
    assert report["timings"]["predicted_n"] == report["ledger"]["generated_tokens"]
    told = [each["prompt_progress"] for each in objects if "prompt_progress" in each]
    assert bool(told) == stream
    assert all(each["processed"] == each["total"] for each in told)
    plain = server.post(path, body).text
    assert "ockham" not in plain
    assert "prompt_progress" not in plain


def test_several_choices_tell_the_progress_of_their_one_prompt(server):
    told = chunks(server, COMPLETIONS, prompt=prompt(3), return_progress=True, n=2)
    assert [each["prompt_progress"]["processed"] for each in told if "prompt_progress" in each][
        -1
    ] == WORDS


def test_the_log_says_what_a_request_took_where_that_is_asked_for(tiny: Path, tmp_path: Path):
    flags = ("--kv-cache-memory-bytes", "16M", "--no-access-log", "--log-requests")
    with LiveServer(tiny, tmp_path, *flags) as live:
        body = {"prompt": "a b c", "max_tokens": 5, "ignore_eos": True}
        headers = {"X-Request-Id": "mine"}
        live.post(COMPLETIONS, body, headers=headers)
        live.post(CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
        live.get("/health")
        wait_for(lambda: re.search(r"GET /health 200 \d+ ms \w+$", live.log, re.MULTILINE), 10.0)
        (line,) = [line for line in live.log.splitlines() if " mine:" in line]
        assert re.search(
            r"POST /v1/completions 200 \d+ ms mine: \d+ prompt tokens \(0 cached\), 5 generated, "
            r"first after \d+ ms, [\d.]+ tokens/s, \d+ of \d+ drafted accepted, ended by length$",
            line,
        ), line
        assert "POST /v1/chat/completions 200" in live.log
