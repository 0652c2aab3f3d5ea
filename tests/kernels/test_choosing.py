"""Rows that choose blocks of keys by their own query: both backends choose alike, what else is in
a step changes no bit, and what is kept beside keys goes with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.attention.choosing import ChoosingPattern
from ockham.core.choices import Choice
from ockham.core.seams import SequencePattern
from ockham.core.step import StepOutput
from ockham.kernels.base import Backend, GroupLayout
from ockham.kernels.choosers import LOOKUPS
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.choosing import ESTIMATES, best_scores, chosen_blocks
from ockham.model.checkpoint.codebook_files import BOOK_SIZE, Codebooks
from tests.helpers import isas
from tests.helpers.programs import SHAPES, VOCABULARY, Bound, on
from tests.helpers.steps import Part, Stepper

LONG = 1300
NAMES = ["plain", "bf16", "many query heads", "large pages", "softcap", "odd pages", "int8"]
CHOOSERS = sorted([*ESTIMATES, LOOKUPS])
TREE_TOKENS = [11, 12, 13, 14, 15, 16, 17]
TREE_PARENTS = [-1, 0, 0, 1, 2, 3, -1]
needs_core = pytest.mark.skipif(core is None, reason="the native core was not built")


def cpu(threads: int = 2) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def model(name: str, backend: Backend) -> Bound:
    shape = SHAPES[name]
    bound = on(backend, replace(shape, pages=2 * (-(-LONG // shape.page_tokens)) + 60))
    layouts = tuple([replace(each, books=books(each)) for each in bound.layouts])
    return replace(bound, layouts=layouts)


def books(layout: GroupLayout) -> np.ndarray:
    """Codebooks of random keys, to which keys belong that are near."""
    spec = layout.spec.uniform
    shape = (len(layout.layers), spec.heads, BOOK_SIZE, spec.width)
    centroids = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    metrics = np.broadcast_to(np.eye(spec.width, dtype=np.float32), (*shape[:2], *2 * shape[3:]))
    return Codebooks(layout.layers, centroids, metrics).entries(layout.layers)


def tokens(count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def choosing(bound: Bound, chooser: str, **numbers: Any) -> ChoosingPattern:
    """A quarter of the keys, from token 200 on, in all layers but the first."""
    values = {"first": 200, "share": 0.25, "local": 1, **numbers}
    return ChoosingPattern(
        tuple(
            None
            if layout.window is not None
            else Choice(chooser, tuple(layer > 0 for layer in layout.layers), **values)
            for layout in bound.layouts
        )
    )


def last_logits(
    bound: Bound, prompt: list[int], chunk: int, pattern: SequencePattern | None, last: int = 6
) -> np.ndarray:
    stepper = Stepper(bound, pattern=pattern)
    found = []
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        wanted = range(max(0, len(prompt) - last - start), len(part))
        found.append(stepper.step([Part(0, part)], wants_logits=wanted).logits)
    return np.concatenate(found)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))


@needs_core
@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("name", NAMES)
def test_both_backends_choose_the_same(name: str, chooser: str) -> None:
    rows = np.array([0, 2], np.int32)
    outputs: list[list[StepOutput]] = []
    for backend in (cpu(), ReferenceBackend()):
        bound = model(name, backend)
        stepper = Stepper(bound, pattern=choosing(bound, chooser))
        # The keys are the same bits only where what comes before them is: in the first layers.
        wants = {"wants_scores": {1: rows}}
        stepper.step([Part(0, tokens(700, 1)), Part(1, tokens(70, 2))])
        outputs.append(
            [
                stepper.step([Part(0, tokens(3, 3)), Part(1, tokens(1, 3))], **wants),
                stepper.step([Part(0, TREE_TOKENS, TREE_PARENTS), Part(1, [4])], **wants),
            ]
        )
    chose = 0
    for found, expected in zip(*outputs, strict=True):
        assert found.left_out.keys() == expected.left_out.keys()
        for group, counts in expected.left_out.items():
            np.testing.assert_array_equal(found.left_out[group], counts)
            chose += int((counts[0] > 0).sum())
        for own, other in zip(found.scores[1], expected.scores[1], strict=True):
            # A block at the edge of the choice may fall on either side of it.
            differ = ((own == 0) != (other == 0)).mean(axis=1)
            assert differ.max() < (0.15 if SHAPES[name].state == "float32" else 0.3)
            assert differ.min() == 0
    assert chose >= 10


@needs_core
@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", ["plain", "bf16", "odd pages", "int4"])
def test_company_chunks_and_threads_do_not_change_a_bit(
    name: str, isa: str, chooser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    prompt, bound = tokens(500, 7), model(name, cpu(1))
    pattern = choosing(bound, chooser)
    expected = last_logits(bound, prompt, len(prompt), pattern)
    assert not same(last_logits(bound, prompt, len(prompt), None), expected)
    for threads, chunk in ((2, 190), (3, len(prompt))):
        found = last_logits(model(name, cpu(threads)), prompt, chunk, pattern)
        assert same(found, expected), f"{threads} threads, chunks of {chunk}"
    stepper = Stepper(model(name, cpu(4)), pattern=pattern)
    stepper.step([Part(0, prompt[:-6])])
    for row in range(6):
        logits = stepper.step([Part(1, [row]), Part(0, [prompt[row - 6]])]).logits[1]
        assert same(logits, expected[row])


@needs_core
@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("length", [300, 381, 639])
@pytest.mark.parametrize("name", ["bf16", "large pages", "odd pages"])
def test_a_node_of_a_tree_has_the_bits_of_its_path(name: str, length: int, chooser: str) -> None:
    bound, prompt = model(name, cpu()), tokens(length, 4)
    pattern = choosing(bound, chooser)
    stepper = Stepper(bound, pattern=pattern)
    stepper.step([Part(0, prompt), Part(1, prompt[:9])])
    tree = stepper.step([Part(1, [5, 6]), Part(0, TREE_TOKENS, TREE_PARENTS)]).logits[2:]
    for node in (3, 5, 6):
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
@pytest.mark.parametrize("every", [4, 64])
@pytest.mark.parametrize("length", [300, 382, 639])
@pytest.mark.parametrize("name", ["plain", "bf16", "large pages", "odd pages"])
def test_rows_go_on_with_a_choice_wherever_it_was_made(name: str, length: int, every: int) -> None:
    """In an earlier step, in the same step, and on the path of a tree."""
    bound, prompt = model(name, cpu()), tokens(length, 4)
    pattern = choosing(bound, CHOOSERS[0], every=every, share=0.5)
    expected = last_logits(bound, prompt, len(prompt), pattern)
    each = choosing(bound, CHOOSERS[0], share=0.5)
    assert not same(last_logits(bound, prompt, len(prompt), each), expected)
    for chunk in (1, 67, 190):
        start = length - 7 if chunk == 1 else 0
        stepper, found = Stepper(bound, pattern=pattern), []
        if start:
            stepper.step([Part(0, prompt[:start])])
        for at in range(start, length, chunk):
            found.append(stepper.step([Part(0, prompt[at : at + chunk])]).logits)
        assert same(np.concatenate(found)[-6:], expected), f"chunks of {chunk}"
    stepper = Stepper(bound, pattern=pattern)
    stepper.step([Part(0, prompt[:-6]), Part(1, prompt[:9])])
    path = stepper.step([Part(1, [5, 6]), Part(0, prompt[-6:], [-1, 0, 1, 2, 3, 4])]).logits[2:]
    assert same(path, expected)
    tree = stepper.step([Part(0, TREE_TOKENS, TREE_PARENTS)]).logits
    for node in (3, 5, 6):
        at, chain = node, []
        while at >= 0:
            chain.insert(0, TREE_TOKENS[at])
            at = TREE_PARENTS[at]
        alone = Stepper(bound, pattern=pattern)
        alone.step([Part(0, prompt[:-6])])
        for token in chain:
            logits = alone.step([Part(0, [token])]).logits
        assert same(tree[node], logits[0]), f"node {node}"


@needs_core
@pytest.mark.parametrize("first", [200, 301])
def test_both_backends_go_on_with_the_same_choices(first: int) -> None:
    outputs, rows = [], np.arange(3, dtype=np.int32)
    for backend in (cpu(), ReferenceBackend()):
        bound = model("plain", backend)
        pattern = choosing(bound, CHOOSERS[0], every=8, first=first, share=0.5)
        stepper = Stepper(bound, pattern=pattern)
        found = [stepper.step([Part(0, tokens(length, 1))]) for length in (290, 13)]
        found += [stepper.step([Part(0, tokens(3, 3))], wants_scores={1: rows}) for _ in range(4)]
        found.append(stepper.step([Part(0, TREE_TOKENS, TREE_PARENTS)]))
        outputs.append(found)
    chose = went_on = 0
    for found, expected in zip(*outputs, strict=True):
        for group, counts in expected.left_out.items():
            np.testing.assert_array_equal(found.left_out[group], counts)
            chose += int(((counts[1] > 0) & (counts[2] > 0)).sum())
            went_on += int(((counts[1] == 0) & (counts[2] > 0)).sum())
        for own, other in zip(found.scores.get(1, []), expected.scores.get(1, []), strict=True):
            assert ((own == 0) != (other == 0)).mean() < 0.15
    assert went_on > 3 * chose > 0


@pytest.mark.parametrize("make", [cpu, ReferenceBackend])
def test_a_choice_goes_where_its_slot_is_copied_and_is_missed_where_it_is_not(make: Any) -> None:
    if make is cpu and core is None:
        pytest.skip("the native core was not built")
    bound = model("plain", make())
    pattern = choosing(bound, CHOOSERS[0], every=64, share=0.5)
    prompt, said = tokens(330, 5), []
    for copied in (False, True):
        stepper = Stepper(bound, pattern=pattern)
        stepper.step([Part(0, prompt)])
        if copied:
            stepper.step([Part(1, tokens(330, 6))])
            for group, layout in enumerate(bound.layouts):
                mine, theirs = (
                    (
                        np.array(stepper.sequences[s].tables[group], np.int64)[:, None]
                        * layout.page_tokens
                        + np.arange(layout.page_tokens)
                    ).ravel()
                    for s in (0, 1)
                )
                stepper.planes.copy(group, mine, theirs)
        said.append(stepper.step([Part(int(copied), [3])]).logits)
    assert same(said[0], said[1])
    stepper = Stepper(bound)
    stepper.step([Part(0, prompt)])
    stepper.pattern = pattern
    with pytest.raises(ValueError, match="row of key 320 chose, and that is not held in layer 1"):
        stepper.step([Part(0, [3])])


@needs_core
@pytest.mark.parametrize("way", ["copy", "write", "write_pages", "reposition"])
@pytest.mark.parametrize("name", ["plain", "bf16", "int4"])
def test_summaries_are_of_the_keys_that_stand_there_now(name: str, way: str) -> None:
    """A sequence chooses; other keys take the place of its own, and it chooses among those."""
    bound, pattern = model(name, cpu()), choosing(model(name, cpu()), CHOOSERS[0])
    said = []
    for chooses_before in (True, False):
        stepper = Stepper(bound, pattern=pattern)
        stepper.step([Part(0, tokens(420, 5)), Part(1, tokens(420, 6))])
        if chooses_before:
            stepper.step([Part(0, TREE_TOKENS, TREE_PARENTS)])
        planes = stepper.planes
        for group, layout in enumerate(bound.layouts):
            pages = [np.array(stepper.sequences[s].tables[group][:20], np.int64) for s in (0, 1)]
            mine, theirs = (
                (each[:, None] * layout.page_tokens + np.arange(layout.page_tokens)).ravel()
                for each in pages
            )
            if way == "copy":
                planes.copy(group, theirs, mine)
            elif way == "write":
                planes.write(group, mine, planes.read(group, theirs))
            elif way == "write_pages":
                size = planes.stored_page_bytes(group)
                data = np.empty((len(pages[1]), size), np.uint8)
                planes.read_pages(group, pages[1], data, 0)
                planes.write_pages(group, pages[0], data, 0)
            else:
                shifts = np.full(len(mine), 3, np.int32)
                stepper.executor.reposition(group, theirs, mine, shifts)
        said.append(stepper.step([Part(0, [3])]).logits)
    assert same(said[0], said[1])


@needs_core
def test_numbers_that_make_no_sense_are_refused() -> None:
    bound = model("plain", cpu())
    pattern = choosing(bound, CHOOSERS[0])
    assert pattern.choices[0] is not None

    def run(change: str = "", **numbers: Any) -> None:
        choices = tuple(
            None if each is None else msgspec.structs.replace(each, **numbers)
            for each in pattern.choices
        )
        stepper = Stepper(bound, pattern=ChoosingPattern(choices))
        step = stepper.build([Part(0, tokens(70, 1))])
        of: Any = step.groups[0].choices
        if change == "row":
            of.rows[3] = 1
        elif change:
            fewer = msgspec.structs.replace(of, **{change: getattr(of, change)[:-1]})
            step.groups[0].choices = fewer
        stepper.executor.begin(step)

    run()
    for change, numbers, words in (
        ("", {"chooser": "dice"}, "no chooser dice"),
        ("", {"share": 1.5}, "no sense"),
        ("", {"share": float("nan")}, "no sense"),
        ("", {"local": 0}, "no sense"),
        ("", {"tokens": -1}, "no sense"),
        ("", {"within": -1.0}, "no sense"),
        ("", {"every": 0}, "no sense"),
        ("", {"every": 3}, "no sense"),
        ("row", {}, "row 3 has no choice 1"),
        ("rows", {}, "choices have"),
        ("numbers", {}, "do not add up"),
        ("shares", {}, "do not add up"),
        ("layers", {}, "another shape"),
        ("choosers", {}, "do not add up"),
    ):
        with pytest.raises(ValueError, match=words):
            run(change, **numbers)


def test_the_best_scores_choose_the_block_of_the_best_key() -> None:
    """And are taken back: the bounds choose others then."""
    rng = np.random.default_rng(2)
    keys = rng.standard_normal((64 * 12 + 5, 32)).astype(np.float32)
    queries = rng.standard_normal((40, 1, 32)).astype(np.float32)
    choice = Choice("bounds", (True,), tokens=64, sinks=0, local=1)
    blocks = [int((keys[:768] @ query[0]).argmax()) // 64 for query in queries]

    def chosen() -> list[int]:
        choice_of = msgspec.structs.replace(choice, tokens=128)
        return [int(chosen_blocks(choice_of, query, keys)[0]) for query in queries]

    with best_scores():
        assert chosen() == blocks
    assert chosen() != blocks


@needs_core
@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("name", ["plain", "bf16"])
def test_keys_behind_those_that_are_chosen_among_are_visited(name: str, chooser: str) -> None:
    """Both backends leave out blocks before the border alone, and as many."""
    counts = []
    for backend in (cpu(), ReferenceBackend()):
        bound = model(name, backend)
        stepper = Stepper(bound, pattern=choosing(bound, chooser, among=320, share=0.5, sinks=1))
        stepper.step([Part(0, tokens(700, 1))])
        output = stepper.step([Part(0, tokens(3, 3))], wants_scores={1: np.array([0, 2], np.int32)})
        for scores in output.scores[1]:
            assert (scores[:, :64] > 0).all()
            assert (scores[:, 320:] > 0).all()
            # 0.5 of 320 keys are three blocks: the first, the row's own, and one that is chosen.
            assert ((scores[:, 64:320] > 0).sum(axis=1) == 64).all()
        counts.append({group: found[0].tolist() for group, found in output.left_out.items()})
    assert counts[0] == counts[1]
