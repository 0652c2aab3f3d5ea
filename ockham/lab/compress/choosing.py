"""One alternative for each unit, so that the loss is least under budgets: a mixed-integer program.

Puzzle (arXiv:2411.19146, section 4.3): scores of single replacements are added, as are the prices.
Units of one block, whose matrices have their width in common, take alternatives of one shape.
`scipy.optimize.milp` (HiGHS) solves it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ockham.core.errors import ConfigError

GAP = 1e-4
"""How far from the best a solution may be, of its value."""
MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class Alternative:
    """What a unit may be packed as: `form` names a quantization, `loss` is what it adds to the mean
    KL divergence alone (nats a token), `seconds` what it takes of a decode step. Of all units with
    the same `block`, what is taken has the same `shape`."""

    form: str
    nbytes: int
    loss: float
    seconds: float = 0.0
    block: str = ""
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """What all units together may cost; None for no limit."""

    nbytes: float | None = None
    seconds: float | None = None
    loss: float | None = None


def require_solver() -> None:
    """Raises ConfigError, saying what to install, if the extra `compress` is missing."""
    if importlib.util.find_spec("scipy") is None:
        raise ConfigError(
            "compressing needs scipy, which serving does not; install it with "
            "pip install 'ockham[compress]'."
        )


def choose(units: Sequence[Sequence[Alternative]], budget: Budget) -> list[int] | None:
    """Of each unit the index of the alternative to take; None where no choice is in the budget.

    Least in loss where bytes or seconds are limited; else least in bytes under the limit of loss.
    """
    by_loss = budget.nbytes is not None or budget.seconds is not None
    return _solve(units, budget, "loss" if by_loss else "nbytes")


def least(units: Sequence[Sequence[Alternative]], what: str, budget: Budget) -> float | None:
    """The least sum of `what` (a field of an alternative) in a budget; None where there is none."""
    chosen = _solve(units, budget, what)
    if chosen is None:
        return None
    return sum(float(getattr(each[i], what)) for each, i in zip(units, chosen, strict=True))


def _solve(units: Sequence[Sequence[Alternative]], budget: Budget, what: str) -> list[int] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    kept = [_undominated(unit) for unit in units]
    flat = [(number, index) for number, own in enumerate(kept) for index in own]
    count = len(flat)

    def values(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([float(getattr(units[u][i], name)) for u, i in flat])

    # One of each unit; then budgets, each in units of itself so that the solver's tolerances fit.
    owners = [number for number, _ in flat]
    one = csr_array((np.ones(count), (owners, range(count))), shape=(len(units), count))
    constraints = [LinearConstraint(one, 1, 1)]
    rows, columns, signs = _agreements(units, flat)
    if rows:
        same = csr_array((signs, (rows, columns)), shape=(max(rows) + 1, count))
        constraints.append(LinearConstraint(same, 0, 0))
    for name, limit in (
        ("nbytes", budget.nbytes),
        ("seconds", budget.seconds),
        ("loss", budget.loss),
    ):
        if limit is not None:
            if limit <= 0:
                return None
            row = csr_array((values(name) / limit).reshape(1, -1))
            constraints.append(LinearConstraint(row, -np.inf, 1.0))
    cost = values(what)
    largest = float(np.abs(cost).max()) or 1.0
    found = milp(
        cost / largest,
        constraints=constraints,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": MOST_S},
    )
    if found.x is None:
        return None
    chosen = [0] * len(units)
    for (number, index), taken in zip(flat, found.x, strict=True):
        if taken > 0.5:
            chosen[number] = index
    return chosen


def _agreements(
    units: Sequence[Sequence[Alternative]], flat: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int], list[float]]:
    """A sparse matrix whose products with the choice are 0 where all units of each block have one
    shape: each unit's share of a shape, less that of the block's first unit."""
    places: dict[tuple[str, str], dict[int, list[int]]] = {}
    for column, (unit, index) in enumerate(flat):
        each = units[unit][index]
        if each.block:
            places.setdefault((each.block, each.shape), {}).setdefault(unit, []).append(column)
    rows: list[int] = []
    columns: list[int] = []
    signs: list[float] = []
    owners: dict[str, list[int]] = {}
    for (block, _), own in places.items():
        owners[block] = sorted({*owners.get(block, ()), *own})
    count = 0
    for (block, _), own in places.items():
        first, *others = owners[block]
        for unit in others:
            for at, sign in ((unit, 1.0), (first, -1.0)):
                found = own.get(at, [])
                rows += [count] * len(found)
                columns += found
                signs += [sign] * len(found)
            count += 1
    return rows, columns, signs


def _undominated(unit: Sequence[Alternative]) -> list[int]:
    """Those of which none other of the same shape is as good in everything."""

    def price(index: int) -> tuple[int, float, float]:
        each = unit[index]
        return each.nbytes, each.seconds, each.loss

    kept: list[int] = []
    for index in sorted(range(len(unit)), key=price):
        mine = price(index)
        alike = [k for k in kept if unit[k].shape == unit[index].shape]
        if not any(all(a <= b for a, b in zip(price(k), mine, strict=True)) for k in alike):
            kept.append(index)
    return kept
