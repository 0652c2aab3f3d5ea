"""Deep layers read all but a prompt's end by its first and latest blocks, whoever shares it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.attention.triangle import TriangleAsk, TriangleOptions
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup
from ockham.core.visits import BLOCK_KEYS, EVERY
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers import serving
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama

GROUPS = [AttentionGroup((0, 2), 2, None), AttentionGroup((1, 3), 4, 100)]
VOCABULARY, LONGEST = 97, 500
ask = partial(serving.ask, max_tokens=20)
FIELDS = {"dense_share": 0.5, "sink_blocks": 0, "window_blocks": 1, "last_tokens": 40}


def opened(tokens: int, **fields: Any) -> Any:
    asked = make_ask("pattern/triangle", fields or True)
    return make("pattern", "triangle").open(asked, GROUPS).for_prompt(tokens)


def test_deep_layers_see_sinks_and_a_window_until_the_prompts_end() -> None:
    pattern = opened(2000, sink_blocks=1, window_blocks=2, last_tokens=100)
    assert pattern.exact_until == 1900 // BLOCK_KEYS * BLOCK_KEYS
    for block in (0, 2, 29, 31, 100):
        assert pattern.visits(0, block) is None, "too early, or the prompt's end and behind it"
    for group, of in ((0, [[EVERY] * 2, [0] * 2]), (1, [[EVERY] * 4, [0] * 4])):
        visits = pattern.visits(group, 28)
        assert visits.of.tolist() == of
        assert [each.tolist() for each in visits.lists] == [[0, 27, 28]]


def test_layers_that_are_all_dense_are_no_pattern() -> None:
    asked = make_ask("pattern/triangle", {"dense_share": 1.0})
    assert make("pattern", "triangle").open(asked, GROUPS) is None
    assert opened(2000, dense_share=0.0).visits(0, 20).of.max() == 0
    assert opened(100).exact_until == 0


def test_the_share_goes_by_its_older_name_too() -> None:
    older = make("pattern", "triangle:dense_layers=0.25").open(TriangleAsk(), GROUPS)
    newer = make("pattern", "triangle:dense_share=0.25").open(TriangleAsk(), GROUPS)
    asked = make("pattern", "triangle").open(TriangleAsk(dense_layers=0.25), GROUPS)
    for each in (older, asked):
        assert [of.tolist() for of in each.of_groups] == [of.tolist() for of in newer.of_groups]
    with pytest.raises(InvalidRequest, match="give one of them"):
        TriangleAsk(dense_layers=0.25, dense_share=0.25)
    with pytest.raises(ConfigError, match="give one of them"):
        TriangleOptions(dense_layers=0.25, dense_share=0.25)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dense_share": 1.5}, "a share of the layers, from 0 to 1, got 1.5"),
        ({"dense_layers": -0.5}, "dense_layers is a share of the layers, from 0 to 1, got -0.5"),
        ({"sink_blocks": -1}, "sink_blocks must be at least 0, got -1"),
        ({"window_blocks": 0}, "window_blocks must be at least 1, got 0"),
        ({"last_tokens": 0}, "last_tokens must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        TriangleAsk(**fields)
    with pytest.raises(ConfigError, match=words):
        TriangleOptions(**fields)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "block_size": 8, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def wanted() -> list[Request]:
    """Prompts that begin alike and end at different places, so that what is dense for one is not
    for another; and one without the pattern."""
    text = np.random.default_rng(3).integers(2, VOCABULARY, LONGEST).tolist()
    other = np.random.default_rng(4).integers(2, VOCABULARY, LONGEST).tolist()
    prompts = [text[:210], text[:400], text[:300] + other[:50], text[:130], text[:410]]
    return [
        ask(
            str(number),
            prompt,
            asks={"pattern/triangle": FIELDS} if number != 4 else {},
            temperature=0.7 * (number % 2),
            seed=number,
        )
        for number, prompt in enumerate(prompts)
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
@pytest.mark.parametrize("reverse", [False, True])
def test_shared_prefixes_chunks_and_preemption_change_no_token(
    checkpoint: Path, alone: Any, settings: dict[str, Any], reverse: bool
) -> None:
    """One after the other, so that each may go on from what those before it have left; then all
    at once, in chunks, some of them preempted."""
    engine = make_engine(checkpoint, threads=2, **settings)
    requests = wanted()[:: -1 if reverse else 1]
    found: dict[tuple[str, int], list[int]] = {}
    reused = 0
    for request in requests:
        engine.add(request)
        deltas = drain(engine)
        found |= tokens_of(deltas)
        reused += deltas[-1].ledger.prompt_tokens_reused if deltas[-1].ledger else 0
    assert found == alone
    assert reused > 200, "prefixes are shared up to where the first prompt's end begins"
    engine = make_engine(checkpoint, threads=2, **settings)
    for request in requests:
        engine.add(request)
    together: list[Delta] = []
    for step in range(60):
        if step in (10, 25) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        together += engine.step()
    assert tokens_of(together + drain(engine)) == alone


def test_what_is_generated_reads_all_keys(checkpoint: Path) -> None:
    """The bill: 2 layers, one deep, of 2 heads of 8 elements, with 2 query heads each."""
    engine = make_engine(checkpoint, reuse="none")
    prompt = 300
    engine.add(ask("a", [7] * prompt, asks={"pattern/triangle": FIELDS}))
    saved = drain(engine)[-1].ledger.saved["triangle"]  # type: ignore[union-attr]
    dense_from = (prompt - 40) // BLOCK_KEYS * BLOCK_KEYS
    left_out = sum(key // BLOCK_KEYS * BLOCK_KEYS for key in range(dense_from))
    assert saved.flops == 2 * left_out * 4 * 2 * 8
