"""Streaming heads see the first blocks and the latest ones, in any batch, chunk and draft."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.attention.streaming import StreamingAsk, StreamingOptions
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import find, make, make_ask, make_asks
from ockham.core.seams import AttentionGroup
from ockham.core.visits import BLOCK_KEYS, EVERY
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers import serving
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY, LONGEST = 97, 500
GROUPS = [AttentionGroup((0, 2), 2, None), AttentionGroup((1,), 4, 100)]
ask = partial(serving.ask, max_tokens=70)


def asks(**fields: Any) -> dict[str, Any]:
    return {"pattern/streaming": {"heads": 0.5, "window_blocks": 2, **fields}}


def opened(setting: str = "streaming", **fields: Any) -> Any:
    ask = make_ask("pattern/streaming", fields or True)
    return make("pattern", setting).open(ask, GROUPS)


def test_a_head_sees_its_sinks_and_its_window() -> None:
    pattern = opened(heads="all", sink_blocks=2, window_blocks=3)
    for block in range(5):
        assert pattern.visits(0, block) is None, "all blocks are among them"
    for block in (5, 6, 40):
        visits = pattern.visits(0, block)
        (blocks,) = visits.lists
        assert blocks.tolist() == [0, 1, block - 2, block - 1, block]
        assert not visits.of.any()
    (blocks,) = opened(sink_blocks=0, window_blocks=1).visits(1, 9).lists
    assert blocks.tolist() == [9]


def test_heads_are_named_by_share_or_by_place() -> None:
    def streaming(setting: str = "streaming", **fields: Any) -> list[list[list[bool]]]:
        pattern = opened(setting, **fields)
        found = []
        for group, of in enumerate(GROUPS):
            visits = pattern.visits(group, 30)
            shape = len(of.layers), of.kv_heads
            found.append((np.full(shape, EVERY) if visits is None else visits.of) == 0)
        return [each.tolist() for each in found]

    half = [[[False, True], [False, True]], [[False, True, False, True]]]
    assert streaming() == streaming(heads=0.5) == streaming("streaming:heads=0.5") == half
    assert all(np.all(each) for each in streaming(heads="all"))
    assert sum(int(np.sum(each)) for each in streaming(heads=0.01)) == 1
    places = [[[False, True], [True, False]], [[False] * 4]]
    assert streaming(heads=[[0, 1], [2, 0]]) == streaming("streaming:heads=0/1+2/0") == places


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heads": 0}, "a share above 0"),
        ({"heads": 1.5}, "got 1.5"),
        ({"heads": "some"}, "got 'some'"),
        ({"heads": "1/2+3"}, "layer, head"),
        ({"heads": []}, "layer, head"),
        ({"heads": [[0, -1]]}, "layer, head"),
        ({"sink_blocks": -1}, "sink_blocks must be at least 0, got -1"),
        ({"window_blocks": 0}, "at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        StreamingAsk(**fields)
    with pytest.raises(ConfigError, match=words):
        StreamingOptions(**fields)


def test_a_head_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path)
    engine = serving.make_engine(path)
    with pytest.raises(InvalidRequest, match="head 2 of layer 0; this model has layers 0 to 1"):
        engine.add(ask("a", [5, 6], asks=asks(heads=[[0, 2]])))
    with pytest.raises(ConfigError, match="head 0 of layer 7"):
        serving.make_engine(path, attention_pattern="streaming:heads=7/0")
    assert not engine.has_work


def test_the_technique_says_what_it_is() -> None:
    technique = find("pattern", "streaming")
    assert not technique.exact
    assert technique.cls.shares  # type: ignore[attr-defined]
    assert make_asks({"pattern/streaming": True}) == {"pattern/streaming": StreamingAsk()}


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Path:
    directory: Path = tmp_path_factory.mktemp("tiny")
    if request.param == "full":
        return tiny_llama(directory)
    return tiny_mistral(directory, window=200)


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "block_size": 8, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def wanted() -> list[Request]:
    """Long and short, greedy and sampled, streaming in different ways and not at all."""
    rng = np.random.default_rng(3)
    ways: list[dict[str, Any]] = [asks(), {}, asks(heads="all", sink_blocks=0, window_blocks=1)]
    return [
        ask(
            str(number),
            rng.integers(2, VOCABULARY, length).tolist(),
            asks=ways[number % 3],
            temperature=0.7 * (number % 2),
            seed=number,
        )
        for number, length in enumerate((400, 390, 210, 64, 310, 127))
    ]


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict[tuple[str, int], list[int]]:
    engine = make_engine(checkpoint, reuse="none", max_num_batched_tokens=LONGEST, threads=1)
    found: dict[tuple[str, int], list[int]] = {}
    for request in wanted():
        engine.add(request)
        found |= tokens_of(drain(engine))
    return found


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 29}, {"block_size": 64}])
def test_company_chunks_preemption_and_threads_change_no_token(
    checkpoint: Path, alone: dict[tuple[str, int], list[int]], settings: dict[str, Any]
) -> None:
    engine = make_engine(checkpoint, threads=2, **settings)
    for request in wanted():
        engine.add(request)
    deltas: list[Delta] = []
    for step in range(200):
        if step in (40, 90) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        deltas += engine.step()
    assert tokens_of(deltas + drain(engine)) == alone


def test_drafts_change_no_token(checkpoint: Path, alone: dict[tuple[str, int], list[int]]) -> None:
    engine = make_engine(checkpoint)
    texts = [[*r.prompt_token_ids, *alone[r.request_id, 0]] for r in wanted()]
    engine.speculation = foretelling(VOCABULARY, texts, most=12, seed=2, right=0.9, branches=3)
    for request in wanted():
        engine.add(request)
    assert tokens_of(drain(engine)) == alone
    assert engine.speculation.counters.accepted > 50


def test_the_ledger_books_the_keys_that_streaming_heads_leave_out(tmp_path: Path) -> None:
    """Two layers, heads of 8 elements, two query heads to each of two key-value heads."""
    engine = make_engine(tiny_llama(tmp_path), reuse="none")
    prompt, new = 300, 70
    engine.add(ask("a", [7] * prompt, asks=asks(heads=[[1, 0]]), max_tokens=new))
    deltas = drain(engine)
    saved = deltas[-1].ledger.saved["streaming"] if deltas[-1].ledger else None
    left_out = sum(
        max(0, key // BLOCK_KEYS - 1 - 1) * BLOCK_KEYS for key in range(prompt + new - 1)
    )
    assert saved is not None
    assert saved.flops == left_out * 4 * 2 * 8
    # A decode reads anew what it sees; a prefill in one step each key that some row sees, once.
    decoded = sum((key // BLOCK_KEYS - 2) * BLOCK_KEYS for key in range(prompt, prompt + new - 1))
    assert saved.bytes == decoded * 2 * 8 * 4
