"""Patterns whose blocks follow from the place alone: which they are, that it is attention under
that mask, and that their cost is what it should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ockham.attention.dilated import DilatedAsk, DilatedOptions
from ockham.attention.strided import StridedAsk, StridedOptions
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup
from ockham.core.visits import EVERY
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.programs import SHAPES, VOCABULARY, on
from tests.helpers.steps import Part, Stepper

GROUPS = [AttentionGroup((0, 1), 2, None), AttentionGroup((2, 3), 4, 100)]
BLOCK = 20
FIELDS: dict[str, dict[str, Any]] = {
    "strided": {"local_blocks": 2, "stride": 3, "dense_every": 0},
    "dilated": {"window_blocks": 3, "dilation": 2},
}


def opened(name: str, groups: list[AttentionGroup] = GROUPS, **fields: Any) -> Any:
    return make("pattern", name).open(make_ask(f"pattern/{name}", fields or True), groups)


def seen(pattern: Any, group: int, layer: int, head: int, block: int = BLOCK) -> list[int]:
    """The blocks that a head of the group's layer visits."""
    visits = pattern.visits(group, block)
    number = EVERY if visits is None else int(visits.of[layer, head])
    found: list[int] = list(range(block + 1)) if number == EVERY else visits.lists[number].tolist()
    return found


def test_heads_one_after_the_other_see_all_blocks_in_strides() -> None:
    pattern = opened("strided", local_blocks=2, stride=4, dense_every=0)
    assert seen(pattern, 0, 0, 0) == [0, 4, 8, 12, 16, 19, 20]
    assert seen(pattern, 0, 0, 1) == [1, 5, 9, 13, 17, 19, 20]
    assert seen(pattern, 0, 1, 0) == [2, 6, 10, 14, 18, 19, 20]
    shards = [seen(pattern, 0, layer, head) for layer in (0, 1) for head in (0, 1)]
    assert set().union(*shards) == set(range(BLOCK + 1))
    assert seen(pattern, 1, 0, 3) == [3, 7, 11, 15, 19, 20]


def test_every_second_layer_is_dense_if_it_is_to_be() -> None:
    pattern = opened("strided", local_blocks=2, stride=4, dense_every=2)
    for group in (0, 1):
        assert seen(pattern, group, 0, 1) == list(range(BLOCK + 1))
        assert len(seen(pattern, group, 1, 1)) < BLOCK
    assert opened("strided", stride=1).visits(0, BLOCK) is None
    assert opened("strided").visits(0, 3) is None, "all blocks are among the latest"


def test_layers_are_local_and_dilated_in_turn() -> None:
    pattern = opened("dilated", window_blocks=4, dilation=3)
    for group in (0, 1):
        for head in (0, 1):
            assert seen(pattern, group, 0, head) == [17, 18, 19, 20]
            assert seen(pattern, group, 1, head) == [11, 14, 17, 20]
    assert seen(pattern, 0, 1, 0, 7) == [1, 4, 7]
    assert opened("dilated", window_blocks=4, dilation=3).visits(0, 0) is None
    assert seen(opened("dilated", window_blocks=1), 0, 1, 0) == [BLOCK]


@pytest.mark.parametrize("name", FIELDS)
def test_a_block_visits_itself_and_none_after_it(name: str) -> None:
    pattern = opened(name, **FIELDS[name])
    for group, of in enumerate(GROUPS):
        for block in range(40):
            visits = pattern.visits(group, block)
            if visits is not None:
                assert visits.of.shape == (len(of.layers), of.kv_heads)
                for blocks in visits.lists:
                    assert blocks[-1] == block
                    assert (np.diff(blocks) > 0).all()


def test_the_cost_of_a_dilated_window_does_not_grow_with_the_text() -> None:
    pattern = opened("dilated")
    for layer in (0, 1):
        lengths = {len(seen(pattern, 0, layer, 0, block)) for block in (40, 400, 4000)}
        assert lengths == {8}


@pytest.mark.skipif(core is None, reason="the native core was not built")
@pytest.mark.parametrize("shape", ["plain", "bf16", "windows"])
@pytest.mark.parametrize("name", FIELDS)
def test_it_is_attention_under_that_mask(name: str, shape: str) -> None:
    """On the cpu as in the reference, whose attention is compared with the masked one in
    tests/kernels/test_visits.py."""
    from ockham.kernels.cpu import CpuBackend

    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 900).tolist()
    found = []
    for backend in (CpuBackend(2), ReferenceBackend()):
        bound = on(backend, replace(SHAPES[shape], pages=200))
        groups = [
            AttentionGroup(tuple(g.layers), g.spec.uniform.heads, g.window) for g in bound.layouts
        ]
        stepper = Stepper(bound, pattern=opened(name, groups, **FIELDS[name]))
        rows = [0, 500, 897, 898, 899]
        found.append(stepper.step([Part(0, tokens)], wants_logits=rows).logits)
    tolerance = 2e-5 if "bf" not in SHAPES[shape].weights + SHAPES[shape].state else 2e-2
    assert np.abs(found[0] - found[1]).max() <= tolerance * np.abs(found[1]).max()


@pytest.mark.parametrize(
    ("ask", "options", "fields", "words"),
    [
        (StridedAsk, StridedOptions, {"stride": 0}, "stride must be at least 1, got 0"),
        (StridedAsk, StridedOptions, {"local_blocks": 0}, "local_blocks must be at least 1"),
        (StridedAsk, StridedOptions, {"dense_every": -1}, "dense_every must be at least 0"),
        (DilatedAsk, DilatedOptions, {"window_blocks": 0}, "window_blocks must be at least 1"),
        (DilatedAsk, DilatedOptions, {"dilation": -3}, "dilation must be at least 1, got -3"),
    ],
)
def test_what_makes_no_sense_is_refused(ask: Any, options: Any, fields: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ask(**fields)
    with pytest.raises(ConfigError, match=words):
        options(**fields)
