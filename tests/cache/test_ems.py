"""`ems`: two scores in one, and cells that say the same as a better one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.cache.keep.budgets import BudgetKeeping
from ockham.cache.keep.ems import centres
from ockham.cache.keep.merging import AT_ONCE, directions
from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make, make_asks
from ockham.core.seams import AttentionGroup, KeptText, OwnRows, Seen

TOKENS = 60
PLACES: Ints = np.arange(TOKENS, dtype=np.int32)


class Held:
    """Keys of one layer and head, which are the values too."""

    def __init__(self, keys: Floats) -> None:
        self.keys = keys[None, None]

    def read(self, first: int, last: int) -> tuple[Floats, Floats]:
        return self.keys[:, :, first:last], self.keys[:, :, first:last]


def keeping_of(**given: Any) -> BudgetKeeping:
    text = KeptText(TOKENS, (AttentionGroup((0,), 1, None),), 8)
    (asked,) = make_asks({"keep/ems": given}).values()
    found: BudgetKeeping = make("keep", "ems").open(asked, text)
    return found


def look(keeping: BudgetKeeping, everywhere: Any, latest: Any) -> None:
    none: Any = np.empty(0)
    own = OwnRows(np.zeros(TOKENS, np.int32), PLACES, 0)
    totals = {0: [everywhere[None], latest[None]]}
    keeping.saw(own, Seen(False, none, none, none, {}, {}, totals=totals))


def slowly(keys: Floats, always: Any, barred: Any, alike: float) -> list[int]:
    """What `centres` says, one cell after the other, in float64."""
    into: list[int] = []
    cosines = keys.astype(np.float64) @ keys.astype(np.float64).T
    for cell in range(len(keys)):
        own = [c for c in range(cell) if into[c] < 0 and not barred[c]]
        best = max(own, key=lambda c: cosines[cell, c], default=-1)
        goes = best >= 0 and cosines[cell, best] >= alike and not always[cell]
        into.append(best if goes else -1)
    return into


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cells=st.integers(1, 40), alike=st.floats(0.1, 0.9))
def test_centres_are_those_of_one_cell_after_the_other(seed: int, cells: int, alike: float) -> None:
    rng = np.random.default_rng(seed)
    keys = directions(rng.standard_normal((cells, 3), np.float32))
    always, barred = rng.random(cells) < 0.2, rng.random(cells) < 0.1
    assert centres(keys, always, barred, alike).tolist() == slowly(keys, always, barred, alike)


def test_centres_of_many_cells_are_found_in_parts() -> None:
    rng = np.random.default_rng(1)
    keys = directions(rng.standard_normal((AT_ONCE + 90, 3), np.float32))
    none = np.zeros(len(keys), bool)
    assert centres(keys, none, none, 0.97).tolist() == slowly(keys, none, none, 0.97)


def test_a_cell_counts_by_the_sum_of_its_two_scores() -> None:
    keeping = keeping_of(budget=12, sinks=2, window=4, kernel=1)
    everywhere, latest = np.zeros(TOKENS), np.zeros(TOKENS)
    everywhere[[0, 20, 30]] = [50.0, 8.0, 3.0]
    latest[[30, 40, 59]] = [0.1, 0.4, 3.0]
    look(keeping, everywhere, latest)
    worth = keeping.worth(0, PLACES, TOKENS)[0, 0]
    global_ = [8 / 40, 3 / 30]  # by the rows that could see them; cells that stay do not scale
    assert np.isclose(worth[20], 1.0)
    assert np.isclose(worth[30], global_[1] / global_[0] + 0.1 / 0.4)
    assert np.isclose(worth[40], 1.0)


def test_a_cell_that_says_the_same_leaves_its_place_to_the_next() -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((TOKENS, 64), np.float32)
    keys[25] = 3 * keys[20] + 0.1 * keys[21]  # alike
    everywhere = np.zeros(TOKENS)
    everywhere[20:30] = np.arange(20, 10, -1) * (TOKENS - PLACES[20:30])
    for merge, alike in (("values", 0.9), ("both", 0.9), ("none", 0.9), ("both", 1.0)):
        given = {"kernel": 1, "pool": 2.0, "merge": merge, "alike": alike}
        keeping = keeping_of(budget=12, sinks=2, window=4, **given)
        look(keeping, everywhere, np.zeros(TOKENS))
        kept = keeping.reduce(0, PLACES, Held(keys))
        assert kept is not None
        chosen = [20, 21, 22, 23, 24, 26 if alike == 0.9 else 25]
        assert kept.cells[0, 0].tolist() == [0, 1, *chosen, 56, 57, 58, 59]
        if merge == "none" or alike == 1.0:
            assert kept.merges is None
            continue
        assert kept.merges is not None
        assert (kept.merges.dropped.tolist(), kept.merges.into.tolist()) == ([25], [2])
        assert np.allclose(kept.merges.weights, 15 / 20)
        assert kept.merges.keys == (merge == "both")


def test_where_all_say_the_same_the_best_stay() -> None:
    keeping = keeping_of(budget=12, sinks=2, window=4, kernel=1)
    everywhere = np.arange(TOKENS, 0, -1.0) * (TOKENS - PLACES)
    look(keeping, everywhere, np.zeros(TOKENS))
    kept = keeping.reduce(0, PLACES, Held(np.ones((TOKENS, 8), np.float32)))
    assert kept is not None
    assert kept.cells[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 56, 57, 58, 59]


@pytest.mark.parametrize(
    ("given", "setting", "words"),
    [
        ({"pool": 0.5}, "pool", "pool must be from 1 to 64"),
        ({"alike": 1.5}, "alike", "alike must be a cosine"),
        ({"kernel": 4}, "kernel", "an odd number from 1 to 63"),
        ({"window": 0}, "window", "window must be from 1"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], setting: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        make_asks({"keep/ems": given})
    assert caught.value.param == f"ems.{setting}"
    with pytest.raises(ConfigError, match=words):
        make("keep", f"ems:{setting}={given[setting]}")
