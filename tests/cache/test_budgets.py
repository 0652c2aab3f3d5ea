"""Rules that keep a budget of cells: `snapkv`, `h2o`, `expected` and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.cache.keep import budgets
from ockham.cache.keep.budgets import BudgetKeeping
from ockham.cache.keep.pooling import pooled
from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make, make_asks
from ockham.core.seams import (
    AttentionGroup,
    KeptText,
    LayerAttention,
    Observer,
    OwnRows,
    Seen,
    Wants,
)
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers.serving import ask, complete, drain, make_engine, tokens_of
from tests.helpers.tiny import tiny_alternating, tiny_llama

LENGTHS = (3, 30, 61, 12, 90)
RULES = {
    "snapkv": {"budget": 12, "sinks": 2, "window": 4, "block": 16},
    "h2o": {"budget": 12, "sinks": 2, "block": 16},
    "expected": {"budget": 12, "sinks": 2, "window": 4, "block": 16, "every": 2},
    "d2o": {"budget": 12, "sinks": 2, "block": 16},
    "ems": {"budget": 12, "sinks": 2, "window": 4, "block": 16, "alike": 0.5},
}
ONE_LAYER = (AttentionGroup((0,), 1, None),)


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory) if request.param == "full" else tiny_alternating(directory)


def prompt(number: int) -> list[int]:
    return np.random.default_rng(number).integers(2, 97, LENGTHS[number]).tolist()


def engine_of(checkpoint: Path, **settings: Any) -> Engine:
    return make_engine(checkpoint, **{"block_size": 4, "speculative_config": "none", **settings})


def wanted(rule: str, given: dict[str, Any] | None = None, **params: Any) -> list[Request]:
    asks = {f"keep/{rule}": RULES[rule] if given is None else given}
    params = {"max_tokens": 40, **params}
    return [
        ask(f"{number}", prompt(number), asks=asks, seed=number, **params)
        for number in range(len(LENGTHS))
    ]


def alone(checkpoint: Path, requests: list[Request]) -> dict[Any, list[int]]:
    """What requests say one after the other, three rows a step, with nothing reused."""
    engine = engine_of(checkpoint, max_num_batched_tokens=3, max_num_seqs=3, reuse="none")
    said: dict[Any, list[int]] = {}
    for request in requests:
        said |= complete(engine, [msgspec.structs.replace(request)])
    return said


@pytest.mark.parametrize("rule", RULES)
def test_no_batch_no_chunk_and_no_preemption_changes_a_token(checkpoint: Path, rule: str) -> None:
    requests = wanted(rule, temperature=0.8)
    expected = alone(checkpoint, requests)
    engine = engine_of(checkpoint, max_num_batched_tokens=64)
    assert complete(engine, [msgspec.structs.replace(each) for each in requests]) == expected
    for request in requests:
        engine.add(msgspec.structs.replace(request, request_id=f"{request.request_id} again"))
    deltas, steps = [], 0
    while engine.has_work:
        deltas += engine.step()
        steps += 1
        running = engine.scheduler.running
        if steps % 9 == 0 and steps < 80 and running:
            engine.scheduler.preempt(running[steps % len(running)])
        engine.check_integrity()
    assert engine.scheduler.preemptions > 3
    said = {(name.removesuffix(" again"), i): t for (name, i), t in tokens_of(deltas).items()}
    assert said == expected


@pytest.mark.parametrize("rule", RULES)
def test_choices_are_those_of_requests_alone(checkpoint: Path, rule: str) -> None:
    requests = wanted(rule, {**RULES[rule], "block": 0}, temperature=0.8, n=3)
    assert complete(engine_of(checkpoint), requests) == alone(checkpoint, requests)


def test_both_backends_keep_the_same_cells(tmp_path: Path) -> None:
    """Of the tiny model in fp32, whose probabilities differ by less than its cells' worths do."""
    kept = []
    for backend in ("cpu", "reference"):
        engine = engine_of(tiny_llama(tmp_path), backend=backend, dtype="float32")
        engine.add(ask("one", prompt(4), asks={"keep/h2o": RULES["h2o"]}, max_tokens=2))
        places = np.empty(0)
        while engine.has_work:
            engine.step()
            for sequence in engine.scheduler.running:
                view = sequence.view
                places = view.groups[0].places(view.tokens)[..., :12]
        kept.append(places)
    assert kept[0].ndim == 3
    assert np.array_equal(*kept)


