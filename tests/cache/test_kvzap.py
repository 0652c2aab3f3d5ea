"""`kvzap`: cells stay whose learned score reaches a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.cache.keep.learned import PACKAGED, score
from ockham.core.errors import ConfigError, InvalidRequest, ModelError
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup, KeptText, OwnRows, Seen
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.model.checkpoint.keep_files import read_heads
from tests.helpers import serving
from tests.helpers.serving import ask, drain, tokens_of
from tests.helpers.tiny import tiny_llama

LAB = PACKAGED / "kvzap-lab"
LAYERS, KV_HEADS, WIDTH = 8, 2, 256
TEXT = KeptText(1000, (AttentionGroup(tuple(range(LAYERS)), KV_HEADS, None),), WIDTH)
WINDOW, SINKS, BLOCK = 16, 2, 32


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def opened(**fields: Any) -> Any:
    asked = {"share": 0.3, "window": WINDOW, "sinks": SINKS, "block": BLOCK, **fields}
    return make("keep", "kvzap").open(make_ask("keep/kvzap", asked), TEXT)


def see(keeping: Any, tokens: int, chunks: int) -> None:
    """Let it see rows of hidden states, in so many chunks."""
    x = [rows(tokens, layer) for layer in range(LAYERS)]
    for places in np.array_split(np.arange(tokens, dtype=np.int32), chunks):
        own = OwnRows(places, places, 1)
        wanted = keeping.wants(own)
        hidden = {after: x[after + 1][places] for after in wanted.hidden}
        nothing = np.empty((0, 0), np.float32)
        keeping.saw(own, Seen(False, wanted.rows, np.empty((0, 0), np.int32), nothing, hidden, {}))


def test_a_row_s_score_depends_on_no_other_row() -> None:
    heads, x = read_heads(LAB), rows(70)
    whole = score(heads, 3, x)
    for start, stop in [(0, 1), (1, 18), (18, 70)]:
        assert np.array_equal(score(heads, 3, x[start:stop]), whole[start:stop])


def test_what_stays_is_what_scores_above_and_what_is_near() -> None:
    keeping, tokens = opened(), 320
    see(keeping, tokens, 3)
    other = opened()
    see(other, tokens, 11)
    places = np.arange(tokens, dtype=np.int32)
    cells = keeping.keep(0, places)
    assert np.array_equal(cells, other.keep(0, places))
    assert cells.shape[:2] == (LAYERS, KV_HEADS)
    threshold = read_heads(LAB).threshold(0.3)
    dropped = 0
    for layer in range(LAYERS):
        scores = score(read_heads(LAB), layer, rows(tokens, layer)).T
        for head in range(KV_HEADS):
            own = cells[layer, head]
            own = own[own >= 0]
            assert (np.diff(own) > 0).all()
            gone = np.setdiff1d(places, own)
            assert len(gone) % BLOCK_KEYS == 0
            assert not len(gone) or scores[head, gone].max() < threshold
            assert set(range(SINKS)) | set(range(tokens - WINDOW, tokens)) <= set(own.tolist())
            assert (scores[head, own[SINKS:-WINDOW]] < threshold).sum() < BLOCK_KEYS
            dropped += len(gone)
    assert dropped
    # Later on a head holds less, and drops whole blocks of that.
    see(keeping, tokens + 128, 2)
    kept = np.where(cells < 0, -1, cells)
    more = np.broadcast_to(np.arange(tokens, tokens + 128, dtype=np.int32), (*kept.shape[:2], 128))
    again = keeping.keep(0, np.concatenate((kept, more), axis=-1))
    assert ((again < 0).sum(axis=-1) % BLOCK_KEYS == 0).all()


def engine_of(**settings: Any) -> Engine:
    values: dict[str, Any] = {"max_model_len": 512, "speculative_config": "none", **settings}
    return serving.make_engine("lab", **values)  # type: ignore[arg-type]


def wanted() -> list[Request]:
    rng = np.random.default_rng(4)
    asked = {"keep/kvzap": {"share": 0.2, "window": WINDOW, "sinks": SINKS, "block": BLOCK}}
    return [
        ask(
            str(number),
            rng.integers(2, 4096, length).tolist(),
            asks=asked if number % 2 == 0 else {},
            max_tokens=40,
            n=1 + number // 3,
            temperature=0.8 * (number % 2),
            seed=number,
        )
        for number, length in enumerate((300, 200, 150, 100))
    ]


def test_no_batch_no_chunk_and_no_preemption_changes_a_token() -> None:
    alone = engine_of(max_num_seqs=2, reuse="none")
    expected: dict[Any, list[int]] = {}
    bills = []
    for request in wanted():
        alone.add(request)
        deltas = drain(alone)
        expected |= tokens_of(deltas)
        bills.append(next(d.ledger for d in deltas if d.ledger is not None))
    assert bills[0].saved["kvzap"].flops > 0
    assert "kvzap" not in bills[1].saved
    engine = engine_of(max_num_batched_tokens=48)
    for request in wanted():
        engine.add(request)
    deltas: list[Delta] = []
    for step in range(60):
        if step in (12, 40) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        deltas += engine.step()
    assert tokens_of(deltas + drain(engine)) == expected


def test_a_text_that_might_not_fit_is_refused_by_the_rule_s_name() -> None:
    """A threshold promises no number of cells; a rule that does lets the same text in."""
    engine = engine_of(
        keep="recent:window=64,block=32", max_model_len=2000, kv_cache_memory_bytes=3 << 20
    )
    text = [7] * 1500
    with pytest.raises(InvalidRequest, match=r"1519 tokens, which kvzap as it is asked for may"):
        engine.add(ask("a", text, asks={"keep/kvzap": True}))
    with pytest.raises(InvalidRequest, match="1519 tokens, but the pool"):
        engine.add(ask("a", text, asks={"keep/all": True}))
    engine.add(ask("a", text, asks={"keep/locret": {"budget": 100, "window": 32}}))
    engine.abort("a")


def test_heads_of_another_model_are_refused(tmp_path: Path) -> None:
    engine = serving.make_engine(tiny_llama(tmp_path))
    with pytest.raises(InvalidRequest, match=r"hidden size 32, 2 layers .* `ockham train keep"):
        engine.add(ask("a", [3] * 20, asks={"keep/kvzap": True}))
    with pytest.raises(ConfigError, match="this one has hidden size 32"):
        serving.make_engine(tmp_path, keep=f"kvzap:heads={LAB}")


@pytest.mark.parametrize("rule", ["kvzap", "locret", "duo"])
@pytest.mark.parametrize("layers", [(0, 2, 3), (1, 2, 3)])
def test_a_model_some_of_whose_layers_do_not_attend_is_refused(
    rule: str, layers: tuple[int, ...]
) -> None:
    """Heads are of all layers, in order."""
    text = KeptText(1000, (AttentionGroup(layers, KV_HEADS, None),), WIDTH)
    with pytest.raises(InvalidRequest, match=f"{rule} needs layers that all attend, "):
        make("keep", rule).open(make_ask(f"keep/{rule}", True), text)


def test_wrong_values_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share must be from 0 to 1, got 2"):
        make("keep", "kvzap:share=2")
    with pytest.raises(InvalidRequest, match="window must be from 1"):
        make_ask("keep/kvzap", {"window": 0})
    with pytest.raises(ModelError, match=r"keep.json cannot be read"):
        make("keep", f"kvzap:heads={tmp_path}")
    (tmp_path / "keep.json").write_text('{"version": 2, "rule": "kvzap"}')
    with pytest.raises(ModelError, match="train it anew"):
        make("keep", f"kvzap:heads={tmp_path}")


def test_heads_of_another_rule_are_refused() -> None:
    with pytest.raises(ModelError, match="holds heads of locret, not of kvzap"):
        make("keep", f"kvzap:heads={PACKAGED / 'locret-lab'}")


def test_a_fork_scores_its_own_tokens() -> None:
    keeping = opened()
    see(keeping, 64, 2)
    twin, fresh = keeping.fork(32), keeping.fresh()
    see(keeping, 128, 1)
    assert twin.scores(0, np.arange(32, dtype=np.int32)[None, None]).shape[-1] == 32
    with pytest.raises(IndexError):
        fresh.scores(0, np.zeros((1, 1, 1), np.int32))
