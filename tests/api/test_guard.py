"""The guard behind `LLM` and `AsyncLLM`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ockham import LLM, AsyncLLM, SamplingParams
from ockham.core.guarded import GuardStats
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_llama

KEEP = "recent:window=64,sinks=4,block=16"
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
LONG = [[(number * 131 + 17 * place) % 4000 + 10 for place in range(200)] for number in range(60)]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("guard"), tokenizer=True)


def make(checkpoint: Path, **settings: object) -> LLM:
    values = {"threads": 1, "keep": KEEP, "guard": 1.0, "guard_floor": "agreement>=0.97"}
    return LLM(str(checkpoint), kv_cache_memory_bytes=16 << 20, **{**values, **settings})


def test_an_llm_scores_texts_when_it_sleeps(checkpoint: Path) -> None:
    with make(checkpoint) as llm, make(checkpoint, keep="all", guard=0.0) as exact:
        first = llm.generate(LONG[:30], GREEDY, use_tqdm=False)
        assert all(output.outputs[0].report is None for output in first)
        found = llm.guard()
        assert found is not None
        assert (found.queued, found.shadowed) == (30, 0)
        while (left := llm.sleep(60.0)) > 1:
            exact_work = llm.guard()
            assert exact_work is not None
            if exact_work.uses[0].state == "off":
                break
            llm.generate(LONG[:1], GREEDY, use_tqdm=False)
        assert left >= 0
        found = llm.guard()
        assert found is not None
        assert found.uses[0].state == "off"
        [now] = llm.generate(LONG[30], GREEDY, use_tqdm=False)
        assert now.outputs[0].report == {"guard": {"left_out": ["keep/recent"]}}
        [expected] = exact.generate(LONG[30], GREEDY, use_tqdm=False)
        assert now.outputs[0].token_ids == expected.outputs[0].token_ids


def test_without_a_guard_there_is_none(checkpoint: Path) -> None:
    with make(checkpoint, guard=0.0) as llm:
        llm.generate(LONG[:1], GREEDY, use_tqdm=False)
        assert llm.guard() is None
        assert llm.sleep(1.0) == 0


def test_the_kind_of_a_request_is_part_of_its_workload(checkpoint: Path) -> None:
    template = FAMILIES["hermes"].template
    with make(checkpoint, keep="recent:window=1024") as llm:
        chat = [{"role": "user", "content": "Add 1 and 2."}]
        params = SamplingParams(temperature=0.0, max_tokens=4)
        llm.generate("Once upon", params, use_tqdm=False)
        llm.chat(chat, params, use_tqdm=False, chat_template=template)
        llm.chat(chat, params, use_tqdm=False, chat_template=template, tools=[TOOL])
        llm.generate(LONG[0], params, use_tqdm=False)
        found = llm.guard()
        assert found is not None
        kinds = {use.workload: use.requests for use in found.uses}
        assert kinds == {"completion, short": 2, "chat, short": 1, "tools, short": 1}


def test_a_request_that_is_refused_or_interrupted_leaves_the_guard_well(
    checkpoint: Path,
) -> None:
    from ockham.core.errors import InvalidRequest

    with make(checkpoint) as llm:
        with pytest.raises(InvalidRequest):
            llm.generate([LONG[0], [9_999_999]], GREEDY, use_tqdm=False)
        with llm.stream(LONG[1], GREEDY) as stream:
            next(stream)
        found = llm.guard()
        assert found is not None
        assert found.queued == 0
        llm.generate(LONG[2], GREEDY, use_tqdm=False)
        found = llm.guard()
        assert found is not None
        assert found.queued == 1


def test_an_async_llm_scores_texts_while_nobody_asks(checkpoint: Path) -> None:
    async def work() -> GuardStats | None:
        settings = {"threads": 1, "keep": KEEP, "guard": 1.0}
        async with (
            asyncio.timeout(60),
            AsyncLLM(str(checkpoint), kv_cache_memory_bytes=16 << 20, **settings) as llm,
        ):
            for prompt in LONG[:6]:
                async for _ in llm.generate(prompt, GREEDY):
                    pass
            while (found := await llm.guard()) is not None and found.shadowed < 3:
                await asyncio.sleep(0.02)
            return found

    found = asyncio.run(work())
    assert found is not None
    assert found.uses[0].texts >= 3
    assert found.rows <= found.traffic_rows
