"""`python -m benchmarks.sparse_weights`: what is timed is what it says."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.kernels.native import chosen_isa, core, reason

if core is None:
    pytest.skip(reason, allow_module_level=True)

from benchmarks.sparse_weights import PAIRS, Layer, copies_of, pruned, read_rate, timed


def test_a_share_is_zero_and_takes_less_bytes() -> None:
    weights = pruned((64, 256), 0.5)
    assert np.mean(weights == 0) == pytest.approx(0.5, abs=0.02)
    for dense, sparse in PAIRS:
        matrices = {name: copies_of(name, weights, 64 << 10) for name in (dense, sparse)}
        assert all(sum(each.nbytes for each in some) >= 64 << 10 for some in matrices.values())
        found = timed(core.ThreadPool(1), chosen_isa(), matrices, 2, 2)
        assert found[sparse].nbytes < 0.8 * found[dense].nbytes
        assert all(each.seconds > 0 for each in found.values())
        layer = Layer()
        layer.add(found)
        layer.add(found)
        assert layer.nbytes[sparse] == 2 * found[sparse].nbytes


def test_memory_is_read_at_some_rate() -> None:
    assert read_rate(core.ThreadPool(1), chosen_isa()) > 1e8
