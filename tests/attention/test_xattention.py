"""Blocks of a prompt choose together what they visit, whoever shares it and however it is cut."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.attention.xattention import XAttentionAsk, XAttentionOptions
from ockham.core.choices import TOGETHER
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers import serving
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral

GROUPS = [AttentionGroup((0, 2), 2, None), AttentionGroup((1, 3), 4, 100)]
VOCABULARY, LONGEST = 97, 512
ask = partial(serving.ask, max_tokens=20)
FIELDS = {"threshold": 0.3, "sink_blocks": 0, "last_tokens": 40}


def opened(tokens: int, **fields: Any) -> Any:
    asked = make_ask("pattern/xattention", fields or True)
    return make("pattern", "xattention").open(asked, GROUPS).for_prompt(tokens)


def test_whole_blocks_choose_until_the_prompts_end() -> None:
    pattern = opened(2000, threshold=0.8, last_tokens=100, dense_layers=1, stride=8)
    assert pattern.exact_until == pattern.whole_until == 1900 // BLOCK_KEYS * BLOCK_KEYS
    choice = pattern.choice(0)
    assert choice.chooser == TOGETHER
    assert choice.layers == (False, True)
    assert (choice.first, choice.until) == (0, pattern.whole_until)
    assert (choice.threshold, choice.stride, choice.sinks, choice.local) == (0.8, 8, 1, 1)
    assert pattern.choice(1) is None, "a window bounds what its rows read"
    assert pattern.visits(0, 5) is None
    assert opened(100).whole_until == 0
    assert opened(100).choice(0) is None


def test_layers_that_are_all_dense_are_no_pattern() -> None:
    asked = make_ask("pattern/xattention", {"dense_layers": 3})
    assert make("pattern", "xattention").open(asked, GROUPS) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"share": float("nan")}, r"share must lie in \[0, 1\], got nan"),
        ({"stride": 4}, "stride must be 8 or 16, got 4"),
        ({"sink_blocks": -1}, "sink_blocks must be at least 0, got -1"),
        ({"dense_layers": -1}, "dense_layers must be at least 0, got -1"),
        ({"last_tokens": 0}, "last_tokens must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        XAttentionAsk(**fields)
    with pytest.raises(ConfigError, match=words):
        XAttentionOptions(**fields)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "block_size": 8, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def wanted() -> list[Request]:
    """Prompts that begin alike and end at different places, so that what is dense for one is not
    for another; one without the pattern, and one that is scored."""
    text = np.random.default_rng(3).integers(2, VOCABULARY, LONGEST).tolist()
    other = np.random.default_rng(4).integers(2, VOCABULARY, LONGEST).tolist()
    prompts = [text[:280], text[:470], text[:350] + other[:90], text[:170], text[:480], text[:333]]
    return [
        ask(
            str(number),
            prompt,
            asks={"pattern/xattention": FIELDS} if number != 4 else {},
            temperature=0.7 * (number % 2),
            seed=number,
            prompt_logprobs=1 if number == 5 else None,
        )
        for number, prompt in enumerate(prompts)
    ]


Said = tuple[dict[tuple[str, int], list[int]], list[Any]]


def said(deltas: list[Delta]) -> Said:
    """The tokens, and what the prompt that is scored says of its own."""
    scored = [d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None]
    return tokens_of(deltas), scored


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> Said:
    engine = make_engine(checkpoint, reuse="none", max_num_batched_tokens=LONGEST, threads=1)
    deltas: list[Delta] = []
    for request in wanted():
        engine.add(request)
        deltas += drain(engine)
    return said(deltas)


def test_it_changes_something(checkpoint: Path, alone: Said) -> None:
    engine = make_engine(checkpoint)
    for request in wanted():
        request.asks = {}
        engine.add(request)
    plain = tokens_of(drain(engine))
    assert plain["4", 0] == alone[0]["4", 0]
    assert plain != alone[0]


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 29}, {"block_size": 64, "max_num_seqs": 2}]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_shared_prefixes_chunks_and_preemption_change_no_token(
    checkpoint: Path, alone: Said, settings: dict[str, Any], reverse: bool
) -> None:
    """One after the other, so that each may go on from what those before it have left; then all
    at once, in chunks, some of them preempted."""
    engine = make_engine(checkpoint, threads=2, **settings)
    requests = wanted()[:: -1 if reverse else 1]
    found: list[Delta] = []
    reused = 0
    for request in requests:
        engine.add(request)
        deltas = drain(engine)
        found += deltas
        ledger = next(d.ledger for d in reversed(deltas) if d.ledger is not None)
        reused += ledger.prompt_tokens_reused
    assert said(found) == alone
    assert reused > 200, "prefixes are shared up to where the first prompt's end begins"
    engine = make_engine(checkpoint, threads=2, **settings)
    for request in requests:
        engine.add(request)
    together: list[Delta] = []
    for step in range(60):
        if step in (3, 10, 25) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        together += engine.step()
        engine.check_integrity()
    assert said(together + drain(engine)) == alone


def test_a_prompt_beside_those_that_decode_gets_a_block_in_the_smallest_steps(
    checkpoint: Path,
) -> None:
    """Steps of 64 rows: while others decode, the blocks of a prompt still find room."""
    engine = make_engine(checkpoint, max_num_batched_tokens=64)
    for number in range(3):
        engine.add(ask(f"short {number}", [5, 6, number + 2], max_tokens=200, ignore_eos=True))
    for _ in range(5):
        engine.step()
    engine.add(ask("long", [7] * 480, asks={"pattern/xattention": FIELDS}, max_tokens=4))
    steps = 0
    while not any(d.request_id == "long" and d.finish_reason for d in engine.step()):
        steps += 1
        assert steps < 40, "it is not starved"
    assert engine.has_work
    drain(engine)


def test_what_is_left_out_is_saved_and_what_it_takes_is_paid(checkpoint: Path) -> None:
    """The bill of blocks that visit themselves and the heaviest one beside: 2 layers of 2 heads of
    8 elements, with 2 query heads each."""
    engine = make_engine(checkpoint, reuse="none")
    fields = {"threshold": 0.0, "sink_blocks": 0, "last_tokens": 1}
    prompt = np.random.default_rng(1).integers(2, VOCABULARY, 6 * BLOCK_KEYS + 5).tolist()
    ledgers = []
    for asks in ({}, {"pattern/xattention": fields}):
        engine.add(ask("a", prompt, asks=asks))
        ledgers.append(drain(engine)[-1].ledger)
    full, own = ledgers
    assert full is not None
    assert own is not None
    saved = own.saved["xattention"]
    left_out = sum(BLOCK_KEYS * block * BLOCK_KEYS for block in range(6))
    products = sum(BLOCK_KEYS * (block + 1) * BLOCK_KEYS // 32 for block in range(1, 6))
    assert saved.flops == 2 * (left_out - products) * 2 * 4 * 2 * 8
    assert own.flops + saved.flops == full.flops
    # Keys are read to choose, in both layers and of both heads, in fp32: nothing else is read, but
    # for what the last rows see.
    assert own.state_read_bytes + saved.bytes >= full.state_read_bytes


def test_layers_with_a_window_are_left_as_they_are(tmp_path: Path) -> None:
    engine = make_engine(tiny_mistral(tmp_path, window=150))
    engine.add(ask("a", [7] * 480, asks={"pattern/xattention": FIELDS}))
    ledger = drain(engine)[-1].ledger
    assert ledger is not None
    assert "xattention" not in ledger.saved


def test_approximate_reuse_beside_it_shares_nothing(checkpoint: Path) -> None:
    """What is taken over cuts blocks anywhere, so that they are not what others would compute."""
    prompt = np.random.default_rng(6).integers(2, VOCABULARY, 400).tolist()
    asks = {"pattern/xattention": FIELDS}
    engine = make_engine(checkpoint, reuse="prefix,edit")
    engine.add(ask("first", prompt, asks=asks))
    drain(engine)
    moved = prompt[150:] + prompt[:150]
    engine.add(ask("edit", moved, asks={**asks, "reuse/edit": True}))
    drain(engine)
    alone = make_engine(checkpoint)
    for each in (alone, engine):
        each.add(ask("again", moved, asks=asks))
    assert tokens_of(drain(alone)) == tokens_of(drain(engine))


def test_a_setting_is_what_requests_get_that_ask_for_nothing(checkpoint: Path) -> None:
    setting = "xattention:threshold=0.3,sink_blocks=0,last_tokens=40"
    prompt = wanted()[1].prompt_token_ids
    found = []
    for asks, pattern in (
        ({"pattern/xattention": FIELDS}, "full"),
        ({}, setting),
        ({"pattern/full": True}, setting),
    ):
        engine = make_engine(checkpoint, attention_pattern=pattern)
        engine.add(ask("a", prompt, asks=asks, temperature=0))
        found.append(tokens_of(drain(engine))["a", 0])
    assert found[0] == found[1] != found[2]
