"""What one entrance takes as a prompt, all take; what one refuses, all refuse in the same words.

The entrances are `LLM`, `AsyncLLM`, the server's routes and batch files.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ockham import LLM, AsyncLLM, InvalidRequest, ReuseParams, SamplingParams
from ockham.api.batch_file import BatchInput, BatchOutput
from ockham.api.batch_lines import call
from ockham.api.prompts import PromptReader, as_list
from ockham.api.run_batch import run_batch
from ockham.api.server.app import build_app
from ockham.api.server.gate import Gate
from ockham.api.server.metrics import Metrics
from ockham.api.server.settings import ServerSettings
from ockham.core.config import EngineConfig
from tests.helpers.tiny import tiny_llama

ONE = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
TEXT = "First part.\n\nSecond part.\n\nWhat now?"
TALK = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": TEXT}]
SETTINGS: dict[str, Any] = {
    "kv_cache_memory_bytes": 8 << 20,
    "reuse": "prefix,chunk,edit",
    "speculative_config": "none",
}
TOO_LONG = [1] * 100_000
NO_LIST: tuple[Any, ...] = ([], None)
"""What is no prompt, and as a list of prompts something else."""

Tokens = list[int]
Said = Tokens | str
"""The token ids of a prompt, or why it was refused."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), tokenizer=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(str(checkpoint), **SETTINGS) as llm:
        yield llm


class Served:
    """An `AsyncLLM` and the server's application over it, for tests that are not asynchronous."""

    def __init__(self, checkpoint: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.llm = AsyncLLM(str(checkpoint), **SETTINGS)
        self.wait(self.llm.start())
        settings = ServerSettings(access_log=False)
        self._app = build_app(self.llm, settings, Gate(8, 8), Metrics("tiny"))

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        asked = call(self._app, path, json.dumps(body).encode(), "a-test")
        status, answer = self.wait(asked)
        return status, json.loads(answer)

    def close(self) -> None:
        self.wait(self.llm.shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Served]:
    served = Served(checkpoint)
    yield served
    served.close()


def said(work: Callable[[], Tokens]) -> Said:
    """Without what only says which prompt of a batch it was."""
    try:
        return work()
    except InvalidRequest as error:
        return str(error).removeprefix("prompt 0: ")


def generated(served: Served, prompt: Any, **settings: Any) -> Tokens:
    async def work() -> Tokens:
        outputs = served.llm.generate(prompt, ONE, kind="final", **settings)
        return [output.prompt_token_ids async for output in outputs][-1]

    return served.wait(work())


def posted(served: Served, path: str, **body: Any) -> Said:
    asked = {"max_tokens": 1, "temperature": 0, "return_token_ids": True, **body}
    status, answer = served.post(path, **asked)
    if status != 200:
        assert status == 400
        return str(answer["error"]["message"])
    found: Tokens = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
    return found


def in_python(llm: LLM, served: Served, prompt: Any, **settings: Any) -> dict[str, Said]:
    """What the entrances of Python say to a prompt that is generated from."""

    def streamed() -> Tokens:
        with llm.stream(prompt, ONE, **settings) as stream:
            list(stream)
            return stream.output.prompt_token_ids

    alone = (
        {}
        if prompt in NO_LIST
        else {"generate": said(lambda: llm.generate(prompt, ONE, **settings)[0].prompt_token_ids)}
    )
    return alone | {
        "in a list": said(lambda: llm.generate([prompt], ONE, **settings)[0].prompt_token_ids),
        "stream": said(streamed),
        "async": said(lambda: generated(served, prompt, **settings)),
    }


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: TEXT,
        lambda ids: ids,
        lambda ids: tuple(ids),
        lambda ids: {"prompt": TEXT},
        lambda ids: {"prompt": ids},
        lambda ids: {"prompt_token_ids": ids},
        lambda ids: {"prompt_token_ids": ids, "cache_salt": "mine", "cache_hint": "discard"},
        lambda ids: {"prompt": TEXT, "cache_salt": None, "cache_hint": None},
    ],
)
def test_every_form_is_taken_at_every_entrance(
    llm: LLM, served: Served, form: Callable[[Tokens], Any]
) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    prompt = form(ids)
    found = in_python(llm, served, prompt)
    found["score"] = llm.score(prompt)[0].prompt_token_ids
    for name, tokens in found.items():
        assert tokens == ids, name
    salt = prompt.get("cache_salt") or "" if isinstance(prompt, dict) else ""
    assert llm.pin(prompt, "the prefix") == len(ids)
    assert llm.pins(salt) == {"the prefix": len(ids)}
    llm.unpin("the prefix", salt)
    # JSON has the parts of a prompt object as fields of the body.
    body = dict(prompt) if isinstance(prompt, dict) else {"prompt": prompt}
    if "prompt_token_ids" in body:
        body["prompt"] = body.pop("prompt_token_ids")
    assert posted(served, "/v1/completions", **body) == ids
    assert posted(served, "/v1/completions", **{**body, "prompt": [body["prompt"]]}) == ids
    pinned = {k: v for k, v in body.items() if k in ("prompt", "cache_salt")}
    assert served.post("/v1/cache/pin", name="one", **pinned)[0] == 200
    assert served.post("/v1/cache/unpin", name="one", cache_salt=body.get("cache_salt"))[0] == 200


