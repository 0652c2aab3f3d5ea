"""What attention costs where every row sees its whole sequence."""

from __future__ import annotations

import pytest

from ockham.core.cost import GroupCost


@pytest.mark.parametrize("window", [None, 1, 3, 8, 40])
@pytest.mark.parametrize("rows", [1, 2, 7, 20])
def test_rows_that_see_both_ways_are_counted_key_by_key(rows: int, window: int | None) -> None:
    group = GroupCost(1, 1, 1, 4, window, 1, causal=False)
    far = rows if window is None else window - 1
    counted = sum(abs(i - j) <= far for i in range(rows) for j in range(rows))
    assert group.keys_seen(1, rows) == counted
