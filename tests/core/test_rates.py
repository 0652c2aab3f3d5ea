"""Predicted seconds are sums of terms that each have a meaning."""

from __future__ import annotations

import math

import pytest

from ockham.core.cost import GroupCost, ModelCost, ProductCost
from ockham.core.rates import AttentionRate, ProductRate, Rates, predict

PRODUCT = ProductRate(
    rows=(1, 4, 16), weight_s=(2e-12, 5e-12, 20e-12), stream=0.5, exposed=0.0, value_s=1e-10
)
RATES = Rates(
    flops_per_s=1e11,
    read_bytes_per_s=1e10,
    products={"int8": PRODUCT},
    attention=AttentionRate(cell_s=2e-8, key_s=1e-8, stream=1.0),
    loop_s=1e-6,
    gate_value_s=1e-9,
    rotation_value_s=1e-9,
    logit_s=1e-9,
    step_s=1e-3,
    sequence_s=1e-4,
)


def cost(**changes: object) -> ModelCost:
    fields: dict[str, object] = {
        "linear_flops": 2 * 10 * 1000 * 1000,
        "head_flops": 2 * 500 * 1000,
        "dense_weight_bytes": 10 * 1000 * 1000,
        "head_weight_bytes": 500 * 1000,
        "embedding_row_bytes": 1000,
        "groups": (GroupCost(10, 4, 16, 1280, None, 2),),
        "products": (
            ProductCost("int8", 1000, 1000, 10**6, 10),
            ProductCost("int8", 500, 1000, 500_000, 1, head=True),
        ),
        "gate_values": 3000,
        **changes,
    }
    return ModelCost(**fields)  # type: ignore[arg-type]


def test_weights_take_what_was_probed_and_between_probes_a_line() -> None:
    assert PRODUCT.weight_seconds(1) == 2e-12
    assert PRODUCT.weight_seconds(4) == 5e-12
    assert PRODUCT.weight_seconds(10) == pytest.approx(12.5e-12)
    assert PRODUCT.weight_seconds(64) == pytest.approx(80e-12)


def test_one_row_reads_all_weights_and_many_rows_compute() -> None:
    one = predict(cost(), RATES, [(1, 1)], 1, 500)
    assert one.products == pytest.approx(10.5e6 / (1e10 * 0.5))
    many = predict(cost(), RATES, [(1, 64)], 0, 500)
    assert many.products == pytest.approx(10e6 * max(80e-12, 1 / (1e10 * 0.5)))
    assert predict(cost(), RATES, [(1, 256)], 0, 500).products == pytest.approx(10e6 * 320e-12)


def test_what_is_exposed_counts_most_where_reading_and_arithmetic_are_in_balance() -> None:
    half = ProductRate((1,), (1e-10,), stream=1.0, exposed=0.5, value_s=0.0)
    of = cost(products=(ProductCost("int8", 1000, 1000, 10**6, 1),))
    rates = RATES.at(RATES.read_bytes_per_s, RATES.flops_per_s)
    balanced = predict(
        of, _with(rates, half), [(1, 1)], 0, 1
    ).products  # 100 us of reading, 100 us of arithmetic
    assert balanced == pytest.approx(150e-6)
    slow = predict(of, _with(rates, half), [(1, 2)], 0, 1).products
    assert slow == pytest.approx(200e-6 + 0.5 * 100e-6 * 0.5)


def _with(rates: Rates, product: ProductRate) -> Rates:
    import dataclasses

    return dataclasses.replace(rates, products={"int8": product})


def test_a_probe_that_noise_left_without_time_predicts_none() -> None:
    none = ProductRate((1,), (0.0,), stream=1.0, exposed=0.5, value_s=0.0)
    import dataclasses

    cached = dataclasses.replace(_with(RATES, none), cache_bytes=1 << 40)
    assert predict(cost(), cached, [(1, 1)], 1, 500).products == 0


def test_weights_that_a_cache_holds_are_not_read() -> None:
    import dataclasses

    cached = dataclasses.replace(RATES, cache_bytes=32 << 20)
    assert predict(cost(), cached, [(1, 1)], 1, 500).products == pytest.approx(10.5e6 * 2e-12)


def test_attention_grows_with_keys_and_a_window_ends_that() -> None:
    near, far = ([(keys, 1)] for keys in (100, 1000))
    assert predict(cost(), RATES, far, 1, 1).attention == pytest.approx(10 * 1000 * 3e-8)
    windowed = cost(groups=(GroupCost(10, 4, 16, 1280, 64, 2),))
    assert (
        predict(windowed, RATES, far, 1, 1).attention
        == predict(windowed, RATES, near, 1, 1).attention
    )


def test_sequences_logits_and_values_add_up() -> None:
    found = predict(cost(), RATES, [(1, 1), (1, 1)], 2, 500)
    assert found.bookkeeping == pytest.approx(1e-3 + 2e-4)
    assert found.logits == pytest.approx(2 * 500 * 1e-9)
    assert found.values == pytest.approx(2 * (3000 + 10 * 8 * 16) * 1e-9 + 2 * 11_000 * 1e-10)
    assert found.total == pytest.approx(
        math.fsum(getattr(found, name) for name in found.__dataclass_fields__)
    )


def test_experts_are_read_as_far_as_rows_choose_them() -> None:
    of = cost(
        products=(ProductCost("int8", 100, 100, 10_000, 3, experts=8, experts_per_row=2),),
    )
    one = predict(of, RATES, [(1, 1)], 0, 1).products
    many = predict(of, RATES, [(1, 4)], 0, 1).products
    assert one == pytest.approx(3 * 2 * 10_000 / (1e10 * 0.5))
    assert many == pytest.approx(4 * one)
    assert predict(of, RATES, [(1, 8)], 0, 1).products == pytest.approx(many)


def test_a_slower_machine_takes_longer_in_proportion() -> None:
    parts = [(1, 200)]
    half = RATES.at(RATES.read_bytes_per_s / 2, RATES.flops_per_s / 2)
    assert predict(cost(), half, parts, 1, 500).total == pytest.approx(
        2 * predict(cost(), RATES, parts, 1, 500).total
    )
    reads = RATES.at(RATES.read_bytes_per_s / 2, RATES.flops_per_s)
    assert predict(cost(), reads, [(1, 1)], 1, 500).products == pytest.approx(
        2 * predict(cost(), RATES, [(1, 1)], 1, 500).products
    )
