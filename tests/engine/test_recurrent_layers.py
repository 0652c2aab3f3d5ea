"""Layers that do not attend, in the engine: turns of a chat go on from what they keep, and what
such layers cannot do is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.cache.store import tiers as tiers_module
from ockham.core.arrays import Bytes
from ockham.core.errors import ConfigError
from ockham.core.units import readable
from ockham.engine.engine import Engine
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import ask, drain, make_engine, serve, tokens_of
from tests.helpers.tiny import (
    tiny_based,
    tiny_falcon_h1,
    tiny_granite_hybrid,
    tiny_lfm2,
    tiny_llama,
    tiny_matmul_free,
    tiny_qwen3_5,
)

MODELS: dict[str, Callable[[Path], Path]] = {
    "convolutions": tiny_lfm2,
    "delta rules": tiny_qwen3_5,
    "state spaces": tiny_granite_hybrid,
    "linear recurrences": tiny_matmul_free,
    "linear attention": tiny_based,
    "state spaces beside attention": tiny_falcon_h1,
}
ATTENDING = [name for name in MODELS if name not in ("linear recurrences", "linear attention")]
"""Those that have layers that attend to the whole text, too."""
CHUNK = 32


@pytest.fixture(params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MODELS[request.param](tmp_path / "model")


def engine_of(checkpoint: Path, **settings: object) -> Engine:
    values = {"backend": "cpu", "block_size": 8, "max_num_seqs": 4, "max_num_batched_tokens": CHUNK}
    return make_engine(checkpoint, **{**values, **settings})


def prompt(count: int) -> list[int]:
    found: list[int] = np.random.default_rng(3).integers(2, 90, count).tolist()
    return found


def said(engine: Engine, name: str, tokens: list[int]) -> tuple[list[int], int]:
    """What the model goes on with, and how many tokens of the prompt were held."""
    before = engine.ledger.prompt_tokens_reused
    engine.take(ask(name, tokens))
    answer = tokens_of(drain(engine))[name, 0]
    return answer, engine.ledger.prompt_tokens_reused - before


def test_a_turn_goes_on_from_the_one_before(checkpoint: Path) -> None:
    engine = engine_of(checkpoint)
    first = prompt(101)
    answer, held = said(engine, "first", first)
    assert held == 0
    second = [*first, *answer, 7, 8, 9]
    again, held = said(engine, "second", second)
    assert held == len(first) + len(answer) - 1  # the last token was not computed
    alone = engine_of(checkpoint, reuse="none", speculative_config="none")
    assert said(alone, "alone", second)[0] == again


def test_a_prompt_that_leaves_another_goes_on_from_the_end_of_a_chunk(checkpoint: Path) -> None:
    """What convolutions and states left between those ends is not kept."""
    engine = engine_of(checkpoint, checkpoint_tokens=CHUNK)
    first = prompt(101)
    said(engine, "first", first)
    other = [*first[:80], *(90 - token for token in first[80:])]
    answer, held = said(engine, "other", other)
    assert held == 80 - 80 % CHUNK
    alone = engine_of(checkpoint, reuse="none", speculative_config="none")
    assert said(alone, "alone", other)[0] == answer


@pytest.mark.parametrize(("every", "held"), [(1, 160), (64, 128), (100, 128), (1000, 0)])
def test_a_setting_says_how_many_tokens_lie_between_checkpoints(
    checkpoint: Path, every: int, held: int
) -> None:
    engine = engine_of(checkpoint, checkpoint_tokens=every)
    assert engine.model.plan.checkpoint_tokens == max(8, every)
    first = prompt(200)
    said(engine, "first", first)
    other = [*first[:170], *(90 - token for token in first[170:])]
    assert said(engine, "other", other)[1] == held


def test_checkpoints_are_told_of(checkpoint: Path) -> None:
    plan = engine_of(checkpoint, checkpoint_tokens=64).model.plan
    rows = [layout for layout in engine_of(checkpoint).model.layouts if not layout.spec.attends]
    assert plan.checkpoint_bytes == sum(layout.page_bytes for layout in rows)
    room = 4 * 256 // 64  # of as many texts of the greatest length as run at a time
    told = f"room for {room} checkpoints of {readable(plan.checkpoint_bytes)}, one every 64 tokens"
    assert told in plan.describe()
    assert plan.numbers()["checkpoint_tokens"] == 64
    with pytest.raises(ConfigError, match="checkpoint_tokens must be at least 1, got 0"):
        engine_of(checkpoint, checkpoint_tokens=0)


def test_a_turn_goes_on_after_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"kv_store": str(tmp_path / "store"), "kv_store_bytes": 64 << 20}
    engine = engine_of(checkpoint, **settings)
    first = prompt(101)
    answer, _ = said(engine, "first", first)
    engine.close()
    del engine
    again = engine_of(checkpoint, **settings)
    second = [*first, *answer, 7, 8, 9]
    found, held = said(again, "second", second)
    assert held >= 96  # whole pages are stored
    again.close()
    alone = engine_of(checkpoint, reuse="none", speculative_config="none")
    assert said(alone, "alone", second)[0] == found


def test_prompts_that_part_leave_a_checkpoint_there(checkpoint: Path) -> None:
    """The second prompt computes what it shares with the first, the third goes on from there."""
    engine = engine_of(checkpoint, checkpoint_tokens=1000)
    shared = prompt(150)
    heads = [said(engine, str(n), [*shared, 10 + n, *prompt(40)])[1] for n in range(3)]
    assert heads == [0, 0, 144]  # to the end of the last page that is shared
    answer = said(engine, "again", [*shared, 13, *prompt(40)])[0]
    alone = engine_of(checkpoint, reuse="none", speculative_config="none")
    assert said(alone, "alone", [*shared, 13, *prompt(40)])[0] == answer


def test_who_waits_for_a_shared_prefix_goes_on_from_where_the_prompts_part(
    checkpoint: Path,
) -> None:
    engine = engine_of(checkpoint, checkpoint_tokens=1000)
    shared = prompt(150)
    for n in range(3):
        engine.take(ask(str(n), [*shared, 10 + n, *prompt(40)]))
    drain(engine)
    assert engine.ledger.prompt_tokens_reused == 2 * 144


@pytest.mark.parametrize("checkpoint", ATTENDING, indirect=True)
def test_checkpoints_that_find_no_room_take_no_keys_and_values_along(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The oldest checkpoints go, and come back from memory or disk."""
    tight = {"max_num_seqs": 1, "max_model_len": 512, "checkpoint_tokens": 1000}
    tiers: list[dict[str, object]] = [
        {},
        {"swap_space": 0.1},
        {"kv_store": str(tmp_path / "store"), "kv_store_bytes": 64 << 20},
    ]
    for tier in tiers:
        engine = engine_of(checkpoint, **tight, **tier)
        first = prompt(80)
        answer, _ = said(engine, "first", first)
        for n in range(5):
            said(engine, f"other {n}", [20 + n, *prompt(30)])
        tree = engine.reuse.tree
        agreed, tables = tree.agreed(engine.techniques.plain_key(""), np.array(first, np.int32))
        assert agreed == len(first)
        for group, table in enumerate(tables):
            assert (table[:10] >= 0).all() == engine.state.groups[group].spec.attends
        if engine.tiers is not None:
            engine.tiers.flush(10.0)
        second = [*first, *answer, 7, 8, 9]
        found, held = said(engine, "second", second)
        whole = (len(first) + len(answer) - 1) // 8 * 8
        assert held == (whole if tier else 0)
        alone = engine_of(checkpoint, reuse="none", speculative_config="none")
        assert said(alone, "alone", second)[0] == found
        engine.close()


