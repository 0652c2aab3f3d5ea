"""Rates of a machine that is none, so that predictions are the same everywhere."""

from __future__ import annotations

import pytest

from ockham.core.rates import AttentionRate, ProductRate, Rates

PRODUCT = ProductRate(
    rows=(1, 8, 64), weight_s=(1e-11, 2e-11, 16e-11), stream=0.9, exposed=0.3, value_s=1e-10
)


@pytest.fixture(scope="session")
def rates() -> Rates:
    return Rates(
        flops_per_s=1e11,
        read_bytes_per_s=2e10,
        products=dict.fromkeys(("bf16", "fp32", "int8", "int4"), PRODUCT),
        attention=AttentionRate(cell_s=5e-9, key_s=1e-8, stream=0.8, run_s=1e-6),
        loop_s=1e-6,
        gate_value_s=1e-10,
        rotation_value_s=1e-10,
        logit_s=1e-10,
        step_s=2e-5,
        sequence_s=1e-6,
        drawn_s=1e-9,
    )
