"""A decoder that embeds, by `LLM` and `AsyncLLM`: equal bits in any batch, and clear refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham import LLM, AsyncLLM, InvalidRequest, SamplingParams
from ockham.core.errors import ConfigError
from ockham.core.pooling import PoolingParams
from ockham.engine.known import KnownTexts, TextKey
from ockham.engine.messages import Request
from tests.helpers.embedder import embedder

TEXTS = ["def f(x): return x", "class A:", "x = 1\n" * 40, "def f(x): return y", "a"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedder(tmp_path_factory.mktemp("embedder") / "mean")


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    with LLM(str(directory)) as made:
        yield made


@pytest.fixture(scope="module")
def last() -> Iterator[LLM]:
    with LLM("lab", task="embed") as made:
        yield made


def vectors(llm: LLM, texts: Any, **asked: Any) -> list[bytes]:
    return [each.outputs.embedding.tobytes() for each in llm.embed(texts, use_tqdm=False, **asked)]


@pytest.mark.parametrize("how", ["mean", "lasttoken", "cls", "max"])
def test_a_vector_has_the_same_bits_in_any_batch_and_any_cutting(tmp_path: Path, how: str) -> None:
    path = str(embedder(tmp_path / "model", how))
    with LLM(path, reuse="none") as plain:
        alone = [vectors(plain, text)[0] for text in TEXTS]
    for settings in ({}, {"max_num_batched_tokens": 7}, {"max_num_seqs": 2, "block_size": 4}):
        with LLM(path, **settings) as other:
            assert vectors(other, TEXTS) == alone
            assert vectors(other, TEXTS[::-1]) == alone[::-1]
            other.engine.check_integrity()


def test_few_pages_preempt_and_change_nothing(directory: Path) -> None:
    texts = [f"{i} = {i}\n" * 30 for i in range(8)]
    with LLM(str(directory), reuse="none") as plain:
        alone = [vectors(plain, text)[0] for text in texts]
        longest = max(len(plain.read(text).token_ids) for text in texts)
        page = plain.engine.model.layouts[0].page_bytes
    pages = 2 * -(-longest // 16) + 1
    tight = LLM(
        str(directory),
        kv_cache_memory_bytes=pages * page,
        max_model_len=longest,
        max_num_batched_tokens=24,
    )
    with tight:
        assert vectors(tight, texts) == alone
        tight.engine.check_integrity()


def test_what_stands_before_the_last_token_is_taken_over(last: LLM) -> None:
    tokens = last.read("y = 2\n" * 30).token_ids
    (first,) = last.embed([tokens], use_tqdm=False)
    (longer,) = last.embed([[*tokens, 7]], use_tqdm=False)
    assert first.num_cached_tokens == 0
    assert longer.num_cached_tokens == len(tokens)
    assert longer.ledger.prompt_tokens_computed == 1


def test_a_mean_needs_every_row_and_takes_over_none(llm: LLM) -> None:
    tokens = llm.read("y = 3\n" * 30).token_ids
    for asked in (tokens, [*tokens, 7]):
        (found,) = llm.embed([asked], use_tqdm=False)
        assert found.num_cached_tokens == 0
        assert found.ledger.prompt_tokens_computed == len(asked)


def test_a_text_that_comes_again_costs_nothing(llm: LLM, directory: Path) -> None:
    text, cut = "z = 4\n" * 9, PoolingParams(dimensions=8)
    assert vectors(llm, "b", dimensions=8) == vectors(llm, "b", pooling_params=cut)
    (first,) = llm.embed(text, use_tqdm=False)
    before = llm.engine.total.flops
    (again,) = llm.embed(text, use_tqdm=False)
    (short,) = llm.embed(text, cut, use_tqdm=False)
    assert llm.engine.total.flops == before
    assert again.outputs.embedding.tobytes() == first.outputs.embedding.tobytes()
    assert again.num_cached_tokens == len(again.prompt_token_ids)
    saved = again.ledger.saved["texts"]
    assert (saved.tokens, saved.flops) == (len(again.prompt_token_ids), first.ledger.flops)
    (salted,) = llm.embed({"prompt": text, "cache_salt": "mine"}, use_tqdm=False)
    assert salted.num_cached_tokens == 0
    with LLM(str(directory), enable_prefix_caching=False) as plain:
        assert vectors(plain, text) == [first.outputs.embedding.tobytes()]
        assert vectors(plain, text, pooling_params=cut) == [short.outputs.embedding.tobytes()]
        assert plain.embed(text, use_tqdm=False)[0].num_cached_tokens == 0


def test_known_texts_hold_nobody_up_who_is_computed(llm: LLM) -> None:
    engine, params = llm.engine, PoolingParams(task="embed")
    known, fresh = (llm.read(text).token_ids for text in ("known", "w = 5\n" * 400))
    llm.embed([known], use_tqdm=False)

    def ask(name: str, tokens: list[int]) -> None:
        greedy = SamplingParams(temperature=0.0)
        engine.add(
            Request(
                request_id=name,
                prompt_token_ids=tokens,
                params=greedy,
                detokenize=False,
                pooling=params,
            )
        )

    ask("long", fresh)
    ended: list[str] = []
    for number in range(len(fresh)):
        ask(f"known {number}", known)
        told = [delta.request_id for delta in engine.step() if delta.finished]
        assert f"known {number}" in told
        ended += told
        if "long" in ended:
            break
    assert "long" in ended
    assert number < len(fresh) / 100


def test_texts_that_were_asked_for_longest_ago_are_forgotten_first() -> None:
    known, vector = KnownTexts(1500), np.zeros(100, np.float32)
    keys = [TextKey("", bytes([number]), None, 0) for number in range(3)]
    for key in keys[:2]:
        known.put(key, vector)
    assert known.get(keys[0]) is not None
    known.put(keys[2], vector)
    assert [known.get(key) is not None for key in keys] == [True, False, True]


def test_instructions_stand_before_texts(llm: LLM) -> None:
    assert vectors(llm, "a", prompt_name="query") == vectors(llm, "find: a")
    assert vectors(llm, "a", prompt="so: ") == vectors(llm, "so: a")
    assert vectors(llm, {"prompt": "a"}, prompt_name="query") == vectors(llm, "find: a")
    ids = llm.read("a").token_ids
    assert vectors(llm, {"prompt_token_ids": ids}, prompt_name="query") == vectors(llm, "a")
    with pytest.raises(InvalidRequest, match="no prompt 'ask'; it has 'query', 'document'"):
        llm.embed("a", prompt_name="ask")


def test_a_side_of_a_search_gets_its_instruction_where_there_is_one(llm: LLM, last: LLM) -> None:
    assert vectors(llm, "a", input_type="query") == vectors(llm, "find: a")
    assert vectors(llm, "a", input_type="document") == vectors(llm, "text: a")
    assert vectors(last, "a", input_type="query") == vectors(last, "a")
    with pytest.raises(InvalidRequest, match="input_type must be 'query' or 'document'"):
        llm.embed("a", input_type="passage")
    with pytest.raises(InvalidRequest, match="input_type and prompt each say"):
        llm.embed("a", input_type="query", prompt="find: ")


def test_an_instruction_may_stay_out_of_the_mean(tmp_path: Path, llm: LLM) -> None:
    path = embedder(tmp_path / "model", default_prompt_name="query")
    rule = {"pooling_mode": "mean", "include_prompt": False}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(rule))
    with LLM(str(path)) as other:
        found = other.embed("x = 1", PoolingParams(normalize=False), use_tqdm=False)[0]
    tokens = llm.encode("find: x = 1", PoolingParams(normalize=False), use_tqdm=False)[0]
    skip = len(llm.read("find: ").token_ids)
    expected = tokens.outputs.data[skip:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found.outputs.embedding, expected, rtol=1e-5)
    assert vectors(llm, "find: x = 1") != found.outputs.embedding.tobytes()


def test_texts_are_cut_only_where_that_is_asked_for(llm: LLM) -> None:
    longest, text = llm.engine.max_model_len, "x = 1\n" * 3000
    with pytest.raises(
        InvalidRequest, match=rf"prompt 1: it has .* the model takes {longest}\. .*=-1"
    ):
        llm.embed(["a", text])
    ids = llm.read(text).token_ids
    assert vectors(llm, text, truncate_prompt_tokens=9) == vectors(llm, [ids[:9]])
    assert vectors(llm, text, truncate_prompt_tokens=-1) == vectors(llm, [ids[:longest]])
    assert vectors(llm, [ids], truncate_prompt_tokens=9) == vectors(llm, [ids[:9]])
    for wrong in (0, -2, longest + 1, True):
        with pytest.raises(InvalidRequest, match="truncate_prompt_tokens"):
            llm.embed("a", truncate_prompt_tokens=wrong)


def test_documents_are_ranked_by_their_likeness_to_a_query(llm: LLM) -> None:
    documents = ["class B: pass", "def g(x): return x", "import os"]
    best = llm.rank("def f(x): return x", documents, use_tqdm=False)
    assert best[0].index == 1
    assert [each.score for each in best] == sorted((e.score for e in best), reverse=True)
    assert llm.rank("def f(x): return x", documents, top_n=2, use_tqdm=False) == best[:2]
    objects = [{"text": document} for document in documents]
    assert llm.rank("def f(x): return x", objects, use_tqdm=False) == best
    pairs = llm.score("def f(x): return x", documents, use_tqdm=False)
    found = [each.outputs.score for each in pairs]
    assert found == [next(e.score for e in best if e.index == i) for i in range(3)]
    query = llm.embed("def f(x): return x", prompt_name="query", use_tqdm=False)[0]
    document = llm.embed(documents[0], prompt_name="document", use_tqdm=False)[0]
    likeness = float(query.outputs.embedding @ document.outputs.embedding)
    assert found[0] == pytest.approx(likeness, abs=1e-6)
    assert sum(each.ledger.prompt_tokens for each in pairs) == sum(
        len(llm.read(text).token_ids)
        for text in ["find: def f(x): return x", *("text: " + each for each in documents)]
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda llm: llm.embed(["a", ""]), r"prompt 1: it is empty"),
        (lambda llm: llm.chat([{"role": "user", "content": "a"}]), "and generates no text"),
        (lambda llm: llm.generate("a"), "does embed and token_embed, and generates no text"),
        (lambda llm: llm.embed("a", dimensions=0), "dimensions must be a positive integer"),
        (lambda llm: llm.classify("a"), "and not classify"),
        (lambda llm: llm.embed("a", PoolingParams(dimensions=9999)), "embeddings of this model"),
        (lambda llm: llm.embed("a", PoolingParams(task="score")), "the method does embed"),
        (lambda llm: llm.rank("a", []), "a list of at least one text"),
        (lambda llm: llm.rank("a", ["b"], top_n=0), "top_n must be a positive integer"),
        (lambda llm: llm.rank("a", ["b"], instruction="c"), "reads no instruction"),
        (lambda llm: llm.score(["a", "b"], ["c", "d", "e"]), "2 first texts and 3 second ones"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(llm: LLM, asked, message) -> None:
    before = llm.engine.stats().steps
    with pytest.raises(InvalidRequest, match=message):
        asked(llm)
    assert llm.engine.stats().steps == before
    assert not llm.engine.groups


def test_a_model_that_generates_says_so(directory: Path) -> None:
    with LLM(str(directory), task="generate") as llm:
        with pytest.raises(InvalidRequest, match="generates text, and does not embed"):
            llm.embed("a")
        with pytest.raises(InvalidRequest, match="cannot score pairs of texts"):
            llm.rank("a", ["b"])
        params = SamplingParams(temperature=0, max_tokens=3)
        assert llm.generate("def f(", params)[0].outputs[0].token_ids
    with pytest.raises(ConfigError, match="task must be one of"):
        LLM("lab", task="sing")
    with pytest.raises(ConfigError, match="cannot classify"):
        LLM("lab", task="classify")


def test_the_asynchronous_engine_gives_the_same_bits(directory: Path, llm: LLM) -> None:
    async def work() -> None:
        async with AsyncLLM(str(directory)) as other:
            assert other.ready.tasks == ("embed", "token_embed")
            found = await asyncio.gather(*(other.embed(text) for text in TEXTS))
            assert [each.outputs.embedding.tobytes() for each in found] == vectors(llm, TEXTS)
            side = await other.embed("a", input_type="query")
            assert [side.outputs.embedding.tobytes()] == vectors(llm, "a", input_type="query")
            tokens = await other.encode(TEXTS[0])
            expected = llm.encode(TEXTS[0], use_tqdm=False)[0].outputs.data
            assert tokens.outputs.data.tobytes() == expected.tobytes()
            ranked = await other.rank(TEXTS[0], TEXTS[1:], top_n=2)
            assert ranked == llm.rank(TEXTS[0], TEXTS[1:], top_n=2, use_tqdm=False)
            with pytest.raises(InvalidRequest, match="and not classify"):
                await other.classify("a")
            cancelled = asyncio.create_task(other.embed("x = 1\n" * 500))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert (await other.embed("a")).outputs.embedding.tobytes() == vectors(llm, "a")[0]

    asyncio.run(asyncio.wait_for(work(), 60))