@pytest.mark.parametrize("checkpoint", ATTENDING, indirect=True)
def test_a_checkpoint_on_disk_takes_the_room_of_what_it_holds(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"kv_store": str(tmp_path / "store"), "kv_store_bytes": 64 << 20}
    engine = engine_of(checkpoint, checkpoint_tokens=1000, **settings)
    answer, _ = said(engine, "first", prompt(96))
    assert engine.tiers is not None
    engine.tiers.flush(10.0)
    identity, disk = engine.tiers.identity, engine.tiers.disk
    assert disk is not None
    attends = [group.spec.attends for group in engine.state.groups]
    stored = [engine.state.planes.stored_page_bytes(group) for group in range(len(attends))]
    assert identity.payload_bytes == stored[attends.index(True)]
    # The prompt's end is the end of page 11, and the answer's is in a later one.
    pages = (96 + len(answer) - 1) // 8
    assert len(disk) == pages + (1 + (pages > 12)) * identity.checkpoint_parts
    engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_trees_of_drafts_change_no_token(
    checkpoint: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches are accepted too, whose tokens then stand where a chain's would have."""
    alone = engine_of(checkpoint, reuse="none", speculative_config="none")
    [(expected, _)] = serve(alone, [ask("a", prompt(37), max_tokens=90, logprobs=2)]).values()
    engine = engine_of(checkpoint)
    texts, pages = [[*prompt(37), *expected.tokens]], 8 if engine.recurs else None
    how = {"seed": seed, "right": 0.7, "branches": 4}
    engine.speculation = foretelling(97, texts, most=9, page_tokens=pages, **how)
    moved, move = [0], engine.state.move

    def counted(*of: Any) -> None:
        moved[0] += 1
        move(*of)

    monkeypatch.setattr(engine.state, "move", counted)
    [(found, _)] = serve(engine, [ask("a", prompt(37), max_tokens=90, logprobs=2)]).values()
    assert found == expected
    assert engine.speculation.counters.accepted > 20
    assert moved[0] > 5


def counting_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of parts of pages that are copied: to the last number."""
    copied, planes = [0], engine.state.planes

    def counted(copy: Callable[..., None], group: int, page: int, start: int, data: Bytes) -> None:
        copied[-1] += len(data)
        copy(group, page, start, data)

    for way in ("read_part", "write_part"):
        monkeypatch.setattr(planes, way, partial(counted, getattr(planes, way)))
    return copied


@pytest.mark.parametrize("name", ["delta rules", "state spaces"])
def test_a_checkpoint_is_copied_in_parts_beside_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the disk and back, in no step more than is copied of pages."""
    bound, checkpoint = 2000, MODELS[name](tmp_path / "model")
    values: dict[str, object] = {"checkpoint_tokens": 1000, "speculative_config": "none"}
    read, write = (
        {**values, "kv_store": str(tmp_path / place), "kv_store_bytes": 64 << 20}
        for place in ("read", "written")
    )
    alone, before = engine_of(checkpoint, reuse="none", **values), engine_of(checkpoint, **read)
    answer, _ = said(before, "first", prompt(96))
    before.close()
    monkeypatch.setattr(tiers_module, "BESIDE_STEPS_BYTES", bound)
    second = [*prompt(96), *answer, 7, 8, 9]
    for turn, tokens, settings in (("first", prompt(96), write), ("second", second, read)):
        engine = engine_of(checkpoint, **settings)
        assert engine.tiers is not None
        identity = engine.tiers.identity
        monkeypatch.setattr(engine.pace, "note", lambda *_: None)  # what is held is always read
        copied = counting_parts(engine, monkeypatch)
        engine.take(ask("beside", [5, 6], max_tokens=90))
        for _ in range(3):
            copied.append(0)
            engine.step()
        engine.take(ask(turn, tokens))
        deltas = []
        while len(engine.scheduler.running) == 2 or engine.scheduler.waiting:
            copied.append(0)
            deltas += engine.step()
            engine.check_integrity()
        assert tokens_of(deltas)[turn, 0] == said(alone, turn, tokens)[0]
        assert max(copied) < bound + identity.payload_bytes
        assert sum(copied) > bound + identity.payload_bytes
        if turn == "second":
            assert engine.ledger.saved["store"].tokens >= 96
        drain(engine)
        engine.close()


def test_what_a_model_without_keys_and_values_left_goes_as_a_whole_and_comes_back(
    tmp_path: Path,
) -> None:
    """There is nothing else to go on from where its state is wanted for others; memory and disk
    have it."""
    checkpoint = tiny_matmul_free(tmp_path / "model")
    tight = {"max_num_seqs": 1, "max_model_len": 512, "checkpoint_tokens": 1000}
    tiers: list[dict[str, object]] = [
        {},
        {"swap_space": 0.1},
        {"kv_store": str(tmp_path / "store"), "kv_store_bytes": 64 << 20},
    ]
    first = prompt(80)
    for tier in tiers:
        engine = engine_of(checkpoint, **tight, **tier)
        answer, _ = said(engine, "first", first)
        for n in range(9):
            said(engine, f"other {n}", [20 + n, *prompt(30)])
        agreed, _ = engine.reuse.tree.agreed(
            engine.techniques.plain_key(""), np.array(first, np.int32)
        )
        assert agreed == 0
        if engine.tiers is not None:
            engine.tiers.flush(10.0)
        second = [*first, *answer, 7, 8, 9]
        found, held = said(engine, "second", second)
        assert held == ((len(first) + len(answer) - 1) // 8 * 8 if tier else 0)
        alone = engine_of(checkpoint, reuse="none", speculative_config="none")
        assert said(alone, "alone", second)[0] == found
        engine.close()


def test_what_delta_rules_cannot_do_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_qwen3_5(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"reuse 'chunk' puts state .* recurrent layers cannot"):
        engine_of(checkpoint, reuse="prefix,chunk")
    plain = tiny_llama(tmp_path / "plain")
    drafting = {"method": "draft_model", "model": str(checkpoint), "num_speculative_tokens": 3}
    with pytest.raises(ConfigError, match=r"Qwen3_5ForCausalLM has recurrent layers"):
        engine_of(plain, speculative_config=drafting)


def test_the_size_of_pages_is_part_of_what_decides_bits(tmp_path: Path) -> None:
    checkpoint = tiny_qwen3_5(tmp_path / "model")
    one, other = (engine_of(checkpoint, block_size=size).model.numerics_id for size in (8, 16))
    assert one != other
    lfm2 = tiny_lfm2(tmp_path / "lfm2")
    one, other = (engine_of(lfm2, block_size=size).model.numerics_id for size in (8, 16))
    assert one == other


def test_looking_for_a_checkpoint_takes_no_longer_for_each_page_than_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long context whose checkpoints are gone is looked through once, and no parts of a
    checkpoint are named but where there is one."""
    settings = {"kv_store": str(tmp_path / "store"), "kv_store_bytes": 64 << 20}
    engine = engine_of(tiny_qwen3_5(tmp_path / "model"), checkpoint_tokens=1000, **settings)
    said(engine, "first", prompt(160))
    assert engine.tiers is not None
    engine.tiers.flush(10.0)
    engine.reuse.forget()
    named: list[int] = []
    identity = type(engine.tiers.identity)
    parts = identity.parts
    monkeypatch.setattr(identity, "parts", lambda self, name: named.append(1) or parts(self, name))
    tokens = np.array([*prompt(150), *(90 - token for token in prompt(30))], np.int32)
    fetch = engine.reuse.fetch(tokens, engine.techniques.plain_key(""))
    assert fetch is not None
    assert fetch.done  # nothing that a row could go on from
    assert not named
    engine.close()