@pytest.mark.parametrize("rule", RULES)
def test_a_long_prompt_never_holds_more_than_its_budget_and_a_block(
    tmp_path: Path, rule: str
) -> None:
    checkpoint = tiny_llama(tmp_path)
    page_bytes = engine_of(checkpoint).state.groups[0].page_bytes
    setting = rule + ":" + ":".join(f"{key}={value}" for key, value in RULES[rule].items())
    engine = engine_of(checkpoint, keep=setting, kv_cache_memory_bytes=10 * page_bytes)
    engine.add(ask("long", [*prompt(4), *prompt(2), *prompt(4)], max_tokens=10))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats().pages_used)
    assert most == (12 + 16) // 4
    assert engine.total.saved[rule].bytes > 0


def test_cells_are_dropped_once_after_the_prompt_and_heads_differ(tmp_path: Path) -> None:
    engine = engine_of(tiny_llama(tmp_path))
    asks = {"keep/snapkv": {"budget": 0.25, "sinks": 2, "window": 4}}
    engine.add(ask("one", prompt(4), asks=asks, max_tokens=20))
    lengths = []
    while engine.has_work:
        engine.step()
        for sequence in engine.scheduler.running:
            held = sequence.view.groups[0]
            lengths.append((sequence.view.tokens, held.length))
            if held.kept is not None:
                kept = held.kept
    budget = -(-len(prompt(4)) // 4)
    assert all(length == tokens for tokens, length in lengths if tokens <= 90)
    assert all(length == budget + tokens - 90 for tokens, length in lengths if tokens > 90)
    assert kept.shape == (2, 2, budget)
    assert (kept[..., :2] == [0, 1]).all()
    assert (kept[..., -4:] == range(86, 90)).all()
    assert any((kept[0, 0] != other).any() for other in kept.reshape(-1, budget))


def test_until_decides_by_an_earlier_row(tmp_path: Path) -> None:
    """The state is that of the shorter prompt: what follows sees the same cells of it."""
    engine = engine_of(tiny_llama(tmp_path))
    settings = {"budget": 20, "sinks": 2, "window": 4}
    for name, tokens, until in (("short", prompt(4)[:70], None), ("long", prompt(4), 70)):
        asks = {"keep/snapkv": {**settings, "until": until} if until else settings}
        engine.add(ask(name, tokens, asks=asks, max_tokens=20))
    kept = {}
    while engine.has_work:
        engine.step()
        for sequence in engine.scheduler.running:
            if sequence.view.groups[0].kept is not None:
                kept[sequence.request_id] = sequence.view.groups[0].kept
    assert np.array_equal(kept["short"], kept["long"])


@pytest.mark.parametrize("block", [0, 32])
def test_h2o_keeps_what_attention_of_all_rows_adds_up_on(tmp_path: Path, block: int) -> None:
    """Against the sums of every row's probabilities, in chunks that are no part of the rule."""
    engine = engine_of(tiny_llama(tmp_path), max_num_batched_tokens=13)
    given = {"budget": 20, "sinks": 2, "recent": 0.2, "block": block}
    tokens = prompt(4)
    rows = Looks()
    engine.add(ask("one", tokens, asks={"keep/h2o": given}, max_tokens=4))
    engine.groups["one"].first.observe(rows)
    held = kept = None
    while engine.has_work and kept is None:
        engine.step()
        for sequence in engine.scheduler.running:
            if sequence.view.groups[0].kept is not None:
                kept = sequence.view.groups[0].kept
                held = sequence.view.compacted_at
    assert held is not None
    assert held == (block or len(tokens))
    worth = sum(np.pad(row, ((0, 0), (0, held - row.shape[1]))) for row in rows.found[:held])
    worth = worth / np.arange(held, 0, -1)  # rows that could see the cell
    worth[:, :2] = worth[:, held - 4 :] = np.inf
    for head, own in enumerate(worth):
        assert kept[1, head].tolist() == sorted(np.argsort(-own, kind="stable")[:20].tolist())


def test_the_rest_of_a_layers_budget_goes_to_the_heads_whose_cells_are_worth_most() -> None:
    """Of three heads with 100 cells each on the average, one of which gets more attention."""
    groups = (AttentionGroup((0,), 3, None),)
    (asked,) = make_asks(
        {"keep/snapkv": {"budget": 100, "sinks": 2, "window": 4, "floor": 0.2, "kernel": 1}}
    ).values()
    keeping = make("keep", "snapkv").open(asked, KeptText(400, groups, 8))
    assert (keeping.budget.least, keeping.budget.most) == (36, 228)
    assert keeping.most_cells(400) == 400
    assert keeping.most_cells(1000) == 828
    looks = np.random.default_rng(0).random((3, 400))
    looks[1] *= 10
    own = OwnRows(np.zeros(1, np.int32), np.array([399], np.int32), 0)
    assert keeping.wants(own).totals
    none: Any = np.empty(0)
    keeping.saw(own, Seen(False, none, none, none, {}, {}, totals={0: [looks]}))
    kept = keeping.keep(0, np.arange(400, dtype=np.int32))
    assert kept is not None
    counts = (kept >= 0).sum(axis=-1)[0]
    assert counts.tolist() == [36, 228, 36]
    assert kept.shape == (1, 3, 228)
    for head, count in enumerate(counts):
        assert (kept[0, head, : 228 - count] == -1).all(), "gaps stand before what stays"
        stays = kept[0, head, 228 - count :].tolist()
        chosen = sorted(np.argsort(-looks[head, 2:396])[: count - 6] + 2)
        assert stays == [0, 1, *chosen, 396, 397, 398, 399]


def test_a_floor_without_room_for_a_block_leaves_heads_even() -> None:
    keeping = keeping_of("snapkv", 100, budget=60, sinks=2, window=4, floor=0.2)
    assert (keeping.budget.least, keeping.budget.most) == (60, 60)


def test_half_of_the_cells_stay_by_what_their_values_add() -> None:
    worth = np.array([[[np.inf, 4.0, 0.0, 3.0, 0.0, 1.0, -np.inf]]])
    changes = np.array([[[1.0, 1.0, 9.0, 1.0, 3.0, 20.0, 99.0]]])
    best = budgets.in_order(worth)
    found = budgets.by_output(worth, best, np.array([[5]]), changes)[0, 0]
    assert found[[0, 1, 3]].tolist() == [np.inf] * 3, "the first half, rounded up"
    assert found[2] == pytest.approx(1e-4 * 9)
    assert found[5] == pytest.approx((1 / 8 + 1e-4) * 20)
    assert found[6] == -np.inf
    assert budgets.in_order(found[None, None])[0, 0].tolist() == [0, 1, 3, 5, 2, 4, 6]


def test_what_a_value_adds_is_its_product_with_the_output_matrix(tmp_path: Path) -> None:
    """Against the checkpoint's own matrix, head by head."""
    checkpoint = tiny_llama(tmp_path)
    weights = load_file(checkpoint / "model.safetensors")
    matrix = weights["model.layers.1.self_attn.o_proj.weight"].astype(np.float64)
    values = np.random.default_rng(2).normal(size=(2, 3, 8)).astype(np.float32)
    layer = engine_of(checkpoint, dtype="float32").techniques.layers[1]
    found = budgets.change(layer, layer.output(), values)
    for head in range(2):
        for cell in range(3):
            sums = [
                np.abs(matrix[:, 8 * q : 8 * q + 8] @ values[head, cell]).sum()
                for q in (2 * head, 2 * head + 1)
            ]
            assert found[head, cell] == pytest.approx(np.mean(sums), rel=1e-3)


class Cells:
    """Cells of one layer with drawn values, read in pieces."""

    def __init__(self, count: int) -> None:
        self.values = np.random.default_rng(3).normal(size=(1, 1, count, 4)).astype(np.float32)

    def read(self, first: int, last: int) -> tuple[Floats, Floats]:
        return self.values[:, :, first:last], self.values[:, :, first:last]


@pytest.mark.parametrize(("held", "times"), [(budgets.HELD, 1), (0, 3)])
def test_an_output_matrix_is_unpacked_once_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, held: int, times: int
) -> None:
    monkeypatch.setattr(budgets, "HELD", held)
    unpacked = []

    def output() -> Floats:
        unpacked.append(1)
        return np.ones((8, 4), np.float32)

    layer = LayerAttention(1, 4, 1.0, None, 1.0, output)
    given = {"budget": 12, "sinks": 2, "window": 4, "by_output": True}
    (asked,) = make_asks({"keep/snapkv": given}).values()
    keeping = make("keep", "snapkv").open(asked, KeptText(3000, ONE_LAYER, 8, {0: layer}))
    cells = Cells(3 * budgets.READ)
    keeping.read(0, np.arange(3 * budgets.READ, dtype=np.int32), cells)
    assert len(unpacked) == times
    expected = 8 * np.abs(cells.values.sum(axis=-1))
    np.testing.assert_allclose(keeping._outputs[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_uneven_heads_say_the_same_in_any_batch(tmp_path: Path, rule: str) -> None:
    checkpoint = tiny_llama(tmp_path)
    weights = load_file(checkpoint / "model.safetensors")
    for layer in range(2):  # the first key-value head looks at few cells, the second at all
        queries = weights[f"model.layers.{layer}.self_attn.q_proj.weight"]
        queries[:16] *= 30
        queries[16:] *= 0.1
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    given = {**RULES[rule], "budget": 144, "block": 112, "floor": 0.1, "by_output": True}
    if rule in ("h2o", "d2o"):
        given["recent"] = 0.05
    tokens = [*prompt(4), *prompt(2), *prompt(4)]
    requests = [
        ask(str(seed), tokens[seed:], asks={f"keep/{rule}": given}, seed=seed, temperature=0.8)
        for seed in range(3)
    ]
    expected = alone(checkpoint, requests)
    engine = engine_of(checkpoint, max_num_batched_tokens=64)
    for request in requests:
        engine.add(msgspec.structs.replace(request))
    deltas, uneven = [], False
    while engine.has_work:
        deltas += engine.step()
        engine.check_integrity()
        for sequence in engine.scheduler.running:
            view = sequence.view
            held = view.groups[0].places(view.tokens)
            uneven = uneven or bool((held < 0).any())
            assert held.shape[-1] <= sequence.keeping.most_cells(view.tokens)
    assert uneven
    assert tokens_of(deltas) == expected


class Looks(Observer):
    """Keeps how each row of a sequence looks at its keys in layer 1."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def wants(self, own: OwnRows) -> Wants:
        return Wants(scores=(1,), rows=np.arange(len(own.places), dtype=np.int32))

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self.found += [np.array(row) for row in seen.scores[1]]


def keeping_of(rule: str, tokens: int, **given: Any) -> BudgetKeeping:
    (asked,) = make_asks({f"keep/{rule}": given}).values()
    found: BudgetKeeping = make("keep", rule).open(asked, KeptText(tokens, ONE_LAYER, 8))
    return found


def look(keeping: BudgetKeeping, rows: dict[int, list[float]]) -> None:
    """Show a rule of one head what rows, by their places, look at."""
    for place, values in rows.items():
        own = OwnRows(np.zeros(1, np.int32), np.array([place], np.int32), 0)
        wants = keeping.wants(own)
        if wants.totals:
            found = {0: [np.array([values])]}
            none: Any = np.empty(0)
            keeping.saw(own, Seen(False, none, none, none, {}, {}, totals=found))


def test_h2o_divides_by_the_rows_that_saw_a_cell() -> None:
    rows = {0: [1.0], 1: [0.5, 0.5], 2: [0.4, 0.2, 0.4], 3: [0.3, 0.1, 0.3, 0.3]}
    places: Ints = np.arange(4, dtype=np.int32)
    for normalised, worth in (
        (False, [2.2, 0.8, 0.7, 0.3]),
        (True, [2.2 / 4, 0.8 / 3, 0.7 / 2, 0.3]),
    ):
        keeping = keeping_of(
            "h2o", 4, budget=3, sinks=0, recent=0.3, every=1, normalised=normalised
        )
        look(keeping, rows)
        assert np.allclose(keeping.worth(0, places, 4), [[worth]])
        kept = keeping.keep(0, places)
        assert kept is not None
        assert kept.tolist() == [[[0, 1, 3] if not normalised else [0, 2, 3]]]


def test_cells_that_could_not_be_dropped_yet_are_chosen_again_alike() -> None:
    keeping = keeping_of("h2o", 4, budget=3, sinks=0, recent=0.3, every=1, normalised=False)
    look(keeping, {0: [1.0], 1: [0.5, 0.5], 2: [0.4, 0.2, 0.4], 3: [0.3, 0.1, 0.3, 0.3]})
    places: Ints = np.arange(4, dtype=np.int32)
    kept = keeping.keep(0, places)  # pages were short, and nothing was dropped
    again = keeping.keep(0, places)
    assert kept is not None
    assert again is not None
    assert np.array_equal(kept, again)
    twin = keeping.fork(4)
    assert twin is not None, "it still stands where it stood"
    keeping.dropped({0: again}, 4)
    assert np.allclose(keeping.total(0, 0, 3), [[[2.2, 0.8, 0.3]]])
    assert np.array_equal(twin.keep(0, places), kept)


def test_h2o_samples_rows_by_their_places() -> None:
    keeping = keeping_of("h2o", 40, budget=20, every=4)
    [rows] = keeping.rows(np.arange(6, 15, dtype=np.int32), 40)
    assert rows.tolist() == [2, 6]


def test_snapkv_pools_over_neighbours() -> None:
    values = np.array([[0.0, 3.0, 0.0, 0.0, 6.0]])
    assert pooled(values, 3, "mean").tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0]]
    assert pooled(values, 3, "max").tolist() == [[3.0, 3.0, 3.0, 6.0, 6.0]]
    assert pooled(values, 1, "mean").tolist() == values.tolist()


def test_borders_are_where_the_settings_say() -> None:
    once = keeping_of("snapkv", 100, budget=40)
    assert [once.border(tokens) for tokens in (0, 99, 100, 200)] == [100, 100, None, None]
    assert (once.most_cells(90), once.most_cells(150)) == (90, 100)
    blocks = keeping_of("snapkv", 100, budget=40, block=16)
    assert [blocks.border(tokens) for tokens in (0, 48, 96, 100)] == [48, 64, 100, 112]
    assert blocks.most_cells(1000) == 56
    until = keeping_of("snapkv", 100, budget=40, block=16, until=70)
    assert [until.border(tokens) for tokens in (0, 64, 70)] == [48, 70, None]
    assert until.most_cells(100) == 70
    assert keeping_of("snapkv", 30, budget=40).border(0) is None


@pytest.mark.parametrize(
    ("setting", "value"), [("budget", 0), ("sinks", -1), ("block", 3), ("until", 0)]
)
def test_the_wrong_setting_is_named(setting: str, value: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_asks({"keep/snapkv": {setting: value}})
    assert caught.value.param == f"snapkv.{setting}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget": 0}, "budget must be from 1"),
        ({"budget": 1.5}, "a share of the prompt above 0.0"),
        ({"budget": 36}, "leaves none to choose beside the first 4 and the latest 32"),
        ({"window": 0}, "window must be from 1"),
        ({"block": 3}, "block must be 0 or from 16"),
        ({"kernel": 4}, "an odd number from 1 to 63"),
        ({"until": 1000}, "until is 1000, but the prompt has 30 tokens"),
        ({"floor": 1.5}, "floor must be a share from 0.0 to 1.0, got 1.5"),
        ({"size": 3}, "takes no size"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    engine = engine_of(tiny_llama(tmp_path))
    with pytest.raises(InvalidRequest, match=words):
        engine.add(ask("wrong", prompt(1), asks={"keep/snapkv": given}))
    assert not engine.has_work
    engine.add(ask("right", prompt(1), asks={"keep/snapkv": True}, max_tokens=2))
    drain(engine)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("h2o:recent=1", "recent must be a share"),
        ("h2o:every=0", "every must be from 1"),
        ("h2o:1.5", "a share of the prompt"),
        ("snapkv:budget=30", "leaves none to choose"),
    ],
)
def test_a_wrong_engine_setting_is_refused_at_the_start(
    tmp_path: Path, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        engine_of(tiny_llama(tmp_path), keep=setting)


def test_a_model_whose_layers_all_slide_has_no_budget() -> None:
    text = KeptText(10, (AttentionGroup((0, 1), 2, 8),), 8)
    (asked,) = make_asks({"keep/h2o": True}).values()
    with pytest.raises(InvalidRequest, match="sliding window"):
        make("keep", "h2o").open(asked, text)
