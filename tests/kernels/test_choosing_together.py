"""Rows of a query block that choose together: both backends choose alike, from all of the block's
rows and from no other, and what else is in a step changes no bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.attention.prompts import BlocksOfPrompt
from ockham.core.arrays import Ints
from ockham.core.choices import BY_HEAD, LATEST, LINES, MEANS, TOGETHER, Choice
from ockham.core.seams import SequencePattern
from ockham.core.step import StepOutput
from ockham.core.visits import BLOCK_KEYS, BlockVisits
from ockham.kernels.base import Backend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.choosing_together import HeadRule, block_weights, together_blocks
from tests.helpers import isas
from tests.helpers.programs import SHAPES, VOCABULARY, Bound, on
from tests.helpers.steps import Part, Stepper

LONG = 900
NAMES = ["plain", "bf16", "many query heads", "large pages", "softcap", "odd pages", "int8"]
NAMES += ["mirrored"]
needs_core = pytest.mark.skipif(core is None, reason="the native core was not built")


def cpu(threads: int = 2) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def model(name: str, backend: Backend) -> Bound:
    shape = SHAPES[name]
    return on(backend, replace(shape, pages=2 * (-(-LONG // shape.page_tokens)) + 60))


def tokens(count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


RULES = [(LINES, 0.45), (MEANS, 0.6), (LATEST, 0.3), (LINES, 1.0), (LATEST, 1.0), (MEANS, 0.0)]


def together(
    bound: Bound, until: int | None = None, chooser: str = TOGETHER, **numbers: Any
) -> BlocksOfPrompt:
    """In all layers but the first: of the blocks, three fifths of the weight; or, with each head,
    what its own rule says."""
    values = {"stride": 16, "threshold": 0.6, "sinks": 1, "local": 1, "share": 1.0, **numbers}
    choices: list[Choice | None] = []
    for layout in bound.layouts:
        heads = layout.spec.uniform.heads
        of_heads = [
            [RULES[(layer + head + 5) % len(RULES)] for head in range(heads)]
            for layer in layout.layers
        ]
        if chooser == BY_HEAD:
            values["rules"] = tuple(tuple(rule for rule, _ in each) for each in of_heads)
            values["rule_shares"] = tuple(tuple(share for _, share in each) for each in of_heads)
        chooses = tuple(layer > 0 for layer in layout.layers)
        choice = Choice(chooser, chooses, first=0, **values)
        choices.append(choice if layout.window is None else None)
    pattern = BlocksOfPrompt(tuple(choices), 1)
    dense_from = (LONG if until is None else until) // BLOCK_KEYS
    return replace(pattern, dense_from=dense_from)


def logits(
    bound: Bound, prompt: list[int], cuts: Sequence[int], pattern: SequencePattern | None
) -> np.ndarray:
    """Those of the last 300 rows, of a prompt that is cut into chunks."""
    stepper, found = Stepper(bound, pattern=pattern), []
    bounds = [0, *cuts, len(prompt)]
    for start, stop in pairwise(bounds):
        wanted = range(max(0, len(prompt) - 300 - start), stop - start)
        found.append(stepper.step([Part(0, prompt[start:stop])], wants_logits=wanted).logits)
    return np.concatenate(found)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))


class Listed(SequencePattern):
    """Says before a step what the rows of each block visit, (heads,) lists of each layer."""

    def __init__(self, of: dict[tuple[int, int], BlockVisits]) -> None:
        self._of = of

    def visits(self, group: int, block: int) -> BlockVisits | None:
        return self._of.get((group, block))


CHOOSERS = pytest.mark.parametrize("chooser", [TOGETHER, BY_HEAD])


@needs_core
@CHOOSERS
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_both_backends_choose_the_same(name: str, stride: int, chooser: str) -> None:
    rows = np.array([BLOCK_KEYS - 1, 5 * BLOCK_KEYS + 7, 9 * BLOCK_KEYS], np.int32)
    outputs: list[StepOutput] = []
    for backend in (cpu(), ReferenceBackend()):
        bound = model(name, backend)
        stepper = Stepper(bound, pattern=together(bound, stride=stride, chooser=chooser))
        # The keys are the same bits only where what comes before them is: in the first layers.
        prompts = [Part(0, tokens(650, 1)), Part(1, tokens(150, 2))]
        outputs.append(stepper.step(prompts, wants_scores={1: rows}, wants_logits=[]))
    found, expected = outputs
    for own, other in zip(found.scores[1], expected.scores[1], strict=True):
        # A block at the edge of the choice may fall on either side of it.
        differ = ((own == 0) != (other == 0)).mean()
        assert differ < (0.1 if SHAPES[name].state == "float32" else 0.3)
    assert found.left_out.keys() == expected.left_out.keys()
    for group, counts in expected.left_out.items():
        np.testing.assert_array_equal(found.left_out[group] > 0, counts > 0)
        np.testing.assert_array_equal(found.left_out[group][1], counts[1])
        if chooser == BY_HEAD:  # how many blocks are visited, no score says
            np.testing.assert_array_equal(found.left_out[group][0], counts[0])
        assert counts[0].sum() > 0
        assert abs(found.left_out[group][0].sum() / counts[0].sum() - 1) < 0.2


@needs_core
@CHOOSERS
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", ["plain", "bf16", "odd pages", "int4"])
def test_company_chunks_and_threads_do_not_change_a_bit(
    name: str, isa: str, chooser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    prompt, bound = tokens(500, 7), model(name, cpu(1))
    pattern = together(bound, until=400, chooser=chooser)
    expected = logits(bound, prompt, [], pattern)
    assert not same(logits(bound, prompt, [], None), expected)
    for threads, cuts in ((2, [128, 192, 384]), (3, [64, 320, 390, 391])):
        found = logits(model(name, cpu(threads)), prompt, cuts, pattern)
        assert same(found, expected), f"{threads} threads, cut at {cuts}"
    stepper = Stepper(model(name, cpu(4)), pattern=pattern)
    stepper.step([Part(1, tokens(33, 1)), Part(0, prompt[:256])])
    second = stepper.step([Part(0, prompt[256:384]), Part(1, tokens(90, 3))])
    assert same(second.logits[:128], expected[56:184])
    assert same(stepper.step([Part(1, [4]), Part(0, prompt[384:])]).logits[1:], expected[-116:])


@needs_core
@CHOOSERS
def test_the_first_two_instruction_sets_choose_the_same_bits(
    chooser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for isa in ("avx512", "avx2"):
        isas.use(isa, monkeypatch)
        bound = model("bf16", cpu())
        pattern = together(bound, until=400, chooser=chooser)
        found.append(logits(bound, tokens(500, 7), [], pattern))
    assert same(*found)


@needs_core
@CHOOSERS
@pytest.mark.parametrize("name", ["plain", "bf16", "int8"])
def test_what_was_chosen_is_attention_over_those_blocks(name: str, chooser: str) -> None:
    """The same blocks, named before the step: not a bit differs, so that what is known of such
    lists (equal to masked attention, no cost of what is left out) holds here too."""
    prompt, bound = tokens(500, 9), model(name, cpu())
    pattern = together(bound, chooser=chooser)
    step = [Part(0, prompt)]
    layers = [layer for layout in bound.layouts for layer in layout.layers]
    every = np.arange(len(prompt), dtype=np.int32)
    wants = dict.fromkeys(layers, every)
    chose = Stepper(bound, pattern=pattern).step(step, wants_scores=wants)
    listed: dict[tuple[int, int], BlockVisits] = {}
    for group, layout in enumerate(bound.layouts):
        for block in range(1, len(prompt) // BLOCK_KEYS):
            lists: list[Ints] = []
            of = np.full((len(layout.layers), layout.spec.uniform.heads), -1, np.int32)
            for i, layer in enumerate(layout.layers):
                if layout.window is not None:
                    continue
                visited = chose.scores[layer][block * BLOCK_KEYS + BLOCK_KEYS - 1]
                shares = visited.reshape(len(visited), -1, BLOCK_KEYS).sum(axis=2)
                for head, of_head in enumerate(shares):
                    of[i, head] = len(lists)
                    lists.append(np.flatnonzero(of_head > 0).astype(np.int32))
            if lists:
                listed[group, block] = BlockVisits(tuple(lists), of)
    named = Stepper(bound, pattern=Listed(listed)).step(step)
    assert same(named.logits, chose.logits)


@needs_core
def test_rows_of_an_incomplete_block_visit_all() -> None:
    bound, prompt = model("plain", cpu()), tokens(500, 3)
    plain = logits(bound, prompt, [], None)
    cut_everywhere = list(range(40, 500, 40))
    assert same(logits(bound, prompt, cut_everywhere, together(bound)), plain)
    assert same(logits(bound, prompt, [], together(bound, until=0)), plain)
    assert same(logits(bound, prompt, [], together(bound, threshold=1.0)), plain)


@settings(max_examples=30, deadline=None)
@given(
    stride=st.sampled_from([8, 16]),
    blocks=st.integers(2, 9),
    heads=st.integers(1, 3),
    seed=st.integers(0, 99),
    threshold=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_the_fewest_blocks_that_weigh_enough_are_chosen(
    stride: int, blocks: int, heads: int, seed: int, threshold: float, share: float
) -> None:
    """Against the sums over antidiagonals, written out."""
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((BLOCK_KEYS, heads, 8)).astype(np.float32)
    keys = rng.standard_normal((blocks * BLOCK_KEYS, 8)).astype(np.float32)
    weights = np.zeros(blocks)
    for head in range(heads):
        scores = queries[:, head].astype(np.float64) @ keys.T
        for i in range(0, BLOCK_KEYS, stride):
            of = [
                sum(scores[i + stride - 1 - t, j + t] for t in range(stride)) / stride
                for j in range(0, (blocks - 1) * BLOCK_KEYS + i + 1, stride)
            ]
            of = np.exp(np.array(of) - max(of))
            for j, weight in enumerate(of / of.sum()):
                weights[j * stride // BLOCK_KEYS] += weight
    np.testing.assert_allclose(block_weights(stride, queries, keys), weights, rtol=1e-4)
    choice = Choice(TOGETHER, (True,), stride=stride, threshold=threshold, share=share, local=1)
    chosen = together_blocks(HeadRule(choice, None, share), queries, keys).tolist()
    assert {0, blocks - 1} <= set(chosen)
    most = max(2, int(np.ceil(share * blocks)))
    assert len(chosen) <= most
    assert weights[chosen].sum() >= (threshold - 1e-3) * heads * BLOCK_KEYS / stride or (
        len(chosen) == most
    )
    others = sorted(set(chosen) - {0, blocks - 1}, key=lambda b: weights[b])
    if others:  # none could be spared
        rest = weights[chosen].sum() - weights[others[0]]
        assert rest <= (threshold + 1e-3) * heads * BLOCK_KEYS / stride
        left = set(range(blocks)) - set(chosen)
        assert all(weights[b] <= weights[others[0]] * (1 + 1e-3) for b in left)


@needs_core
def test_numbers_that_make_no_sense_are_refused() -> None:
    bound = model("plain", cpu())
    pattern = together(bound)

    def run(**numbers: Any) -> None:
        changed = tuple(
            None if each is None else msgspec.structs.replace(each, **numbers)
            for each in pattern.choices
        )
        stepper = Stepper(bound, pattern=replace(pattern, choices=changed))
        stepper.executor.begin(stepper.build([Part(0, tokens(70, 1))]))

    run()
    for numbers in (
        {"stride": 0},
        {"stride": 12},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"share": -1.0},
        {"local": 0},
    ):
        with pytest.raises(ValueError, match="no sense"):
            run(**numbers)


@settings(max_examples=30, deadline=None)
@given(
    stride=st.sampled_from([8, 16]),
    blocks=st.integers(2, 9),
    heads=st.integers(1, 3),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_each_rule_visits_as_many_blocks_as_its_share_says(
    stride: int, blocks: int, heads: int, seed: int, share: float
) -> None:
    """Those that a plain reading of the rule finds to weigh most."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(BLOCK_KEYS, heads, 16)).astype(np.float32)
    keys = rng.normal(size=(blocks * BLOCK_KEYS, 16)).astype(np.float32)
    weights = {rule: np.zeros(blocks) for rule in (LATEST, LINES, MEANS)}
    weights[LATEST] = np.arange(blocks)
    for head in range(heads):
        for row in range(stride - 1, BLOCK_KEYS, stride):
            seen = (blocks - 1) * BLOCK_KEYS + row + 1
            of = np.exp([float(queries[row, head] @ keys[j]) for j in range(seen)])
            for j, weight in enumerate(of / of.sum()):
                weights[LINES][j // BLOCK_KEYS] += weight
        mean = queries[:, head].mean(axis=0)
        of = np.exp(
            [
                float(mean @ keys[b : b + BLOCK_KEYS].mean(axis=0))
                for b in range(0, len(keys), BLOCK_KEYS)
            ]
        )
        weights[MEANS] += of / of.sum()
    choice = Choice(BY_HEAD, (True,), stride=stride, sinks=1, local=1)
    count = max(2, int(np.ceil(share * blocks)))
    for rule, of_rule in weights.items():
        chosen = together_blocks(HeadRule(choice, rule, share), queries, keys).tolist()
        assert len(chosen) == count
        assert {0, blocks - 1} <= set(chosen)
        others = set(chosen) - {0, blocks - 1}
        left = set(range(blocks)) - set(chosen)
        if others and left:
            least, most = min(of_rule[b] for b in others), max(of_rule[b] for b in left)
            assert most <= least * (1 + 1e-3)


@needs_core
def test_rules_that_make_no_sense_are_refused() -> None:
    bound = model("plain", cpu())
    pattern = together(bound, chooser=BY_HEAD)

    def run(**changed: Any) -> None:
        choices = tuple(
            None if each is None else msgspec.structs.replace(each, **changed)
            for each in pattern.choices
        )
        stepper = Stepper(bound, pattern=replace(pattern, choices=choices))
        stepper.executor.begin(stepper.build([Part(0, tokens(70, 1))]))

    choice = next(each for each in pattern.choices if each is not None)
    shape = np.shape(choice.rules)
    run()
    for rule, share in ((3, 0.5), (-1, 0.5), (1, 1.5), (1, float("nan"))):
        rules = tuple(tuple([rule] * shape[1]) for _ in range(shape[0]))
        shares = tuple(tuple([share] * shape[1]) for _ in range(shape[0]))
        with pytest.raises(ValueError, match="no sense"):
            run(rules=rules, rule_shares=shares)
    with pytest.raises(ValueError, match="another number of heads"):
        run(
            rules=tuple((*each, 0) for each in choice.rules),
            rule_shares=tuple((*each, 0.5) for each in choice.rule_shares),
        )
    with pytest.raises(ValueError, match="do not add up"):
        run(rules=(), rule_shares=())
