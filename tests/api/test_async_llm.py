"""The asynchronous engine: streams, cancellation, and an orderly end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ockham import AsyncLLM, SamplingParams
from ockham.core.errors import ConfigError, EngineDead, InvalidRequest, ModelError
from tests.helpers.tiny import tiny_llama

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = SamplingParams(max_tokens=8000, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory, tokenizer=True, max_position_embeddings=8192)


def with_llm(checkpoint: Path, work: Callable[[AsyncLLM], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with (
            asyncio.timeout(60),
            AsyncLLM(str(checkpoint), kv_cache_memory_bytes=16 << 20) as llm,
        ):
            await work(llm)

    asyncio.run(bounded())


async def idle(llm: AsyncLLM) -> None:
    async with asyncio.timeout(15):
        while llm.client.stats.running or llm.client.stats.waiting or not llm.client.stats.steps:
            await asyncio.sleep(0.01)
    assert llm.client.stats.pages_used == 0


def test_outputs_grow_until_they_are_finished(checkpoint):
    async def work(llm):
        # A busy machine may give a stream's reader everything at once, but not every time.
        params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
        grew = False
        for _ in range(20):
            texts = [out.outputs[0].text async for out in llm.generate("def f(", params)]
            assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
            grew = len(texts) > 1
            if grew:
                break
        assert grew

    with_llm(checkpoint, work)


def test_deltas_add_up_to_the_final_output(checkpoint):
    async def work(llm):
        params = SamplingParams(max_tokens=12, temperature=1.0, seed=1, n=2, logprobs=1)
        (final,) = [out async for out in llm.generate("def f(", params, kind="final")]
        texts, tokens = ["", ""], [[], []]
        async for out in llm.generate("def f(", params, kind="delta"):
            for choice in out.outputs:
                texts[choice.index] += choice.text
                tokens[choice.index] += choice.token_ids
        assert texts == [choice.text for choice in final.outputs]
        assert tokens == [choice.token_ids for choice in final.outputs]

    with_llm(checkpoint, work)


def test_the_asynchronous_engine_agrees_with_the_synchronous_one(checkpoint):
    from ockham import LLM

    alone = LLM(str(checkpoint), kv_cache_memory_bytes=16 << 20)
    prompts = ["def f(", "class A:", [5, 6, 7], {"prompt": "x ="}, {"prompt_token_ids": [9]}]
    expected = [out.outputs[0].text for out in alone.generate(prompts, GREEDY, use_tqdm=False)]

    async def work(llm):
        async def one(prompt):
            return [out async for out in llm.generate(prompt, GREEDY, kind="final")][-1]

        outputs = await asyncio.gather(*map(one, prompts))
        assert [out.outputs[0].text for out in outputs] == expected

    with_llm(checkpoint, work)


def test_closing_a_generator_frees_its_work(checkpoint):
    async def work(llm):
        outputs = llm.generate("a", LONG)
        await anext(outputs)
        await outputs.aclose()
        await idle(llm)

    with_llm(checkpoint, work)


def test_cancelling_the_task_frees_its_work(checkpoint):
    async def work(llm):
        async def consume():
            async for _ in llm.generate("a", LONG):
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(llm)

    with_llm(checkpoint, work)


def test_an_aborted_request_ends_with_that_reason(checkpoint):
    async def work(llm):
        outputs = llm.generate("a", LONG, "mine")
        await anext(outputs)
        await llm.abort("mine")
        last = [out async for out in outputs][-1]
        assert last.finished
        assert last.outputs[0].finish_reason == "abort"
        await llm.abort("nobody's")

    with_llm(checkpoint, work)


def test_a_wrong_prompt_is_refused(checkpoint):
    async def work(llm):
        for prompt in ([99999], [], [True], [-1], {"text": "a"}, {}, "a" * 3_000_000):
            with pytest.raises(InvalidRequest):
                await anext(llm.generate(prompt, GREEDY))

    with_llm(checkpoint, work)


def test_after_the_shutdown_nothing_is_taken(checkpoint):
    async def work(llm):
        outputs = llm.generate("a", LONG)
        await anext(outputs)
        await llm.shutdown()
        with pytest.raises(EngineDead):
            async for _ in outputs:
                pass
        with pytest.raises(EngineDead):
            await anext(llm.generate("a", GREEDY))

    with_llm(checkpoint, work)


def test_the_first_request_starts_the_engine(checkpoint):
    async def work():
        llm = AsyncLLM(str(checkpoint), kv_cache_memory_bytes=16 << 20)
        try:
            assert (await anext(llm.generate("a", GREEDY))).outputs
        finally:
            await llm.shutdown()

    asyncio.run(work())


def test_an_unknown_setting_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="flux"):
        AsyncLLM(str(checkpoint), flux=1)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    async def work():
        async with AsyncLLM(str(tmp_path / "nowhere")):
            pass

    with pytest.raises(ModelError, match="nowhere"):
        asyncio.run(work())


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ([5, 10**400], {}),
        ([5, "x"], {}),
        (7, {}),
        (None, {}),
        ({"prompt_token_ids": 7}, {}),
        ([5], {"cache_salt": 5}),
        ([5], {"cache_hint": "perhaps"}),
        ([5], {"cache_salt": "half a pair: \ud83d"}),
    ],
)
def test_what_is_refused_leaves_nothing_behind(checkpoint, prompt, settings):
    async def work(llm):
        with pytest.raises(InvalidRequest):
            async for _ in llm.generate(prompt, GREEDY, **settings):
                pass
        assert llm.client.requests == 0
        assert [out async for out in llm.generate([5], GREEDY, kind="final")]
        await idle(llm)

    with_llm(checkpoint, work)


def test_what_is_loaded_is_logged_and_not_printed(checkpoint, caplog, capfd):
    async def work(llm):
        with pytest.raises(InvalidRequest, match="tokens, which is the model's own limit"):
            await llm.read([1] * 10_000)

    with caplog.at_level("INFO", "ockham.engine"):
        with_llm(checkpoint, work)
    assert any("memory" in message for message in caplog.messages)
    assert "memory" not in capfd.readouterr().err.replace(caplog.text, "")
