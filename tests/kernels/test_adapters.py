"""What adapters add to products: as the reference means it, and the same bits in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ockham.core.seams import AdapterDtype, LowRank, MatrixPart
from ockham.core.step import PackedAdapter
from ockham.kernels.base import Backend, Executor
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import isas
from tests.helpers.programs import VOCABULARY, Shape, on
from tests.helpers.steps import Part, Stepper

DTYPES: tuple[AdapterDtype, ...] = ("float32", "bfloat16", "int8")
SHAPE = Shape(hidden=48, inner=40, biases=True)  # the up projection begins inside of a panel
WIDE = Shape(hidden=160, inner=272, heads=10, kv_heads=2, weights="int8")


def cpu(threads: int = 2) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def sums(shape: Shape, seed: int, rank: int, spread: float = 0.3) -> list[LowRank]:
    """Something for all parts of all matrices but one."""
    rng = np.random.default_rng(seed)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = [
        MatrixPart(f"layer.{layer}.{role}", first, outputs, inputs)
        for layer in range(shape.layers)
        for role, first, outputs, inputs in (
            ("qkv", 0, q, shape.hidden),
            ("qkv", q + kv, kv, shape.hidden),
            ("out", 0, shape.hidden, q),
            ("gate_up", 0, shape.inner, shape.hidden),
            ("gate_up", shape.inner, shape.inner, shape.hidden),
            ("down", 0, shape.hidden, shape.inner),
        )
        if (layer, role) != (1, "out")
    ]

    def one(part: MatrixPart) -> LowRank:
        a = (spread * rng.standard_normal((rank, part.inputs))).astype(np.float32)
        b = (spread * rng.standard_normal((part.outputs, rank))).astype(np.float32)
        return LowRank(part, rank, 0.5, lambda: (a, b))

    return [one(part) for part in parts]


def pack(executor: Executor, shape: Shape, dtype: AdapterDtype) -> list[PackedAdapter]:
    """Adapters of different ranks."""
    ranks = enumerate((1, 5, 8, 16, 19))
    return [executor.pack_adapter(sums(shape, seed, rank), dtype) for seed, rank in ranks]


def tokens(count: int, seed: int = 1) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def outputs(backend: Backend, shape: Shape, dtype: AdapterDtype) -> list[np.ndarray]:
    """Prefills and decodes of seven sequences, two of which have no adapter."""
    stepper = Stepper(on(backend, shape))
    some = pack(stepper.executor, shape, dtype)
    of = (some[0], None, some[1], some[2], some[1], some[3], some[4])
    prompts = [Part(i, tokens(3 + 5 * i, seed=i)) for i in range(7)]
    decodes = [Part(i, tokens(1, seed=9 + i)) for i in range(7)]
    return [
        stepper.step(prompts, adapters=of).logits,
        stepper.step(decodes, adapters=of).logits,
        stepper.step([decodes[5]], adapters=(some[3],)).logits,
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas.NAMES)
def test_the_kernels_add_what_the_reference_adds(
    isa: str, dtype: AdapterDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    expected = outputs(ReferenceBackend(), SHAPE, dtype)
    for mine, theirs in zip(outputs(cpu(), SHAPE, dtype), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas.EVERY)
@pytest.mark.parametrize("shape", [SHAPE, WIDE], ids=["misaligned", "int8"])
def test_a_row_has_the_bits_that_it_has_alone(
    shape: Shape, isa: str, dtype: AdapterDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    together = Stepper(on(cpu(2), shape))
    some = pack(together.executor, shape, dtype)
    of = (some[0], None, some[1], some[2], some[1], some[3], some[4], some[1], some[3])
    texts = [tokens(70 - 7 * i, seed=i) for i in range(len(of))]
    found = together.step([Part(i, text) for i, text in enumerate(texts)], adapters=of).logits
    after = together.step([Part(i, [i + 1]) for i in range(len(of))], adapters=of).logits
    starts = np.cumsum([0, *map(len, texts)])
    for i, text in enumerate(texts):
        alone = Stepper(on(cpu(1), shape))
        own: Any = (None,)
        if of[i] is not None:
            own = (pack(alone.executor, shape, dtype)[some.index(of[i])],)
        chunks = [alone.step([Part(0, text[:11])], adapters=own).logits]
        chunks.append(alone.step([Part(0, text[11:])], adapters=own).logits)
        assert np.array_equal(np.concatenate(chunks), found[starts[i] : starts[i + 1]])
        assert np.array_equal(alone.step([Part(0, [i + 1])], adapters=own).logits[0], after[i])


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_rows_without_an_adapter_have_the_bits_of_a_step_without_any() -> None:
    beside, plain = Stepper(on(cpu(), WIDE)), Stepper(on(cpu(), WIDE))
    adapter = pack(beside.executor, WIDE, "bfloat16")[2]
    parts = [Part(0, tokens(40)), Part(1, tokens(20, seed=2))]
    found = beside.step(parts, adapters=(None, adapter)).logits
    assert np.array_equal(found[:40], plain.step(parts).logits[:40])


@pytest.mark.skipif(core is None, reason="the native core was not built")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_does_not_fit_the_program_is_refused(backend: str) -> None:
    stepper = Stepper(on(cpu() if backend == "cpu" else ReferenceBackend(), SHAPE))
    zeros = lambda: (np.zeros((2, 48), np.float32), np.zeros((64, 2), np.float32))  # noqa: E731
    for part in (
        MatrixPart("layer.7.qkv", 0, 64, 48),
        MatrixPart("layer.0.qkv", 100, 64, 48),
        MatrixPart("layer.0.qkv", -1, 64, 48),
        MatrixPart("head", 0, 64, 48),
        MatrixPart("layer.0.down", 0, 64, 48),
    ):
        with pytest.raises(ValueError, match=r"adde?d? to"):
            stepper.executor.pack_adapter([LowRank(part, 2, 1.0, zeros)], "bfloat16")


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_an_adapter_of_another_program_is_refused() -> None:
    one, other = Stepper(on(cpu(), SHAPE)), Stepper(on(cpu(), WIDE))
    adapter = pack(one.executor, SHAPE, "int8")[0]
    with pytest.raises(ValueError, match="does not fit the program"):
        other.step([Part(0, [1, 2])], adapters=(adapter,))
    with pytest.raises(ValueError, match="adapters for 2 of 1 sequences"):
        one.step([Part(0, [1, 2])], adapters=(adapter, None))
