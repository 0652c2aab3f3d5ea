"""Workloads are the same for the same seed, share what they say they share, and survive a file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.lab.workloads import (
    Request,
    make_workload,
    read_requests,
    workloads,
    write_requests,
)
from ockham.lab.workloads.prompts import token_prompts
from ockham.text.tokenizer import load_tokenizer

LAB = Path(__file__).parents[3] / "ockham/model/lab"
ENGLISH = ("agents-english", "chat-english", "documents-english", "edit-english")
NAMES = (
    "agents",
    "agents-english",
    "batch",
    "chat",
    "chat-english",
    "documents",
    "documents-english",
    "edit",
    "edit-english",
    "long",
    "samples",
    "typing",
)


def test_every_workload_of_the_issue_is_there() -> None:
    assert tuple(sorted(workloads())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_the_requests_and_a_file_keeps_them(name: str, tmp_path: Path) -> None:
    requests = make_workload(name).requests(3)
    assert requests == make_workload(name).requests(3)
    assert requests != make_workload(name).requests(4)
    path = tmp_path / "requests.jsonl"
    assert write_requests(path, requests) == len(requests) > 1
    assert read_requests(path) == requests


def test_chats_begin_alike_and_go_on() -> None:
    requests = make_workload("chat", {"sessions": 3, "turns": 2}).requests(0)
    firsts = [request for request in requests if request.after is None]
    assert len(firsts) == 3
    assert len({request.messages[0]["content"] for request in firsts if request.messages}) == 1
    assert [request.after for request in requests[:2]] == [None, "chat-0-0"]


def test_prompts_go_on_with_recorded_answers() -> None:
    tokenizer = load_tokenizer(EngineConfig(), LAB)
    requests = make_workload("chat", {"sessions": 1, "turns": 3}).requests(0)
    texts = [tokenizer.decode(ids, False) for _, ids in token_prompts(requests, tokenizer)]
    for request, text, later in zip(requests, texts, texts[1:], strict=False):
        assert later.startswith(text)
        assert request.answer is not None
        assert f"{request.answer}<|im_end|>" in later
    ids = [Request(id="a", prompt_token_ids=[5, 6], max_tokens=1)]
    assert [found for _, found in token_prompts(ids, None)] == [[5, 6]]
    with pytest.raises(ConfigError, match="is text, and the model has no tokenizer"):
        list(token_prompts(requests, None))


def test_documents_return_in_another_order() -> None:
    texts = [r.messages[0]["content"] for r in make_workload("documents").requests(0) if r.messages]
    documents = [text.split("\n\n")[:-1] for text in texts]
    assert all(len(set(found)) == 4 for found in documents)
    again = [document for found in documents for document in found]
    assert len(set(again)) < len(again) / 4
    places = {document: set() for document in again}  # type: dict[str, set[int]]
    for found in documents:
        for place, document in enumerate(found):
            places[document].add(place)
    assert max(map(len, places.values())) == 4


@pytest.mark.parametrize("name", ENGLISH)
def test_recorded_english_answers_come_from_what_the_model_is_given(name: str) -> None:
    given: dict[str, str] = {}
    quoted = 0
    requests = make_workload(name).requests(0)
    for request in requests:
        told = given.get(request.after or "", "")
        told += "".join(message["content"] for message in request.messages or ())
        assert request.answer is not None
        given[request.id] = f"{told}\n{request.answer}"
        said = request.answer.removeprefix("The manual says: ")
        if name == "agents-english":
            call = json.loads(request.answer)
            (said,) = call["arguments"].values()
        words = said.split()
        quoted += sum(word in told for word in words) >= 0.9 * len(words)
    assert quoted >= 0.9 * len(requests)


def test_english_chats_are_about_one_manual() -> None:
    requests = make_workload("chat-english", {"sessions": 3, "turns": 2}).requests(0)
    systems = {r.messages[0]["content"] for r in requests if r.after is None and r.messages}
    assert len(systems) == 1
    (system,) = systems
    for request in requests:
        assert request.answer is not None
        assert request.answer.removeprefix("The manual says: ")[:40] in system
        word = (request.messages or [])[-1]["content"].rstrip("?").rpartition(" ")[2]
        assert word in request.answer


def test_english_documents_return_in_another_order() -> None:
    texts = [
        r.messages[0]["content"]
        for r in make_workload("documents-english").requests(0)
        if r.messages
    ]
    documents = [text.split("\n\n")[:-1] for text in texts]
    assert all(len(set(found)) == 4 for found in documents)
    again = [document for found in documents for document in found]
    assert len(set(again)) < len(again) / 4


def test_an_english_edit_is_mostly_a_copy() -> None:
    for request in make_workload("edit-english").requests(0):
        (message,) = request.messages or []
        asked = message["content"]
        assert request.answer is not None
        assert request.answer not in asked
        words = request.answer.split()
        assert sum(word in asked for word in words) >= 0.9 * len(words)
        assert len(words) > 60


def test_an_offline_batch_has_few_prefixes() -> None:
    prompts = [r.prompt or "" for r in make_workload("batch", {"prefixes": 3}).requests(0)]
    assert len(prompts) == 2000
    assert len({prompt.split("\n\nQuestion")[0] for prompt in prompts}) == 3


def test_typing_mostly_appends_and_sometimes_changes_what_stands_above() -> None:
    requests = make_workload("typing", {"sessions": 1, "pauses": 20}).requests(0)
    prompts = [request.prompt or "" for request in requests]
    changed = [
        number
        for number, (before, after) in enumerate(itertools.pairwise(prompts), 1)
        if not after.startswith(before[: before.rindex("\n\n")])
    ]
    assert changed == [4, 9, 14, 19]
    assert all(r.arrival_s > 0 and r.after for r in requests[1:])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chats", {}, "there is no workload 'chats'; there are .*chat"),
        ("chat", {"turn": 2}, "has no setting 'turn'; it has sessions, turns"),
        ("chat", {"turns": 0}, "turns of the workload 'chat' must be at least 1, got 0"),
    ],
)
def test_what_is_unknown_is_refused(name: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_workload(name, settings)


def test_a_trace_shares_the_blocks_whose_hashes_are_equal(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 0, "input_length": 1024, "output_length": 3, "hash_ids": [7, 8]},
        {"timestamp": 1500, "input_length": 700, "output_length": 4, "hash_ids": [7, 9]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two = read_requests(path, vocabulary=50)
    assert (one.arrival_s, two.arrival_s) == (0.0, 1.5)
    assert (one.max_tokens, two.max_tokens) == (3, 4)
    first, second = np.array(one.prompt_token_ids), np.array(two.prompt_token_ids)
    assert (len(first), len(second)) == (1024, 700)
    assert (first[:512] == second[:512]).all()
    assert (first[512:700] != second[512:]).any()
    assert first.min() >= 0
    assert first.max() < 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: must be a JSON object"),
        ('{"id": "b", "prompt": "x"}', "line 2: .*max_tokens"),
        ('{"id": "b", "max_tokens": 1}', "line 2: request 'b' must have one of"),
        ('{"id": "b", "prompt": "", "max_tokens": 1}', "line 2: request 'b' asks nothing"),
        ('{"id": "b", "prompt": "x", "max_tokens": 0}', "max_tokens=0; both must be at least 1"),
        ('{"id": "b", "prompt": "x", "max_tokens": 1, "arrival_s": -1}', "before 0"),
        ('{"id": "a", "prompt": "x", "max_tokens": 1}', "two requests with the id 'a'"),
        ('{"id": "b", "prompt": "x", "max_tokens": 1, "after": "c"}', "comes after 'c'"),
        (
            '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}',
            "line 2: a prompt of 600 tokens has 2 blocks of 512, but hash_ids has 1",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"id": "a", "prompt": "x", "max_tokens": 1}\n' + line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_requests(path)


def test_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_requests(tmp_path / "nothing")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="holds no request"):
        read_requests(tmp_path / "empty")


def test_only_one_prompt_is_asked() -> None:
    with pytest.raises(ConfigError, match="must have one of"):
        Request(id="a", prompt="x", prompt_token_ids=[1], max_tokens=1)
