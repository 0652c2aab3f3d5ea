"""The mixed-integer program takes what trying everything would."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ockham.lab.compress.choosing import Alternative, Budget, choose, least


def random_units(seed: int, count: int = 5) -> list[list[Alternative]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Alternative(str(n), int(rng.integers(10, 100)), float(rng.random()), rng.random())
            for n in range(4)
        ]
        for _ in range(count)
    ]


def sums(units: list[list[Alternative]], chosen: tuple[int, ...]) -> tuple[int, float, float]:
    picked = [unit[i] for unit, i in zip(units, chosen, strict=True)]
    return (
        sum(each.nbytes for each in picked),
        sum(each.seconds for each in picked),
        sum(each.loss for each in picked),
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    units = random_units(seed)
    every = [sums(units, chosen) for chosen in product(range(4), repeat=len(units))]
    nbytes, seconds = np.median([each[0] for each in every]), np.median([e[1] for e in every])
    chosen = choose(units, Budget(float(nbytes), float(seconds)))
    assert chosen is not None
    taken = sums(units, tuple(chosen))
    assert taken[0] <= nbytes
    assert taken[1] <= seconds
    best = min(each[2] for each in every if each[0] <= nbytes and each[1] <= seconds)
    assert taken[2] == pytest.approx(best, rel=1e-3)


def shaped_units(seed: int) -> list[list[Alternative]]:
    """Two units of a block that may be whole, half or gone, one that stands alone, and what the
    shapes cost."""
    rng = np.random.default_rng(seed)

    def own(share: float, shape: str) -> list[Alternative]:
        return [
            Alternative(str(n), round(share * nbytes), loss, nbytes * share, "b", shape)
            for n, (nbytes, loss) in enumerate(forms)
        ]

    units = []
    for _ in range(2):
        forms = [(int(rng.integers(10, 100)), float(rng.random())) for _ in range(3)]
        gone = Alternative("stored", 0, 0.0, 0.0, "b", "gone")
        units.append([*own(1, "whole"), *own(0.5, "half"), gone])
    units.append(random_units(seed, 1)[0])
    losses = zip(("whole", "half", "gone"), (0.0, 0.4, 1.5), strict=True)
    units.append([Alternative(shape, 0, loss, 0.0, "b", shape) for shape, loss in losses])
    return units


@pytest.mark.parametrize("seed", range(4))
def test_units_of_a_block_agree_on_its_shape(seed: int) -> None:
    units = shaped_units(seed)
    every = [
        (sums(units, chosen), chosen)
        for chosen in product(*(range(len(unit)) for unit in units))
        if len({units[n][chosen[n]].shape for n in (0, 1, 3)}) == 1
    ]
    taken_shapes = set()
    for quantile in (0.02, 0.3, 0.7):
        limit = float(np.quantile([each[0][0] for each in every], quantile))
        chosen = choose(units, Budget(limit))
        assert chosen is not None
        (shape,) = {units[n][chosen[n]].shape for n in (0, 1, 3)}
        taken_shapes.add(shape)
        taken = sums(units, tuple(chosen))
        assert taken[0] <= limit
        best = min(each[0][2] for each in every if each[0][0] <= limit)
        assert taken[2] == pytest.approx(best, rel=1e-3)
    assert len(taken_shapes) > 1


def test_under_a_limit_of_loss_alone_bytes_are_least() -> None:
    units = random_units(9)
    every = [sums(units, chosen) for chosen in product(range(4), repeat=len(units))]
    limit = float(np.median([each[2] for each in every]))
    chosen = choose(units, Budget(loss=limit))
    assert chosen is not None
    best = min(each[0] for each in every if each[2] <= limit)
    assert sums(units, tuple(chosen))[0] == best


def test_what_cannot_be_is_none_and_the_least_that_can_is_known() -> None:
    units = random_units(3)
    smallest = sum(min(each.nbytes for each in unit) for unit in units)
    assert choose(units, Budget(nbytes=smallest - 1.0)) is None
    assert choose(units, Budget(nbytes=-1.0)) is None
    assert least(units, "nbytes", Budget()) == smallest
    assert choose(units, Budget(nbytes=float(smallest))) is not None
