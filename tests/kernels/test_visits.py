"""Rows see the keys of the blocks that they visit, in order, and no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.core.seams import SequencePattern
from ockham.core.step import Step
from ockham.core.visits import BLOCK_KEYS, BlockVisits
from ockham.kernels.base import Backend
from ockham.kernels.native import core
from ockham.kernels.ops import Attend
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import isas
from tests.helpers.patterns import AllBlocks, RandomPattern
from tests.helpers.programs import SHAPES, VOCABULARY, Bound, on, tolerance
from tests.helpers.steps import Part, Stepper

NAMES = ["plain", "bf16", "many query heads", "window", "windows", "softcap", "odd pages"]
NAMES += ["int8", "int8 and int4", "sinks", "sinks in codes"]
LONG = 2300
TREE_TOKENS = [11, 12, 13, 14, 15, 16, 17]
TREE_PARENTS = [-1, 0, 0, 1, 2, 3, -1]
ISAS = ("avx512", "avx2", "portable")
needs_core = pytest.mark.skipif(core is None, reason="the native core was not built")


def cpu(threads: int = 2) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def model(name: str, backend: Backend, length: int = LONG) -> Bound:
    shape = SHAPES[name]
    return on(backend, replace(shape, pages=2 * (-(-length // shape.page_tokens)) + 60))


def tokens(count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def random_pattern(bound: Any, seed: int = 0) -> SequencePattern:
    return RandomPattern(bound.layouts, seed)


def last_logits(
    bound: Bound, prompt: list[int], chunk: int, pattern: SequencePattern | None, last: int = 8
) -> np.ndarray:
    """The logits of a prompt's last rows, prefilled `chunk` tokens a step."""
    stepper = Stepper(bound, pattern=pattern)
    found = []
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        wanted = range(max(0, len(prompt) - last - start), len(part))
        found.append(stepper.step([Part(0, part)], wants_logits=wanted).logits)
    return np.concatenate(found)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))


@pytest.mark.parametrize("name", ["plain", "windows", "softcap", "many query heads", "sinks"])
def test_the_reference_is_attention_under_the_mask(name: str) -> None:
    """A prefill and a tree, row by row and head by head, from the keys that are stored."""
    bound = model(name, ReferenceBackend(), 400)
    stepper = Stepper(bound, pattern=random_pattern(bound))
    stepper.step([Part(0, tokens(300, 1))])
    for parts in (
        [Part(0, tokens(60, 2)), Part(1, tokens(70, 3))],
        [Part(0, [5] * 7, [-1, 0, 0, 1, 2, 3, -1])],
    ):
        step = stepper.build(parts)
        run: Any = stepper.executor.begin(step)
        for place, op in enumerate(bound.program.ops):
            stepper.executor.run(run, place, place + 1)
            if isinstance(op, Attend):
                q = np.asarray(run.q).reshape(step.rows, op.heads, op.head_dim)
                expected = _masked_attention(stepper, step, op, q)
                np.testing.assert_allclose(run.a, expected, rtol=2e-4, atol=2e-5)
        for part in parts:
            if part.parents is None:
                stepper._commit(part)


