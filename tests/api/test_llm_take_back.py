"""Whatever fails while an `LLM` works ends what it concerns, and the `LLM` goes on as before."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import OckhamError
from tests.helpers.tiny import tiny_llama

PROMPTS = [[7, 8, 9], [10, 11], [5] * 40]
PARAMS = SamplingParams(
    n=2, max_tokens=5, temperature=0.5, seed=1, logprobs=1, prompt_logprobs=1, ignore_eos=True
)
ONE_REQUESTS = [
    "ockham.engine.harvest:Harvest._score_prompt",
    "ockham.engine.harvest:Harvest._entries",
    "ockham.engine.sequence:Sequence.draw",
    "ockham.engine.harvest:Harvest.push",
    "ockham.engine.text:TextOutput.push",
    "ockham.engine.text:TextOutput.finish",
    "ockham.engine.endings:Endings.end",
    "ockham.engine.collect:Collector.add",
]
A_STEPS = [
    "ockham.engine.scheduler:Scheduler.schedule",
    "ockham.engine.scheduler:Scheduler._admit",
    "ockham.engine.scheduler:Scheduler._look_up",
    "ockham.engine.scheduler:Scheduler._unqueue",
    "ockham.engine.scheduler:Scheduler._reserve",
    "ockham.engine.engine:build",
    "ockham.engine.runner.runner:Runner.run",
    "ockham.engine.billing:book_step",
    "ockham.engine.scheduler:Scheduler.commit",
    "ockham.engine.scheduler:Scheduler._keep",
    "ockham.engine.harvest:Harvest._choices",
    "ockham.engine.scheduler:Scheduler.fork",
    "ockham.engine.search_billing:book_fork",
    "ockham.engine.runner.runner:Runner.sample",
    "ockham.engine.harvest:merged",
]
BEFORE = [
    "ockham.engine.engine:Engine.prepare",
    "ockham.engine.requests:Requests._group",
    "ockham.engine.scheduler:Scheduler.add",
    "ockham.schedule.lpm:LongestPrefixMatch.add",
    "ockham.engine.offline:OfflineBatch.__init__",
]


@contextmanager
def failing(name: str, at: int) -> Iterator[Callable[[], bool]]:
    """The function raises in its call number `at`, once; whether it did, can be asked."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    work, calls = getattr(owner, last), 0

    @functools.wraps(work)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise RuntimeError("a fault was asked for")
        return work(*args, **kwargs)

    setattr(owner, last, faulty)
    try:
        yield lambda: calls >= at
    finally:
        setattr(owner, last, work)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tiny_llama(tmp_path_factory.mktemp("tiny"), tokenizer=True)
    return LLM(str(directory), kv_cache_memory_bytes=4 << 20, speculative_config="none")


def answers(llm: LLM) -> list[Any]:
    """Prompts that nothing is held of, so that each of their rows is computed."""
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [
        (choice.token_ids, choice.text, output.prompt_logprobs, choice.logprobs)
        for output in outputs
        for choice in output.outputs
    ]


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[Any]:
    return answers(llm)


def nothing_is_left(llm: LLM) -> None:
    engine = llm.engine
    engine.check_integrity()
    assert not engine.has_work
    assert not engine.scheduler.running
    assert not list(engine.scheduler.waiting)
    assert engine.stats().pages_used == 0
    assert not llm._driver._waiting
    assert not llm._driver._batches


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("name", [*BEFORE, *ONE_REQUESTS, *A_STEPS])
def test_a_fault_anywhere_leaves_nothing_behind(
    llm: LLM, expected: list[Any], name: str, at: int
) -> None:
    with failing(name, at) as failed:
        if at > 1 and name.endswith("OfflineBatch.__init__"):
            pytest.skip("is made once")
        with pytest.raises((OckhamError, RuntimeError)):
            llm.generate([[n + at, *p] for n, p in enumerate(PROMPTS)], PARAMS, use_tqdm=False)
        assert failed()
    nothing_is_left(llm)
    assert answers(llm) == expected


@pytest.mark.parametrize("name", A_STEPS)
def test_a_step_that_fails_is_told_to_all_who_wait(
    llm: LLM, expected: list[Any], name: str
) -> None:
    """Several callers share the engine's steps: none of them waits for ever."""
    ended: list[str] = []

    def ask(number: int) -> None:
        try:
            llm.generate([[number, 2, 3, 4]], PARAMS, use_tqdm=False)
            ended.append("answered")
        except (OckhamError, RuntimeError):
            ended.append("failed")

    threads = [threading.Thread(target=ask, args=(20 + n,)) for n in range(4)]
    with failing(name, 1):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(ended) == 4, "a caller still waits"
    assert "failed" in ended
    nothing_is_left(llm)
    assert answers(llm) == expected


@pytest.mark.parametrize("name", ONE_REQUESTS)
def test_a_fault_of_one_request_lets_the_others_end(llm: LLM, name: str) -> None:
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    alone = llm.generate([[50, 51]], params, use_tqdm=False)[0].outputs[0].token_ids
    stream = llm.stream([50, 51], params)
    tokens = list(next(stream).token_ids)
    other = SamplingParams(max_tokens=1, logprobs=1, prompt_logprobs=0, n=2, temperature=0.1)
    calls = 2 if name.endswith(("push", "add")) else 1
    failed = []
    with failing(name, calls):
        try:
            llm.generate([[60, 61]], other, use_tqdm=False)
        except OckhamError:
            failed.append("the other")
        try:
            for delta in stream:
                tokens += delta.token_ids
        except OckhamError:
            failed.append("the stream")
    assert len(failed) == 1
    if failed == ["the other"]:
        assert tokens == alone
    nothing_is_left(llm)


def test_a_listener_that_fails_is_its_callers_own(llm: LLM) -> None:
    stream = llm.stream([5, 6, 7], SamplingParams(max_tokens=30, ignore_eos=True))
    with failing("ockham.engine.collect:Collector.add", 1), pytest.raises(OckhamError):
        next(stream)
    nothing_is_left(llm)
