"""The cpu backend does what the reference means, on random programs that use every field."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ockham.core.step import RowSets, StepOutput
from ockham.kernels.base import Backend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.programs import SHAPES, VOCABULARY, Bound, Shape, on, tolerance
from tests.helpers.steps import Part, Stepper

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

CODED = [name for name, shape in SHAPES.items() if "int" in shape.state]
TREE_TOKENS = [11, 12, 13, 14, 15, 16, 17]
TREE_PARENTS = [-1, 0, 0, 1, 2, 3, -1]


def cpu(threads: int = 2) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def tokens(count: int, seed: int = 1) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def ragged(model: Any) -> list[StepOutput]:
    """Prefills, chunks, decodes, embeddings and trees of three sequences, all outputs wanted."""
    stepper = Stepper(model)
    hidden = model.program.ops[0].table.in_features
    embeddings = np.random.default_rng(5).standard_normal((4, hidden)).astype(np.float32)
    rows = np.array([0, 3, 8], np.int32)
    wants = {
        "wants_hidden": {-1: rows, 1: rows},
        "wants_scores": {0: rows, 1: rows},
        "wants_queries": {0: rows, 1: rows[:2]},
        "wants_score_sums": {1: rows[:2]},
        # Rows of the first sequence, and one more of them: sets may share rows.
        "wants_score_totals": {1: RowSets(rows[[0, 0]], np.array([0, 1, 2], np.int32))},
    }
    return [
        stepper.step([Part(0, tokens(75)), Part(1, tokens(3))], **wants),
        stepper.step([Part(1, tokens(1)), Part(0, tokens(9)), Part(2, tokens(40))], **wants),
        stepper.step([Part(0, tokens(4), embeddings=embeddings), Part(1, tokens(5))], **wants),
        stepper.step([Part(0, TREE_TOKENS, TREE_PARENTS), Part(1, tokens(4))], **wants),
        stepper.step(
            [Part(1, TREE_TOKENS, TREE_PARENTS), Part(0, tokens(130)), Part(2, tokens(1))],
            wants_logits=[0, 2, 137],
            **wants,
        ),
    ]


def assert_close(found: np.ndarray, expected: np.ndarray, close: float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    spread = max(1.0, float(np.abs(expected).max())) if expected.size else 1.0
    assert np.abs(found - expected).max(initial=0.0) <= close * spread


@pytest.mark.parametrize("name", SHAPES)
def test_programs_mean_the_same(name: str) -> None:
    shape = SHAPES[name]
    close = tolerance(shape)
    found = ragged(on(cpu(), shape))
    expected = ragged(on(ReferenceBackend(), shape))
    for one, other in zip(found, expected, strict=True):
        assert_close(one.logits, other.logits, close)
        assert one.hidden.keys() == other.hidden.keys()
        for layer in other.hidden:
            assert_close(one.hidden[layer], other.hidden[layer], close)
        assert one.queries.keys() == other.queries.keys()
        for layer in other.queries:
            assert_close(one.queries[layer], other.queries[layer], close)
        for kind in ("scores", "score_sums", "score_totals"):
            own, theirs = getattr(one, kind), getattr(other, kind)
            assert own.keys() == theirs.keys()
            for layer in theirs:
                for row, reference in zip(own[layer], theirs[layer], strict=True):
                    # Before the first layer no state was rounded that another rounding followed.
                    assert_close(row, reference, min(close, 2e-2) if layer == 0 else close)


@pytest.mark.parametrize("name", ["plain", "bf16", "no groups", "odd pages", "large pages", *CODED])
def test_planes_give_back_what_they_were_given(name: str) -> None:
    shape = SHAPES[name]
    model, reference = on(cpu(), shape), on(ReferenceBackend(), shape)
    planes, other = cpu().allocate(model.layouts), reference.backend.allocate(model.layouts)
    rng = np.random.default_rng(2)
    slots = rng.permutation(shape.pages * shape.page_tokens)[:50]
    state = planes.read(0, slots)
    assert (state.shape, state.dtype) == (other.read(0, slots).shape, other.read(0, slots).dtype)
    assert not state.any()
    state = rng.integers(0, 2**16, state.shape).astype(state.dtype)
    for each in (planes, other):
        each.write(0, slots, state)
        each.copy(0, slots[:30], slots[10:40])  # sources and targets overlap
    everything = np.arange(shape.pages * shape.page_tokens)
    assert np.array_equal(planes.read(0, everything), other.read(0, everything))


@pytest.mark.parametrize("name", ["plain", "bf16", "odd pages", *CODED])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_whole_pages_come_back_as_they_lay(name: str, backend: str) -> None:
    shape = SHAPES[name]
    model = on(cpu() if backend == "cpu" else ReferenceBackend(), shape)
    planes = model.backend.allocate(model.layouts)
    everything = np.arange(shape.pages * shape.page_tokens)
    written = planes.read(0, everything)
    written = np.random.default_rng(3).integers(0, 2**16, written.shape).astype(written.dtype)
    planes.write(0, everything, written)
    pages = np.array([2, 0])
    nbytes = planes.stored_page_bytes(0)
    data = np.full((2, nbytes + 5), 7, np.uint8)
    planes.read_pages(0, pages, data, 3)
    assert (data[:, :3] == 7).all()
    assert (data[:, 3 + nbytes :] == 7).all()
    planes.write_pages(0, pages[::-1].copy(), data, 3)
    swapped = planes.read(0, everything)
    cells = np.arange(shape.page_tokens)
    assert np.array_equal(swapped[:, :, cells], written[:, :, 2 * shape.page_tokens + cells])
    assert np.array_equal(swapped[:, :, 2 * shape.page_tokens + cells], written[:, :, cells])
    others = everything[(everything // shape.page_tokens != 0)]
    others = others[others // shape.page_tokens != 2]
    assert np.array_equal(swapped[:, :, others], written[:, :, others])
    with pytest.raises((ValueError, IndexError)):
        planes.read_pages(0, np.array([shape.pages, 0]), data, 0)


@pytest.mark.parametrize("name", ["plain", "bf16", "odd pages", *CODED])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parts_of_a_page_are_those_of_the_whole(name: str, backend: str) -> None:
    shape = SHAPES[name]
    model = on(cpu() if backend == "cpu" else ReferenceBackend(), shape)
    planes = model.backend.allocate(model.layouts)
    everything = np.arange(shape.pages * shape.page_tokens)
    written = planes.read(0, everything)
    written = np.random.default_rng(3).integers(0, 2**16, written.shape).astype(written.dtype)
    planes.write(0, everything, written)
    whole = np.empty((1, planes.stored_page_bytes(0)), np.uint8)
    planes.read_pages(0, np.array([2]), whole, 0)
    cuts = [0, 5, 5, whole.size // 3, whole.size // 2 + 1, whole.size]
    for start, stop in pairwise(cuts):
        part = np.empty(stop - start, np.uint8)
        planes.read_part(0, 2, start, part)
        assert np.array_equal(part, whole[0, start:stop])
        planes.write_part(0, 1, start, part)
    found = np.empty_like(whole)
    planes.read_pages(0, np.array([1]), found, 0)
    assert np.array_equal(found, whole)
    for page, start in ((shape.pages, 0), (0, whole.size - 2)):
        with pytest.raises((ValueError, IndexError)):
            planes.read_part(0, page, start, np.empty(3, np.uint8))


def test_what_a_layer_writes_is_what_the_reference_writes() -> None:
    shape = SHAPES["bf16"]
    states = []
    for backend in (cpu(), ReferenceBackend()):
        stepper = Stepper(on(backend, Shape(state="bfloat16")))
        stepper.step([Part(0, tokens(20))])
        state = stepper.planes.read(0, np.arange(shape.pages * shape.page_tokens))
        states.append(state[0])  # later layers read what was rounded
    wide = [(state.astype(np.uint32) << 16).view(np.float32) for state in states]
    assert_close(wide[0], wide[1], 2**-8)


def test_x_is_read_and_replaced_at_a_breakpoint() -> None:
    outputs = []
    for backend in (cpu(), ReferenceBackend()):
        stepper = Stepper(on(backend, SHAPES["plain"]))
        step = stepper.build([Part(0, tokens(9))])
        run = stepper.executor.begin(step)
        assert run.step is step
        stepper.executor.run(run, 0, 4)
        x = np.array(run.x)
        run.x = x[::-1] * np.float32(0.5)
        assert np.array_equal(run.x, x[::-1] * np.float32(0.5))
        stepper.executor.run(run, 4, len(stepper.model.program.ops))
        outputs.append(stepper.executor.finish(run).logits)
    assert_close(outputs[0], outputs[1], 2e-5)


def test_a_view_of_x_outlives_its_run() -> None:
    stepper = Stepper(on(cpu(), SHAPES["plain"]))
    run = stepper.executor.begin(stepper.build([Part(0, tokens(9))]))
    stepper.executor.run(run, 0, 3)
    x = run.x
    kept = x.copy()
    del run
    for _ in range(3):  # steps that would reuse the memory
        stepper.step([Part(1, tokens(30, seed=8))])
    assert np.array_equal(x, kept)


def test_a_step_of_no_rows_is_no_work() -> None:
    stepper = Stepper(on(cpu(), SHAPES["plain"]))
    stepper.step([Part(0, tokens(5))])
    assert stepper.step([Part(0, [])]).logits.shape == (0, VOCABULARY)
    assert stepper.step([Part(0, tokens(5))], wants_logits=[]).logits.shape == (0, VOCABULARY)


def _broken(change: Any) -> None:
    stepper = Stepper(on(cpu(), SHAPES["plain"]))
    step = stepper.build([Part(0, tokens(20)), Part(1, tokens(3))])
    change(step)
    run = stepper.executor.begin(step)
    stepper.executor.run(run, 0, len(stepper.model.program.ops))


def _set(field: str, index: int, value: int) -> Any:
    def change(step: Any) -> None:
        getattr(step, field)[index] = value

    return change


def _context(step: Any) -> None:
    step.groups[0].context[5] = 1000


def _slot(step: Any) -> None:
    step.groups[0].slots[0] = 64 * 16


def _page(step: Any) -> None:
    step.groups[0].tables.pages[0] = 64


def _let_go(step: Any) -> None:
    step.groups[0].tables.pages[1] = -1


def _short(step: Any) -> None:
    step.positions = step.positions[:-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("ids", 3, VOCABULARY), "token id 101"),
        (_set("ids", 3, -1), "token id -1"),
        (_set("sequence", 22, 2), "belongs to no sequence"),
        (_context, "has no page"),
        (_set("wants_logits", 4, 23), "logits are wanted of row 23"),
        (_slot, "slot 1024"),
        (_page, "has no page"),
        (_let_go, "has no page"),
        (_short, "one entry for each of 23 rows"),
    ],
)
def test_a_step_that_would_leave_its_memory_is_refused(change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _broken(change)


def test_a_program_that_contradicts_itself_is_refused() -> None:
    model = on(cpu(), SHAPES["plain"])
    wrong = on(cpu(), Shape(hidden=64))
    for place in range(1, len(model.program.ops)):
        mixed = list(model.program.ops)
        if type(mixed[place]).__name__ == "Attend":
            continue
        mixed[place] = wrong.program.ops[place]
        with pytest.raises(ValueError, match=r"should have|another width"):
            Stepper(Bound(model.backend, type(model.program)(tuple(mixed)), model.layouts))
