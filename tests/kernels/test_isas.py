"""What OCKHAM_ISA names is the best that is used, as if the processor lacked the rest."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.native import chosen_isa, core
from tests.helpers import isas

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")


@pytest.mark.parametrize("name", isas.EVERY)
def test_better_instruction_sets_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    isas.use(name, monkeypatch)
    usable = [core.isa_name(isa) for isa in core.Isa if core.supported(isa)]
    assert usable == list(isas.EVERY[: isas.EVERY.index(name) + 1])
    assert core.isa_name(core.detect()) == name
    assert core.isa_name(chosen_isa()) == name


def test_a_hidden_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    isas.use("portable", monkeypatch)
    pool, hidden = core.ThreadPool(1), core.Isa.AVX2
    refused = pytest.raises(ValueError, match=r"avx2 cannot be used: .* or OCKHAM_ISA hides it")
    with refused:
        core.Sampler(pool, hidden)
    with refused:
        core.arithmetic_rate(pool, hidden, core.Rate.FP32, 0.001)
    with refused:
        core.row_function(hidden, "exp", np.zeros(1, np.float32))
    with refused:
        core.gumbel(hidden, 0, 0, 0, 0)
    with refused:
        core.quantise(
            pool,
            hidden,
            "int8",
            0,
            np.zeros((16, 64), np.float32),
            np.zeros(1024, np.uint8),
            np.zeros(16, np.uint16),
        )
    assert core.parse_isa("avx2") == core.Isa.AVX2  # asking for a name's meaning is no use of it


def test_an_unknown_name_hides_nothing_and_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCKHAM_ISA", "mmx")
    with pytest.raises(ConfigError, match="no instruction set is called 'mmx'"):
        chosen_isa()
    with pytest.raises(ConfigError, match="no instruction set is called 'mmx'"):
        CpuBackend(1)
