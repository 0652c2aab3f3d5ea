"""A batch of prompts computes each prefix once, whatever the pool holds, and changes no output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.api.llm import LLM
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.engine.collect import Collector
from tests.helpers.tiny import tiny_llama

VOCABULARY = 61


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("batch"), vocab_size=VOCABULARY)


def make_llm(checkpoint: Path, pages: int | None = None, **settings: Any) -> LLM:
    values = {"max_model_len": 128, "max_num_batched_tokens": 64, "max_num_seqs": 8, **settings}
    if pages is not None:
        page_bytes = 2 * 2 * 2 * 8 * 4 * 16  # K and V, layers, heads, head_dim, fp32, tokens
        values["kv_cache_memory_bytes"] = pages * page_bytes
    return LLM(str(checkpoint), skip_tokenizer_init=True, **values)


def batch(count: int, groups: int = 4, seed: int = 0) -> list[dict[str, list[int]]]:
    """Prompts under a few long prefixes, in no order."""
    rng = np.random.default_rng(seed)
    prefixes = [rng.integers(0, VOCABULARY, 90).tolist() for _ in range(groups)]
    return [
        {
            "prompt_token_ids": prefixes[rng.integers(groups)]
            + rng.integers(0, VOCABULARY, 6).tolist()
        }
        for _ in range(count)
    ]


def trie_size(prompts: list[dict[str, list[int]]]) -> int:
    tokens = [p["prompt_token_ids"] for p in prompts]
    return len({tuple(t[: n + 1]) for t in tokens for n in range(len(t))})


SAMPLED = SamplingParams(temperature=0.8, max_tokens=6, ignore_eos=True)


@pytest.mark.parametrize("pages", [None, 40, 12])
def test_each_prefix_is_computed_once(checkpoint: Path, pages: int | None) -> None:
    """Also where the pool holds little more than one of them."""
    prompts = batch(60)
    llm = make_llm(checkpoint, pages)
    outputs = llm.generate(prompts, SAMPLED, use_tqdm=False)
    bill = llm.engine.total
    assert len({tuple(p["prompt_token_ids"]) for p in prompts}) == len(prompts)
    assert bill.prompt_tokens_computed == trie_size(prompts)
    assert "preemption" not in bill.wasted
    assert [o.prompt_token_ids for o in outputs] == [p["prompt_token_ids"] for p in prompts]


def test_neither_order_nor_memory_changes_an_output(checkpoint: Path) -> None:
    """Seeds included: they belong to the prompts in the order in which they were given."""
    prompts = batch(40)
    found = []
    for settings in (
        {"scheduling_policy": "fcfs", "reuse": "none"},
        {},
        {"pages": 12},
        {"pages": 12, "scheduling_policy": "fcfs"},
    ):
        llm = make_llm(checkpoint, **settings)
        outputs = llm.generate(prompts, SAMPLED, use_tqdm=False)
        found.append([output.outputs[0].token_ids for output in outputs])
    assert all(other == found[0] for other in found)
    apart = make_llm(checkpoint)
    one_by_one = [apart.generate(p, SAMPLED, use_tqdm=False)[0] for p in prompts]
    assert [output.outputs[0].token_ids for output in one_by_one] == found[0]


def test_a_prefix_goes_with_its_last_user_and_not_before(checkpoint: Path) -> None:
    """Watched after every step: what nobody of the batch will use again is marked, and nothing
    else is."""
    from ockham.core.seams import GONE

    prompts = batch(20, groups=3)
    llm = make_llm(checkpoint)
    unfinished = {tuple(p["prompt_token_ids"]) for p in prompts}
    driver, seen = llm._driver, 0
    step = driver.step

    def watched(collector: Collector) -> None:
        nonlocal seen
        step(collector)
        left = set(driver._batches)
        live = [c.request.prompt_token_ids for n, (c, _) in driver._waiting.items() if n in left]
        tree = llm.engine.reuse.tree
        nodes = {facts.number: facts for facts in tree.dump()}
        for facts in nodes.values():
            path, node = [], facts
            while node is not None:
                path[:0] = tree.tokens_of(node.number, node.tokens).tolist()
                node = nodes.get(node.parent)
            used = any(tokens[: len(path)] == path[: len(tokens)] for tokens in live)
            is_gone = facts.hint == GONE
            assert not (is_gone and used)
            if not used:
                assert is_gone
            seen += is_gone

    llm._driver.step = watched  # type: ignore[method-assign]
    llm.generate(prompts, SAMPLED, use_tqdm=False)
    assert seen
    assert len(unfinished) == len(prompts)
    assert not llm._driver._batches


def test_an_interrupted_batch_leaves_nothing_behind(checkpoint: Path) -> None:
    llm = make_llm(checkpoint)
    step, steps = llm._driver.step, 0

    def interrupted(collector: Collector) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        step(collector)

    llm._driver.step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(batch(20), SAMPLED, use_tqdm=False)
    assert not llm._driver._batches
    assert not llm.engine.has_work
    llm.engine.check_integrity()


def test_a_pinned_prefix_outlives_a_crowd(checkpoint: Path) -> None:
    llm = make_llm(checkpoint, pages=24)
    system = {"prompt_token_ids": [5] * 70}
    assert llm.pin(system, "system") == 70
    assert llm.pins() == {"system": 70}
    with pytest.raises(InvalidRequest, match="at most 12 may be"):
        llm.pin({"prompt_token_ids": [6] * 100}, "more")

    def reused() -> int:
        llm.generate(batch(12, seed=3), SAMPLED, use_tqdm=False)
        prompt = {"prompt_token_ids": [5] * 70 + [7]}
        return llm.generate(prompt, SAMPLED, use_tqdm=False)[0].num_cached_tokens or 0

    assert reused() == 70
    llm.unpin("system")
    assert reused() < 70
    llm.engine.check_integrity()


def test_a_prompt_may_say_what_the_cache_is_to_do(checkpoint: Path) -> None:
    llm = make_llm(checkpoint)
    tokens = list(range(3, 60))

    def reused(**said: str) -> int:
        prompt = {"prompt_token_ids": tokens, **said}
        (found,) = llm.generate(prompt, SAMPLED, use_tqdm=False)
        return found.num_cached_tokens or 0

    assert reused(cache_salt="one", cache_hint="keep") == 0
    assert reused(cache_salt="other") == 0
    assert reused(cache_salt="one") > 50
    with llm.stream({"prompt_token_ids": tokens, "cache_salt": "third"}, SAMPLED) as stream:
        assert [delta.token_ids for delta in stream]
        assert not stream.output.num_cached_tokens
    for said, wrong in (({"cache_salt": 7}, "a text"), ({"cache_hint": "hold"}, "'keep'")):
        with pytest.raises(InvalidRequest, match=wrong):
            llm.generate([{"prompt_token_ids": tokens, **said}], SAMPLED, use_tqdm=False)
    with pytest.raises(InvalidRequest, match="may hold 'cache_salt' and 'cache_hint'"):
        llm.generate({"prompt_token_ids": tokens, "salt": "x"}, SAMPLED, use_tqdm=False)


def test_closing_gives_up_what_runs_and_lets_others_have_the_store(
    checkpoint: Path, tmp_path: Path
) -> None:
    first = make_llm(checkpoint, kv_store=str(tmp_path / "store"))
    stream = first.stream({"prompt_token_ids": list(range(3, 60))}, SAMPLED)
    next(stream)
    first.close()
    assert not first.engine.has_work
    other = make_llm(checkpoint, kv_store=str(tmp_path / "store"))
    prompt = {"prompt_token_ids": list(range(3, 60))}
    assert other.generate(prompt, SAMPLED, use_tqdm=False)[0].num_cached_tokens > 0
    other.close()