def _masked_attention(stepper: Stepper, step: Step, op: Attend, q: np.ndarray) -> np.ndarray:
    group, layout = step.groups[op.group], stepper.model.layouts[op.group]
    index, a = layout.layers.index(op.layer), np.zeros(q.shape, np.float64)
    assert group.visits is not None
    for row in range(step.rows):
        cells = np.arange(group.context[row])
        if group.extra is not None and group.extra_starts is not None:
            own = group.extra[group.extra_starts[row] : group.extra_starts[row + 1]]
            cells = np.concatenate([cells, own])
        mask = group.visits.mask(row, index, len(cells))
        if op.window is not None:
            mask[:, : max(0, len(cells) - op.window)] = False
        for head in range(op.heads):
            seen = cells[mask[head * op.kv_heads // op.heads]]
            owner = np.full(len(seen), step.sequence[row])
            slots = group.tables.slots(owner, seen, step.page_tokens)
            state = stepper.planes.read(op.group, slots)[index]
            keys, values = state[:, :, head * op.kv_heads // op.heads].astype(np.float64)
            scores = keys @ q[row, head] * op.scale
            if op.softcap is not None:
                scores = op.softcap * np.tanh(scores / op.softcap)
            sink = -np.inf if op.sinks is None else op.sinks[head]
            peak = max(scores.max(), sink)
            weights = np.exp(scores - peak)
            a[row, head] = weights @ values / (weights.sum() + np.exp(sink - peak))
    return a.reshape(step.rows, -1)


@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_both_backends_visit_the_same(name: str) -> None:
    close = tolerance(SHAPES[name])
    rows = np.array([0, 3], np.int32)
    wants = {"wants_scores": {0: rows, 1: rows}, "wants_score_sums": {0: rows}}
    outputs = []
    for backend in (cpu(), ReferenceBackend()):
        bound = model(name, backend)
        stepper = Stepper(bound, pattern=random_pattern(bound))
        outputs.append(
            [
                stepper.step([Part(0, tokens(1500, 1)), Part(1, tokens(70, 2))], **wants),
                stepper.step([Part(1, tokens(1, 3)), Part(0, tokens(9, 4))], **wants),
                stepper.step([Part(0, TREE_TOKENS, TREE_PARENTS), Part(1, tokens(4, 5))], **wants),
            ]
        )
    for found, expected in zip(*outputs, strict=True):
        spread = float(np.abs(expected.logits).max())
        assert np.abs(found.logits - expected.logits).max() <= close * spread
        for kind in ("scores", "score_sums"):
            for layer, of_rows in getattr(expected, kind).items():
                for own, other in zip(getattr(found, kind)[layer], of_rows, strict=True):
                    np.testing.assert_allclose(own, other, atol=close)
                    np.testing.assert_array_equal(own == 0, other == 0)


@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_recall_is_the_share_of_full_attention_on_what_is_visited(name: str) -> None:
    """Of the rows of a prefill and of a tree, beside what such a row looks at with no pattern; in
    both backends alike. The first layer's queries and keys are the same with and without one."""
    close = max(1e-4, tolerance(SHAPES[name]))
    repeat = SHAPES[name].heads // SHAPES[name].kv_heads
    rows = np.array([0, 3, 6], np.int32)
    steps = ([Part(0, tokens(1500, 1))], [Part(0, TREE_TOKENS, TREE_PARENTS)])
    found = []
    for backend in (cpu(), ReferenceBackend()):
        bound = model(name, backend)
        pattern = random_pattern(bound)
        stepper, plain = Stepper(bound, pattern=pattern), Stepper(bound)
        for parts in steps:
            step = stepper.build(parts, wants_recall=rows)
            recall = stepper.step(parts, wants_recall=rows).recall
            scores = plain.step(parts, wants_scores={0: rows}).scores[0]
            visits, high = step.groups[0].visits, step.groups[0].keys_seen
            window = bound.layouts[0].spec.window
            if visits is not None:
                for own, row, of_row in zip(recall[0], rows, scores, strict=True):
                    mask = visits.mask(row, 0, int(high[row]))
                    mask = mask[:, -window:] if window else mask
                    sunk = repeat - of_row.sum(axis=1)  # by sinks, which count as visited
                    share = ((of_row * mask).sum(axis=1) + sunk) / repeat
                    np.testing.assert_allclose(own, share, atol=close)
            found.append(recall)
    for own, other in zip(found[:2], found[2:], strict=True):
        assert own.keys() == other.keys()
        for layer, shares in own.items():
            np.testing.assert_allclose(shares, other[layer], atol=10 * close)
    assert any((shares < 0.99).any() for own in found for shares in own.values())


@needs_core
def test_recall_of_rows_that_a_step_lacks_is_refused() -> None:
    bound = model("plain", cpu(), 300)
    stepper = Stepper(bound, pattern=random_pattern(bound))
    with pytest.raises(ValueError, match="recall is wanted of row 9 of 4"):
        stepper.step([Part(0, tokens(4, 1))], wants_recall=np.array([9], np.int32))


@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_naming_all_blocks_changes_no_bit(name: str) -> None:
    prompt, bound = tokens(LONG, 6), model(name, cpu())
    expected = last_logits(bound, prompt, LONG, None)
    for chunk in (LONG, 700):
        assert same(last_logits(bound, prompt, chunk, AllBlocks(bound.layouts)), expected)


@needs_core
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_threads_do_not_change_a_bit(
    name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    prompt = tokens(LONG if name in ("plain", "bf16", "windows") else 400, 7)
    bound = model(name, cpu(1))
    pattern = random_pattern(bound)
    expected = last_logits(bound, prompt, len(prompt), pattern)
    assert not same(last_logits(bound, prompt, len(prompt), None), expected)
    for threads, chunk in ((2, 190), (3, len(prompt)), (5, 1000)):
        found = last_logits(model(name, cpu(threads)), prompt, chunk, pattern)
        assert same(found, expected), f"{threads} threads, chunks of {chunk}"
    # One by one, which a long context splits into tasks by its parts.
    stepper = Stepper(model(name, cpu(4)), pattern=pattern)
    stepper.step([Part(0, prompt[:-8])])
    for row in range(8):
        logits = stepper.step([Part(0, [prompt[row - 8]]), Part(1, [row])]).logits[0]
        assert same(logits, expected[row])


@needs_core
@pytest.mark.parametrize("length", [1, 60, 64, 1021, 1100])
@pytest.mark.parametrize("name", ["plain", "bf16", "windows", "odd pages"])
def test_a_node_of_a_tree_has_the_bits_of_its_path(name: str, length: int) -> None:
    bound, prompt = model(name, cpu()), tokens(length, 4)
    pattern = random_pattern(bound, 3)
    stepper = Stepper(bound, pattern=pattern)
    stepper.step([Part(0, prompt), Part(1, prompt[:9])])
    tree = stepper.step([Part(1, [5, 6]), Part(0, TREE_TOKENS, TREE_PARENTS)]).logits[2:]
    for node in range(len(TREE_TOKENS)):
        path: list[int] = []
        at = node
        while at >= 0:
            path.insert(0, TREE_TOKENS[at])
            at = TREE_PARENTS[at]
        chain = Stepper(bound, pattern=pattern)
        chain.step([Part(0, prompt)])
        for token in path:
            logits = chain.step([Part(0, [token])]).logits
        assert same(tree[node], logits[0]), f"node {node}"


@needs_core
def test_visits_that_do_not_add_up_are_refused() -> None:
    bound = model("plain", cpu(), 300)
    own = np.array([[1, 1]] * 2, np.int32) - 1

    def run(lists: list[list[int]], of: np.ndarray = own, change: str = "") -> None:
        class Wrong(SequencePattern):
            def visits(self, group: int, block: int) -> BlockVisits | None:
                return BlockVisits(tuple(np.array(each, np.int32) for each in lists), of)

        stepper = Stepper(bound, pattern=Wrong())
        step = stepper.build([Part(0, tokens(BLOCK_KEYS + 6, 1))])
        visits: Any = step.groups[0].visits
        if change == "starts":
            visits.starts[-1] += 1
        elif change == "query":
            visits.query_blocks[3] = 7
        elif change == "short":
            short = msgspec.structs.replace(visits, query_blocks=visits.query_blocks[:-1])
            step.groups[0].visits = short
        stepper.executor.begin(step)

    run([[0, 1]])
    for lists, of, change, words in (
        ([[0]], own, "", "does not visit block 1"),
        ([[1]], own, "", "does not visit block 0"),
        ([[1, 0]], own, "", "does not ascend"),
        ([[0, 0, 1]], own, "", "does not ascend"),
        ([[-1, 0, 1]], own, "", "does not ascend"),
        ([[0, 1]], own + 2, "", "no list"),
        ([[0, 1]], own[:, :1], "", "another shape"),
        ([[0, 1]], own, "starts", "do not add up"),
        ([[0, 1]], own, "query", "no query block"),
        ([[0, 1]], own, "short", "query blocks"),
    ):
        with pytest.raises(ValueError, match=words):
            run(lists, of, change)
