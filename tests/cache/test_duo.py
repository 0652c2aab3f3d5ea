"""`duo`: heads that stream keep the first cells and the latest ones, all others keep every cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.cache.keep.learned import PACKAGED
from ockham.core.errors import ConfigError, InvalidRequest, ModelError
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup, KeptText
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.model.checkpoint.keep_files import HeadAlphas, ModelSizes, read_alphas
from tests.helpers.keep_heads import write_alphas, write_random_alphas
from tests.helpers.serving import ask, complete, drain, make_engine, tokens_of
from tests.helpers.tiny import tiny_alternating, tiny_llama

SINKS, WINDOW, BLOCK = 2, 16, 32
ASKED = {"keep/duo": {"share": 0.5, "sinks": SINKS, "window": WINDOW, "block": BLOCK}}
LAYERS, KV_HEADS, WIDTH = 2, 2, 32
LENGTHS = (200, 130, 41, 90)


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory) if request.param == "full" else tiny_alternating(directory)


@pytest.fixture(scope="module")
def full(tmp_path_factory: Any) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("full"))


def heads_of(checkpoint: Path, directory: Path) -> Path:
    """Random alphas for a tiny model."""
    engine = make_engine(checkpoint)
    sizes = ModelSizes(engine.techniques.hidden_size, engine.own_model.layers, KV_HEADS)
    return write_random_alphas(directory / "heads", "duo", sizes)


def engine_of(checkpoint: Path, heads: Path, **settings: Any) -> Engine:
    values = {"block_size": 4, "speculative_config": "none", "keep": f"duo:heads={heads},share=0"}
    return make_engine(checkpoint, **{**values, "max_model_len": 400, **settings})


def prompt(number: int, length: int | None = None) -> list[int]:
    return np.random.default_rng(number).integers(2, 97, length or LENGTHS[number]).tolist()


def requests(asks: dict[str, Any], name: str = "") -> list[Request]:
    return [
        ask(f"{name}{n}", prompt(n), asks=asks, seed=n, max_tokens=50, temperature=0.9)
        for n in range(len(LENGTHS))
    ]


def opened(heads: Path, **asked: Any) -> Any:
    text = KeptText(1000, (AttentionGroup(tuple(range(LAYERS)), KV_HEADS, None),), WIDTH)
    fields = {"share": 0.5, "sinks": SINKS, "window": WINDOW, "block": BLOCK, **asked}
    return make("keep", f"duo:heads={heads}").open(make_ask("keep/duo", fields), text)


def test_heads_that_stream_hold_the_first_and_the_latest_cells(full: Path, tmp_path: Path) -> None:
    heads = heads_of(full, tmp_path)
    keeping, streams = opened(heads), read_alphas(heads).lowest(0.5, [0, 1])
    assert streams.sum() == 2
    border = keeping.border(0)
    assert border == 96, "the first multiple of 32 with 64 cells between 2 and 16"
    places = np.arange(border, dtype=np.int32)
    for _ in range(4):
        tokens = int(places.max()) + 1
        cells = keeping.keep(0, places)
        wide = np.broadcast_to(places, (LAYERS, KV_HEADS, places.shape[-1]))
        kept = np.where(cells < 0, -1, np.take_along_axis(wide, np.maximum(cells, 0), -1))
        for layer, head in np.ndindex(LAYERS, KV_HEADS):
            own = kept[layer, head][kept[layer, head] >= 0]
            if not streams[layer, head]:
                assert np.array_equal(own, np.arange(tokens))
                continue
            assert np.array_equal(own[:SINKS], np.arange(SINKS))
            latest = len(own) - SINKS
            assert WINDOW <= latest < WINDOW + BLOCK_KEYS
            assert np.array_equal(own[SINKS:], np.arange(tokens - latest, tokens))
        border = keeping.border(tokens)
        more = np.broadcast_to(
            np.arange(tokens, border, dtype=np.int32), (LAYERS, KV_HEADS, border - tokens)
        )
        places = np.concatenate((kept, more), axis=-1)


def test_the_heads_that_stream_compute_what_they_do_by_a_pattern(
    full: Path, tmp_path: Path
) -> None:
    """Bit for bit: where the borders are those of blocks of keys, cells that were dropped are those
    that a pattern does not visit."""
    heads = heads_of(full, tmp_path)
    streams = np.argwhere(read_alphas(heads).lowest(0.5, [0, 1])).tolist()
    dropped = {"keep/duo": {"share": 0.5, "sinks": 64, "window": 64, "block": 64}}
    left_out = {"pattern/streaming": {"heads": streams, "sink_blocks": 1, "window_blocks": 2}}
    engine = engine_of(full, heads, max_num_batched_tokens=96)
    found = {}
    for name, asks in (("dropped", dropped), ("left out", left_out), ("whole", {})):
        logits: list[np.ndarray] = []
        engine.on_scored = lambda _, rows, into=logits: into.append(rows.copy())
        text = prompt(0, 330)
        complete(engine, [ask(name, text, asks=asks, max_tokens=0, prompt_logprobs=0)])
        found[name] = np.concatenate(logits)
    assert np.array_equal(found["dropped"], found["left out"])
    assert np.array_equal(found["dropped"][:192], found["whole"][:192])
    assert not np.array_equal(found["dropped"], found["whole"])


@pytest.mark.parametrize("budget", [5, 64, 256])
def test_no_batch_and_no_chunk_changes_a_token(
    checkpoint: Path, budget: int, tmp_path: Path
) -> None:
    heads = heads_of(checkpoint, tmp_path)
    both = [*requests(ASKED, "kept "), *requests({"keep/all": True}, "whole ")]
    alone = engine_of(checkpoint, heads, max_num_batched_tokens=3, max_num_seqs=1, reuse="none")
    expected: dict[Any, list[int]] = {}
    for request in both:
        expected |= complete(alone, [msgspec.structs.replace(request)])
    others: dict[int, dict[str, str]] = {
        64: {"speculative_config": "trigram"},
        256: {"keep": f"duo:heads={heads},share=0.75"},
    }
    engine = engine_of(checkpoint, heads, max_num_batched_tokens=budget, **others.get(budget, {}))
    plain = len(make_engine(checkpoint).state.groups)
    assert len(engine.state.groups) == plain + (budget == 256)
    for request in both:
        engine.add(request)
    deltas, steps = [], 0
    while engine.has_work:
        deltas += engine.step()
        steps += 1
        running = engine.scheduler.running
        if steps % 11 == 0 and steps < 100 and running:
            engine.scheduler.preempt(running[steps % len(running)])
        engine.check_integrity()
    assert tokens_of(deltas) == expected
    assert any(expected[f"kept {n}", 0] != expected[f"whole {n}", 0] for n in range(len(LENGTHS)))


def test_state_before_the_first_drop_is_shared(full: Path, tmp_path: Path) -> None:
    engine = engine_of(full, heads_of(full, tmp_path))
    complete(engine, requests({}, "whole "))
    reused = []
    for name in ("first", "second"):
        before = engine.total.prompt_tokens_reused
        complete(engine, [ask(name, prompt(0), asks=ASKED)])
        reused.append(engine.total.prompt_tokens_reused - before)
    assert reused == [0, 96]


def test_the_ledger_books_what_attention_need_not_do(full: Path, tmp_path: Path) -> None:
    engine = engine_of(full, heads_of(full, tmp_path), reuse="none")
    engine.add(ask("kept", prompt(0), asks=ASKED, max_tokens=1))
    bill = drain(engine)[-1].ledger
    assert bill is not None
    # At 96, 160 and 192 tokens a head that streams has dropped 64, 128 and 128 cells.
    keys = 64 * 32 * 2 + 128 * (200 - 160)
    two_of_four_heads = engine.cost.attention_flops(1, 1) / 2
    assert bill.saved["duo"].flops == keys * two_of_four_heads


def test_memory_is_freed_where_all_heads_stream(full: Path, tmp_path: Path) -> None:
    engine, most = engine_of(full, heads_of(full, tmp_path), reuse="none"), {}
    for share in (0.5, 1.0):
        asks = {"keep/duo": {**ASKED["keep/duo"], "share": share}}
        engine.add(ask("kept", prompt(0), asks=asks, max_tokens=100))
        held = 0
        while engine.has_work:
            engine.step()
            held = max(held, engine.stats().pages_used)
        most[share] = held
    assert most[0.5] == 300 // 4
    assert most[1.0] <= -(-(SINKS + WINDOW + BLOCK_KEYS - 1 + BLOCK) // 4)


def test_layers_all_of_whose_heads_stream_free_their_pages(full: Path, tmp_path: Path) -> None:
    """Where the engine's setting names the rule: to the same bits, in less memory."""
    sizes = ModelSizes(WIDTH, LAYERS, KV_HEADS)
    heads = tmp_path / "heads"
    write_alphas(heads, "duo", sizes, np.array([[0.3, 0.2], [0.9, 0.8]]))
    asked = ",".join(f"{name}={value}" for name, value in ASKED["keep/duo"].items())
    values = {"reuse": "none", "max_num_seqs": 4, "kv_cache_memory_bytes": 400 << 10}
    apart = engine_of(full, heads, keep=f"duo:heads={heads},{asked}", **values)
    together = engine_of(full, heads, **values)
    assert [group.layers for group in apart.state.groups] == [(0,), (1,)]
    assert [group.layers for group in together.state.groups] == [(0, 1)]
    assert apart.model.numerics_id == together.model.numerics_id
    said, held = [], []
    for engine in (apart, together):
        for request in (*requests(ASKED, "kept "), *requests({"keep/all": True}, "whole ")):
            engine.add(request)
        said.append(tokens_of(drain(engine)))
        engine.add(ask("kept", prompt(0), asks=ASKED, max_tokens=100))
        most = np.zeros(len(engine.state.groups), int)
        while engine.has_work:
            engine.step()
            used = [g.pages for g in engine.state.groups]
            most = np.maximum(most, np.subtract(used, engine.state.free_pages()))
        held.append(most)
    assert said[0] == said[1]
    assert held[1] == [75]
    assert held[0][1] == 75
    assert held[0][0] <= -(-(SINKS + WINDOW + BLOCK_KEYS - 1 + BLOCK) // 4)


def test_a_pool_is_shared_out_by_what_layers_hold(full: Path, tmp_path: Path) -> None:
    """The same memory holds longer texts; one that keeps everything is refused if it does not
    fit."""
    heads = tmp_path / "heads"
    sizes = ModelSizes(WIDTH, LAYERS, KV_HEADS)
    write_alphas(heads, "duo", sizes, np.array([[0.3, 0.2], [0.9, 0.8]]))
    asked = "share=0.5,sinks=2,window=16,block=16"
    values = {"max_num_seqs": 1, "kv_cache_memory_bytes": 160 << 10, "max_model_len": 250}
    values |= {"max_num_batched_tokens": 32}
    engine = engine_of(full, heads, keep=f"duo:heads={heads},{asked}", **values)
    streaming, looking = (group.pages for group in engine.state.groups)
    assert streaming < looking // 2
    complete(engine, [ask("kept", prompt(0), max_tokens=45)])
    with pytest.raises(InvalidRequest, match=r"holds 1.* than the engine's own setting"):
        engine.add(ask("whole", prompt(0), asks={"keep/all": True}, max_tokens=45))


def test_the_lowest_alphas_stream_and_of_equal_ones_the_first() -> None:
    alphas = np.array([[0.5, 0.1], [0.5, 0.9], [0.2, 0.5]], np.float32)
    heads = HeadAlphas("duo", ModelSizes(8, 3, 2), alphas, {})
    assert np.argwhere(heads.lowest(0.5, range(3))).tolist() == [[0, 0], [0, 1], [2, 0]]
    assert np.argwhere(heads.lowest(0.5, [1, 2])).tolist() == [[1, 0], [2, 0]]
    assert not heads.lowest(0.0, range(3)).any()
    assert heads.lowest(1.0, range(3)).all()


def test_heads_of_another_model_are_refused(full: Path, tmp_path: Path) -> None:
    heads = write_random_alphas(tmp_path / "others", "duo", ModelSizes(64, 3, 2))
    with pytest.raises(ConfigError, match=r"of hidden size 64, 3 layers .* `ockham train keep"):
        engine_of(full, heads)


def test_wrong_values_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share must be from 0 to 1, got 2"):
        make("keep", "duo:share=2")
    with pytest.raises(InvalidRequest, match="window must be from 1"):
        make_ask("keep/duo", {"window": 0})
    with pytest.raises(ModelError, match="holds heads of locret, not of duo"):
        make("keep", f"duo:heads={PACKAGED / 'locret-lab'}")
    heads = write_random_alphas(tmp_path / "heads", "kvzap", ModelSizes(8, 2, 2))
    with pytest.raises(ModelError, match="has no tensor 'weights'"):
        make("keep", f"kvzap:heads={heads}")
