"""All kernels of a model's program, one case after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ockham.kernels.ops import Program
from ockham.lab.kernels.attention import attention_cases
from ockham.lab.kernels.experts import expert_cases
from ockham.lab.kernels.heads import head_cases
from ockham.lab.kernels.limits import Limits
from ockham.lab.kernels.measure import Case
from ockham.lab.kernels.products import product_cases
from ockham.lab.kernels.rows import row_cases

KINDS = ("products", "experts", "attention", "rows", "head")


def cases(
    program: Program,
    state_dtype: str,
    limits: Limits,
    rows: Sequence[int],
    contexts: Sequence[int],
    kinds: Sequence[str],
    left_out: list[str],
) -> Iterator[Case]:
    """Cases of these `kinds`; what takes too much memory is named in `left_out` instead."""
    if "products" in kinds:
        yield from product_cases(program, limits, rows)
    if "experts" in kinds:
        yield from expert_cases(program, limits, rows)
    if "attention" in kinds:
        yield from attention_cases(program, state_dtype, limits, rows, contexts, left_out)
    if "rows" in kinds:
        yield from row_cases(program, state_dtype, limits, rows)
    if "head" in kinds:
        yield from head_cases(program, limits, rows)