@pytest.mark.parametrize(
    ("prompt", "complaint", "in_json"),
    [
        ([], "the prompt is empty", False),
        ([5, 10**400], "no token id", False),
        ([99_999], "vocabulary has ids from 0 to", True),
        (TOO_LONG, "has 100000 tokens, and the context is", True),
        ("a" * 3_000_000, "has 3000000 characters, and with a context of", True),
        (None, "a prompt must be text or a list of token ids, got NoneType", False),
        ({}, "must hold either 'prompt' or 'prompt_token_ids'", False),
        ({"text": "a"}, "must hold either 'prompt' or 'prompt_token_ids'", False),
        ({"prompt": "a", "salt": "b"}, "may hold 'cache_salt' and 'cache_hint'", False),
        ({"prompt": "a", "cache_salt": 7}, "cache_salt must be a text, got 7", False),
        ({"prompt": "a", "cache_hint": "hold"}, "cache_hint must be 'keep' or 'discard'", False),
        ({"prompt": "a", "cache_hint": ["keep"]}, "cache_hint must be 'keep' or", False),
    ],
)
def test_what_is_refused_is_refused_everywhere_in_the_same_words(
    llm: LLM, served: Served, prompt: Any, complaint: str, in_json: bool
) -> None:
    found = in_python(llm, served, prompt)
    words = set(map(str, found.values()))
    assert len(words) == 1
    assert complaint in words.pop()
    if in_json:
        assert found["async"] == posted(served, "/v1/completions", prompt=prompt)


@pytest.mark.parametrize("reuse", ["chunk", "edit", ReuseParams(reuse="chunk")])
def test_marked_chunks_are_taken_at_every_entrance(llm: LLM, served: Served, reuse: Any) -> None:
    found = in_python(llm, served, TEXT, reuse=reuse)
    name = reuse if isinstance(reuse, str) else reuse.reuse
    found["completions"] = posted(served, "/v1/completions", prompt=TEXT, reuse=name)
    assert len({tuple(tokens) for tokens in found.values()}) == 1
    ids = llm.get_tokenizer().encode(TEXT)
    found = in_python(llm, served, ids, reuse=reuse)
    found["completions"] = posted(served, "/v1/completions", prompt=ids, reuse=name)
    refused = f"reuse={name!r} finds chunks in text; send the prompt as text."
    assert all(each == (ids if name == "edit" else refused) for each in found.values())


def test_a_wrong_reuse_is_refused_everywhere(llm: LLM, served: Served) -> None:
    for reuse in (7, "guess"):
        found = in_python(llm, served, TEXT, reuse=reuse)
        words = set(map(str, found.values()))
        assert len(words) == 1
        assert "reuse" in words.pop()


