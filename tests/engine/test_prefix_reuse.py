"""Prefixes are reused at every token, computed once for those that come together, by tenant."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ockham.kernels.native import core
from tests.helpers import serving
from tests.helpers.serving import serve
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY = 61


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("prefix"), vocab_size=VOCABULARY)


# Drafts would have rows counted too.
make_engine = partial(serving.make_engine, max_num_batched_tokens=32, speculative_config="none")
ask = partial(serving.ask, max_tokens=6)


def tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def test_the_same_prompt_computes_its_last_row_only(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    prompt = tokens(70)
    first, bill = serve(engine, [ask("a", prompt)])["a"]
    assert (bill.prompt_tokens_computed, bill.prompt_tokens_reused) == (70, 0)
    again, bill = serve(engine, [ask("b", prompt)])["b"]
    assert again == first
    assert (bill.prompt_tokens_computed, bill.prompt_tokens_reused) == (1, 69)
    assert bill.saved["prefix"].tokens == 69
    assert bill.saved["prefix"].flops > 0
    assert bill.rows == 6


def test_prefixes_are_shared_at_every_token_and_turns_go_on(checkpoint: Path) -> None:
    plain, engine = make_engine(checkpoint, reuse="none"), make_engine(checkpoint)
    chat = tokens(37)
    answer, _ = serve(engine, [ask("0", chat)])["0"]
    turn = [*chat, *answer.tokens, *tokens(5, 9)]
    made, bill = serve(engine, [ask("1", turn)])["1"]
    assert made == serve(plain, [ask("1", turn)])["1"][0]
    assert bill.prompt_tokens_reused == 37 + 5  # the last token of an answer is never computed
    for shared in (1, 15, 16, 17, 36):
        other = [*chat[:shared], (chat[shared] + 1) % VOCABULARY, *tokens(4, shared)]
        made, bill = serve(engine, [ask("2", other)])["2"]
        assert bill.prompt_tokens_reused == shared
        assert made == serve(plain, [ask("2", other)])["2"][0]


@pytest.mark.parametrize("shared", [16, 40, 100])
def test_what_arrives_together_is_computed_once(checkpoint: Path, shared: int) -> None:
    system = tokens(shared)
    wanted = [ask(str(i), [*system, i, *tokens(7, i)]) for i in range(5)]
    found = serve(make_engine(checkpoint), wanted)
    plain = serve(make_engine(checkpoint, reuse="none"), wanted)
    assert {name: made for name, (made, _) in found.items()} == {
        name: made for name, (made, _) in plain.items()
    }
    computed = sum(bill.prompt_tokens_computed for _, bill in found.values())
    assert computed <= shared + 5 * (8 + 15)  # nobody waits for less than a page
    assert computed < sum(bill.prompt_tokens_computed for _, bill in plain.values())


def test_tenants_share_nothing(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    prompt = tokens(50)
    serve(engine, [ask("a", prompt, "one")])
    for name, salt, reused in (("b", "two", 0), ("c", "", 0), ("d", "one", 49), ("e", "two", 49)):
        _, bill = serve(engine, [ask(name, prompt, salt)])[name]
        assert bill.prompt_tokens_reused == reused
    together = [ask("f", tokens(60, 3), "one"), ask("g", tokens(60, 3), "two")]
    assert [b.prompt_tokens_reused for _, b in serve(engine, together).values()] == [0, 0]


def test_scored_prompts_compute_every_row(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    prompt = tokens(40)
    serve(engine, [ask("a", prompt)])
    _, bill = serve(engine, [ask("b", prompt, prompt_logprobs=1)])["b"]
    assert (bill.prompt_tokens_computed, bill.prompt_tokens_reused) == (40, 0)
    together = [ask("c", tokens(90, 5)), ask("d", tokens(90, 5), prompt_logprobs=1)]
    for request in together:
        engine.add(request)
    engine.step()
    assert engine.stats().waiting == 0


def test_what_is_scored_again_though_it_was_held_is_booked(checkpoint: Path) -> None:
    """And what stands before the first scored token is reused."""
    engine = make_engine(checkpoint)
    prompt = tokens(60)
    serve(engine, [ask("a", prompt)])
    whole = ask("b", prompt, prompt_logprobs=1)
    _, bill = serve(engine, [whole])["b"]
    assert (bill.prompt_tokens_computed, bill.wasted["prompt_logprobs"].tokens) == (60, 59)
    late = ask("c", prompt, prompt_logprobs=1)
    late.score_from = 41
    _, bill = serve(engine, [late])["c"]
    assert (bill.prompt_tokens_computed, bill.prompt_tokens_reused) == (20, 40)
    assert bill.wasted["prompt_logprobs"].tokens == 19
    assert bill.wasted["prompt_logprobs"].flops > 0
    alone = ask("d", tokens(60, 8), prompt_logprobs=1)
    _, bill = serve(engine, [alone])["d"]
    assert "prompt_logprobs" not in bill.wasted


def test_the_pool_takes_back_what_nobody_reads(checkpoint: Path) -> None:
    """Ten prompts through a pool that holds two: old ones go, those in use stay."""
    one = make_engine(checkpoint)
    page_bytes = sum(layout.page_bytes for layout in one.model.layouts)
    engine = make_engine(checkpoint, kv_cache_memory_bytes=16 * page_bytes)
    expected = {str(i): serve(one, [ask(str(i), tokens(90, i))])[str(i)][0] for i in range(10)}
    for order in (range(10), reversed(range(10))):
        found = serve(engine, [ask(str(i), tokens(90, i)) for i in order])
        assert {name: made for name, (made, _) in found.items()} == expected
    engine.reuse.forget()
    assert engine.state.pages_used == 0
    _, bill = serve(engine, [ask("again", tokens(90, 0))])["again"]
    assert bill.prompt_tokens_reused == 0


def test_a_prompt_that_fills_the_pool_gives_up_its_own_cache(checkpoint: Path) -> None:
    """Its prefix is shared in part, so that the copy of a page is one too many."""
    one = make_engine(checkpoint)
    page_bytes = sum(layout.page_bytes for layout in one.model.layouts)
    tight = make_engine(checkpoint, max_model_len=64, kv_cache_memory_bytes=4 * page_bytes)
    start = tokens(50)
    serve(tight, [ask("a", start)])
    prompt = [*start[:30], *tokens(20, 4)]
    made, _ = serve(tight, [ask("b", prompt, max_tokens=14)])["b"]
    assert made == serve(one, [ask("b", prompt, max_tokens=14)])["b"][0]


def test_without_prefix_caching_nothing_is_kept(checkpoint: Path) -> None:
    for settings in ({"enable_prefix_caching": False}, {"reuse": "none"}):
        engine = make_engine(checkpoint, **settings)
        serve(engine, [ask("a", tokens(40))])
        assert engine.state.pages_used == 0
        _, bill = serve(engine, [ask("b", tokens(40))])["b"]
        assert bill.prompt_tokens_reused == 0


def test_the_plain_tree_serves_where_nothing_was_compiled(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ockham.cache.native_tree.core", None)
    engine = make_engine(checkpoint, backend="reference")
    serve(engine, [ask("a", tokens(40))])
    _, bill = serve(engine, [ask("b", tokens(40))])["b"]
    assert bill.prompt_tokens_reused == 39


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_windows_reuse_what_their_rows_still_see(tmp_path: Path) -> None:
    checkpoint = tiny_mistral(tmp_path, vocab_size=VOCABULARY, window=24)
    engine, plain = make_engine(checkpoint), make_engine(checkpoint, reuse="none")
    chat = tokens(100)
    answer, _ = serve(engine, [ask("0", chat)])["0"]
    turn = [*chat, *answer.tokens, *tokens(5, 9)]
    made, bill = serve(engine, [ask("1", turn)])["1"]
    assert bill.prompt_tokens_reused > 80
    assert made == serve(plain, [ask("1", turn)])["1"][0]
    early = [*chat[:60], *tokens(9, 2)]
    made, bill = serve(engine, [ask("2", early)])["2"]
    assert made == serve(plain, [ask("2", early)])["2"][0]
