"""Layers with a state of each head: the same on both backends, and the same bits however a text is
cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ockham.kernels.base import Backend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.programs import RECURRENT, VOCABULARY, on, tolerance
from tests.helpers.steps import Part, Stepper

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")


UNROUNDED = [name for name, shape in RECURRENT.items() if shape.weights == "fp32"]
"""What one backend rounds and the other does not goes on in a state."""


def cpu(threads: int = 2) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def tokens(count: int, seed: int = 1) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def ragged(model: Any) -> list[np.ndarray]:
    """Prompts, chunks and decodes of three sequences, that begin and end within pages and at their
    ends."""
    stepper = Stepper(model)
    return [
        np.array(stepper.step(parts).logits)
        for parts in (
            [Part(0, tokens(75)), Part(1, tokens(3))],
            [Part(1, tokens(1)), Part(0, tokens(5)), Part(2, tokens(40))],
            [Part(2, tokens(8)), Part(1, tokens(12))],
            [Part(1, tokens(1)), Part(0, tokens(130)), Part(2, tokens(1))],
        )
    ]


@pytest.mark.parametrize("name", UNROUNDED)
def test_programs_mean_the_same(name: str) -> None:
    shape = RECURRENT[name]
    for one, other in zip(
        ragged(on(cpu(), shape)), ragged(on(ReferenceBackend(), shape)), strict=True
    ):
        spread = max(1.0, float(np.abs(other).max()))
        assert np.abs(one - other).max() <= tolerance(shape) * spread


def in_chunks(name: str, chunk: int, threads: int = 2, beside: bool = False) -> np.ndarray:
    """The logits of a text that is computed in chunks, and of what comes beside it none."""
    stepper, text = Stepper(on(cpu(threads), RECURRENT[name])), tokens(61)
    found = []
    for start in range(0, len(text), chunk):
        own = Part(0, text[start : start + chunk])
        parts = [Part(1, tokens(1, start)), own] if beside else [own]
        found.append(np.array(stepper.step(parts).logits)[-len(own.tokens) :])
    return np.concatenate(found)


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 23])
def test_no_chunk_and_no_neighbour_changes_a_bit(name: str, chunk: int) -> None:
    whole = in_chunks(name, 61)
    assert np.array_equal(in_chunks(name, chunk), whole)
    assert np.array_equal(in_chunks(name, chunk, threads=1, beside=True), whole)


@pytest.mark.parametrize("name", RECURRENT)
def test_what_is_taken_back_leaves_nothing(name: str) -> None:
    """Drafts that are not accepted reach beyond the ends of pages."""
    text, drafts, plain = tokens(40), tokens(19, 5), []
    stepper = Stepper(on(cpu(), RECURRENT[name]))
    for place in range(0, len(text), 4):
        given = text[place : place + 4]
        output = stepper.step([Part(0, [*given, *drafts], drafted=len(drafts))])
        plain.append(np.array(output.logits)[: len(given)])
    assert np.array_equal(np.concatenate(plain), in_text(name, text))


def in_text(name: str, text: list[int]) -> np.ndarray:
    return np.array(Stepper(on(cpu(), RECURRENT[name])).step([Part(0, text)]).logits)


def tree_of(before: int, page_tokens: int) -> list[int]:
    """The parents of a tree that is drafted after so many tokens: a chain that goes on into another
    page, branches beside it, before the page's end, and where there is room after it."""
    room = page_tokens - before % page_tokens - 1
    """Tokens before the one that ends the page."""
    parents = [*range(-1, room + 2)]
    parents += [room + 1, room + 1] * (page_tokens > 2)
    for depth in range(room):
        parents += [depth - 1] * 2
        parents += [len(parents) - 1] * (depth + 1 < room)
    return parents


def path_to(node: int, parents: list[int]) -> list[int]:
    return [*(path_to(parents[node], parents) if parents[node] >= 0 else []), node]


@pytest.mark.parametrize("before", [11, 12, 15])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_node_of_a_tree_has_the_bits_of_its_path(name: str, before: int) -> None:
    shape, text = RECURRENT[name], tokens(before)
    parents = tree_of(before, shape.page_tokens)
    drafted = tokens(len(parents), 9)
    model = on(cpu(), shape)

    def alone(path: list[int]) -> np.ndarray:
        return np.array(Stepper(model).step([Part(0, [*text, *path])]).logits[-1])

    stepper = Stepper(model)
    stepper.step([Part(1, tokens(9)), Part(0, text)])
    found = stepper.step([Part(1, [5, 6]), Part(0, drafted, parents), Part(2, [7])]).logits[2:]
    for node in range(len(parents)):
        path = [drafted[each] for each in path_to(node, parents)]
        assert np.array_equal(found[node], alone(path)), f"node {node}"
    following = stepper.step([Part(0, [3])]).logits
    assert np.array_equal(following[0], alone([3]))


@pytest.mark.parametrize("name", UNROUNDED)
def test_trees_mean_the_same(name: str) -> None:
    shape = RECURRENT[name]
    parents = tree_of(12, shape.page_tokens)
    one, other = (
        np.array(stepper.step([Part(0, tokens(len(parents), 9), parents)]).logits)
        for stepper in (Stepper(on(cpu(), shape)), Stepper(on(ReferenceBackend(), shape)))
        if stepper.step([Part(0, tokens(12))])
    )
    assert np.abs(one - other).max() <= tolerance(shape) * max(1.0, float(np.abs(other).max()))


@pytest.mark.parametrize("name", RECURRENT)
def test_branches_that_leave_a_state_are_refused(name: str) -> None:
    size = RECURRENT[name].page_tokens
    stepper = Stepper(on(cpu(), RECURRENT[name]))
    stepper.step([Part(0, tokens(size - 1))])
    with pytest.raises(ValueError, match="has a branch that ends a chunk"):
        stepper.step([Part(0, [1, 2], [-1, -1])])
    with pytest.raises(ValueError, match="has a branch in another chunk"):
        stepper.step([Part(0, tokens(size + 3), [*range(-1, size + 1), 0])])