@pytest.mark.parametrize("reuse", [None, "chunk", "edit"])
def test_a_chat_is_the_same_prompt_at_every_entrance(
    llm: LLM, served: Served, reuse: str | None
) -> None:
    """A developer's message is the system's at all of them."""
    (output,) = llm.chat(TALK, ONE, reuse=reuse)
    chat = posted(served, "/v1/chat/completions", messages=TALK, reuse=reuse)
    assert chat == output.prompt_token_ids
    if reuse != "chunk":
        status, answer = served.post("/tokenize", messages=TALK)
        assert status == 200
        assert answer["tokens"] == output.prompt_token_ids


def test_a_batch_file_has_the_rules_of_the_server(
    llm: LLM, checkpoint: Path, tmp_path: Path
) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    bodies = {
        "text": {"prompt": TEXT, "cache_salt": "mine", "cache_hint": "keep"},
        "ids": {"prompt": ids, "cache_salt": "mine"},
        "list": {"prompt": [ids]},
        "chunks": {"prompt": TEXT, "reuse": "chunk"},
        "chunks of ids": {"prompt": ids, "reuse": "chunk"},
        "too long": {"prompt": TOO_LONG},
    }
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/completions",
            "body": {"max_tokens": 1, "temperature": 0, "return_token_ids": True, **body},
        }
        for name, body in bodies.items()
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = BatchInput(source)
    output = BatchOutput(target, given)
    asyncio.run(run_batch(EngineConfig(model=str(checkpoint), **SETTINGS), given, output))
    output.close()
    results = {r["custom_id"]: r for r in map(json.loads, target.read_text().splitlines())}
    chunks = llm.generate(TEXT, ONE, reuse="chunk")[0].prompt_token_ids
    for name, expected in {"text": ids, "ids": ids, "list": ids, "chunks": chunks}.items():
        (choice,) = results[name]["response"]["body"]["choices"]
        assert choice["prompt_token_ids"] == expected, name
    for name, prompt, settings in (
        ("chunks of ids", ids, {"reuse": "chunk"}),
        ("too long", TOO_LONG, {}),
    ):
        with pytest.raises(InvalidRequest) as refused:
            llm.stream(prompt, ONE, **settings)
        assert results[name]["error"]["message"] == str(refused.value)


def test_what_a_prompt_object_says_may_not_be_contradicted(served: Served) -> None:
    prompt = {"prompt": TEXT, "cache_salt": "mine"}
    assert generated(served, prompt, cache_salt="mine")
    with pytest.raises(InvalidRequest, match=r"cache_salt is given twice.*'mine'.*'yours'"):
        generated(served, prompt, cache_salt="yours")


def test_a_prompt_object_reaches_the_cache_that_it_names(llm: LLM, served: Served) -> None:
    """The same of `LLM` and `AsyncLLM`: state is shared under a salt, and never beside it."""
    ids = list(range(3, 83))

    def reused(salt: str) -> tuple[int, int]:
        prompt = {"prompt_token_ids": ids, "cache_salt": salt}

        async def work() -> int:
            outputs = served.llm.generate(prompt, ONE, kind="final")
            return [output.num_cached_tokens or 0 async for output in outputs][-1]

        return llm.generate(prompt, ONE)[0].num_cached_tokens or 0, served.wait(work())

    assert reused("a") == (0, 0)
    assert min(reused("a")) > 60
    assert reused("b") == (0, 0)


def test_a_reader_without_a_tokenizer_takes_ids_only() -> None:
    reader = PromptReader(None, 100, "which is the model's own limit")
    request = reader.read([1, 2]).request("name", ONE)
    assert request.prompt_token_ids == [1, 2]
    assert not request.detokenize
    with pytest.raises(InvalidRequest, match="text needs a tokenizer"):
        reader.read("text")
    with pytest.raises(InvalidRequest, match="text needs a tokenizer"):
        reader.read("text", "chunk")


def test_a_list_of_numbers_is_one_prompt() -> None:
    assert as_list([1, 2]) == [[1, 2]]
    assert as_list(["a", [1]]) == ["a", [1]]
    assert as_list({"prompt": "a"}) == [{"prompt": "a"}]
