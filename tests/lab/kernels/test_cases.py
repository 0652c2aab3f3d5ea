"""What each kernel is said to move and to do is what its shape implies; none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.kernels.cpu_layout import in_panels
from ockham.kernels.native import core
from ockham.kernels.ops import Experts, FeedForward
from ockham.lab.kernels.all import KINDS, cases
from ockham.lab.kernels.limits import Limits
from ockham.lab.kernels.measure import Case, measure
from ockham.lab.kernels.products import cold_matrices, matrices
from tests.helpers.programs import SHAPES, VOCABULARY, random_program

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

PLAIN = SHAPES["plain"]


@pytest.fixture(scope="module")
def limits() -> Limits:
    return Limits(2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches need not be filled to count."""
    for module in ("products", "attention", "heads"):
        monkeypatch.setattr(f"ockham.lab.kernels.{module}.COLD_BYTES", 1 << 16)


def of(
    name: str, limits: Limits, *kinds: str, rows: tuple[int, ...] = (1, 3), **changes: object
) -> Iterator[Case]:
    program = random_program(replace(SHAPES[name], **changes))  # type: ignore[arg-type]
    return cases(program, SHAPES[name].state, limits, rows, (40,), kinds, [])


def test_every_distinct_product_is_there_once() -> None:
    found = matrices(random_program(PLAIN))
    heads = (PLAIN.heads + 2 * PLAIN.kv_heads) * PLAIN.head_dim
    assert {shape: len(linears) for shape, linears in found.items()} == {
        ("qkv", f"fp32 ({heads}, 48)"): 2,
        ("out", "fp32 (48, 64)"): 2,
        ("gate and up", "fp32 (80, 48)"): 2,
        ("down", "fp32 (48, 40)"): 2,
        ("head", f"fp32 ({VOCABULARY}, 48)"): 1,
    }


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_a_product_reads_its_weights_once_whatever_the_rows(limits: Limits, weights: str) -> None:
    program = random_program(replace(PLAIN, weights=weights, hidden=64, inner=64, heads=4))
    down = next(op.down for op in program.ops if isinstance(op, FeedForward))
    found = [
        case
        for case in cases(program, "float32", limits, (1, 3), (), ("products",), [])
        if case.kernel == "down"
    ]
    nbytes = in_panels(down).nbytes
    assert [case.bytes for case in found] == [nbytes + 4 * rows * (64 + 64) for rows in (1, 3)]
    assert [case.operations for case in found] == [2 * 64 * 64, 3 * 2 * 64 * 64]


def test_decode_reads_all_keys_of_every_sequence_and_prefill_those_of_one(limits: Limits) -> None:
    found = {(c.kernel, c.rows): c for c in of("plain", limits, "attention")}
    key_bytes = 2 * PLAIN.kv_heads * PLAIN.head_dim * 4
    row_bytes = 2 * 4 * PLAIN.heads * PLAIN.head_dim
    decode, prefill = found["attention, decode", 3], found["attention, prefill", 3]
    assert decode.bytes == 3 * (40 * key_bytes + row_bytes)
    assert prefill.bytes == 40 * key_bytes + 3 * row_bytes
    per_key = 4 * PLAIN.heads * PLAIN.head_dim
    assert decode.operations == 3 * 40 * per_key
    assert prefill.operations == (38 + 39 + 40) * per_key
    assert ("attention, prefill", 40) in found  # the whole prompt


def test_a_window_hides_keys_from_the_count(limits: Limits) -> None:
    decodes = [c for c in of("window", limits, "attention", rows=(1,)) if c.rows == 1]
    found = {case.shape.partition("window ")[2]: case for case in decodes}
    per_key = 4 * PLAIN.heads * PLAIN.head_dim
    assert found["5"].operations == 5 * per_key
    assert found[""].operations == 40 * per_key


def test_only_chosen_experts_are_read(limits: Limits) -> None:
    program = random_program(SHAPES["experts"])
    experts = next(op for op in program.ops if isinstance(op, Experts))
    expert_bytes = experts.gate_up[0].nbytes + experts.down[0].nbytes
    one, many = of("experts", limits, "experts", rows=(1, 500))
    assert one.bytes == 2 * expert_bytes
    assert many.bytes == 5 * expert_bytes
    assert many.operations == 500 * one.operations


def test_too_large_a_state_is_left_out_and_named(
    limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ockham.lab.kernels.attention.MOST_BYTES", 1 << 18)
    left_out: list[str] = []
    program = random_program(PLAIN)
    found = list(cases(program, "float32", limits, (1, 64), (40,), ("attention",), left_out))
    assert left_out == ["decode of 64 rows with 40 keys each"]
    assert ("attention, decode", 64) not in {(case.kernel, case.rows) for case in found}


@pytest.mark.parametrize("name", ["plain", "bf16", "shared expert", "window", "gelu"])
def test_every_case_runs(limits: Limits, name: str) -> None:
    for case in of(name, limits, *KINDS):
        times = case.run(2)
        assert len(times) >= 1
        assert all(seconds > 0 for seconds in times), case
        assert case.bytes > 0


def test_the_share_is_the_least_possible_time_over_the_time_taken(limits: Limits) -> None:
    case = Case("slow", "", 1, 10**9, 7, core.Rate.FP32, lambda calls: [0.5] * calls)
    (found,) = measure([case], limits, 1, 0.5)
    assert found.time_s == 0.5
    assert found.share == pytest.approx(10**9 / found.read_bytes_per_s / 0.5)
    (found,) = measure([replace(case, operations=10**12)], limits, 1, 0.5)
    assert found.share == pytest.approx(10**12 / found.operations_per_s / 0.5)


def test_copies_of_a_matrix_multiply_as_it_does(limits: Limits) -> None:
    linear = random_program(replace(PLAIN, weights="int4", hidden=64, inner=64)).ops[-1].out  # type: ignore[union-attr]
    x = np.random.default_rng(0).standard_normal((2, 64), np.float32)
    found = cold_matrices([linear], limits).matrices
    assert len(found) > 1
    results = [core.linear(limits.pool, limits.isa, matrix, x) for matrix in found]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_without_compiled_kernels_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ockham.lab.kernels.limits.core", None)
    with pytest.raises(ConfigError, match="no compiled kernels to measure"):
        Limits(1)


def test_an_argmax_spares_the_writing_of_logits(limits: Limits) -> None:
    logits, argmax = of("plain", limits, "head", rows=(3,))
    assert (logits.kernel, argmax.kernel) == ("head, then sampler", "head, argmax")
    assert logits.bytes - argmax.bytes == 2 * 4 * 3 * VOCABULARY
    assert logits.operations == argmax.operations == 3 * 2 * VOCABULARY * 48
