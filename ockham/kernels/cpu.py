"""The cpu backend: the compiled kernels of csrc/, run over whole ranges of a program.

Exact: a row's result has the same bits whatever other rows are in the step, however its prompt was
cut into chunks and however many threads there are. What decides the bits is the instruction set
and `KERNELS`. With keys and values in bfloat16, queries and attention weights are rounded to it
where they enter a product (and weights before they are summed), as bf16 matrix units read them;
sums are fp32. It knows tensors, never models.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.noise import gumbel_of
from ockham.core.seams import AdapterDtype, Layout, Linear, LowRank
from ockham.core.step import PackedAdapter, Step, StepOutput
from ockham.kernels import sampling
from ockham.kernels.base import GroupLayout, Planes, Run
from ockham.kernels.cores import allowed_cores
from ockham.kernels.cpu_layout import PANELS, native_matrix
from ockham.kernels.native import chosen_isa, core
from ockham.kernels.ops import Program
from ockham.kernels.sampling import Draw, Drawn

if TYPE_CHECKING:
    from ockham.kernels import _cpu

KERNELS = 3
"""Raised whenever a change to the kernels changes a bit of any result."""

_ELEMENTS = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}

_NOT_FINITE = -2  # instead of a token: csrc/kernels/sampler.h


class CpuPlanes:
    """Keys and values as csrc/state/planes.h lays them out, zeroed, backed when written."""

    layout = "cpu-1"

    def __init__(self, groups: Sequence[GroupLayout], threads: int) -> None:
        self.groups = tuple(groups)
        self._threads = threads
        self.native = core.Planes(self.groups)

    def copy(
        self,
        group: int,
        source: Longs,
        target: Longs,
        head: int | None = None,
        index: int | None = None,
    ) -> None:
        head, index = (-1 if each is None else each for each in (head, index))
        self.native.copy(group, _slots(source), _slots(target), head, index)

    def read(self, group: int, slots: Longs) -> npt.NDArray[np.generic]:
        return cast("npt.NDArray[np.generic]", self.native.read(group, _slots(slots)))

    def write(self, group: int, slots: Longs, state: npt.NDArray[np.generic]) -> None:
        self.native.write(group, _slots(slots), np.ascontiguousarray(state))

    def stored_page_bytes(self, group: int) -> int:
        return self.native.stored_page_bytes(group)

    def read_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        self.native.read_pages(group, _slots(pages), data, at)

    def write_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        self.native.write_pages(group, _slots(pages), data, at)

    def read_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        self.native.read_part(group, page, start, data)

    def write_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        self.native.write_part(group, page, start, data)

    def alike(self, group: int, slots: Longs) -> Ints:
        return cast("Ints", self.native.alike(group, _slots(slots), self._threads))

    def back(self, group: int, index: int, pages: int) -> None:
        self.native.back(group, index, pages)


def _slots(slots: Longs) -> Longs:
    return np.ascontiguousarray(slots, np.int64)


class CpuExecutor:
    """A program converted once to native records; a range of it is one call without the GIL."""

    def __init__(
        self, program: Program, planes: CpuPlanes, pool: _cpu.ThreadPool, isa: _cpu.Isa
    ) -> None:
        matrices: dict[int, _cpu.Matrix] = {}  # one for a table that is embedding and head

        def matrices_of(linear: Linear) -> list[_cpu.Matrix]:
            parts = getattr(linear, "parts", (linear,))  # of a matrix in several formats
            for part in parts:
                if id(part) not in matrices:
                    matrices[id(part)] = native_matrix(part)
            return [matrices[id(part)] for part in parts]

        self.program = program
        self._sampler = core.Sampler(pool, isa)
        self._pool, self._isa = pool, isa
        self._native = core.Executor.bind(pool, isa, planes.native, program.ops, matrices_of)

    def begin(self, step: Step) -> Run:
        """Raises ValueError if the step breaks its contract."""
        return cast("Run", self._native.begin(step))

    def run(self, run: Run, start: int, stop: int) -> None:
        self._native.run(cast("_cpu.Run", run), start, stop)

    def finish(self, run: Run) -> StepOutput:
        output = StepOutput(*self._native.finish(cast("_cpu.Run", run)))
        sampling.check_finite(output.largest)
        return output

    def pack_adapter(self, sums: Sequence[LowRank], dtype: AdapterDtype) -> PackedAdapter:
        element = _ELEMENTS[dtype]
        shapes = [(each.part.outputs, each.part.inputs, each.rank) for each in sums]
        nbytes = sum(core.low_rank_bytes(*shape, core.FactorType[element]) for shape in shapes)
        adapter = core.adapter(self._native, nbytes)
        for each in sums:
            a, b = (np.ascontiguousarray(values, np.float32) for values in each.read())
            adapter.add(each.part.role, each.part.first, each.scale, a, b, core.FactorType[element])
        return adapter

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        self._native.reposition(
            group, _slots(source), _slots(target), np.ascontiguousarray(shifts, np.int32)
        )

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        tokens = self._sampler.sample(logits, draws)
        for token, draw in zip(tokens, draws, strict=True):
            if token == _NOT_FINITE:
                sampling.process(logits[draw.row], draw)  # raises, naming the logit
        return [Drawn(None if token < 0 else token) for token in tokens]

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        words = np.empty(len(tokens), np.uint32)
        core.noise_words(self._isa, seed, stream, position, _slots(tokens), words)
        return gumbel_of(words)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        return sampling.logprobs(logits, targets, top, also)

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
        found = np.empty((len(rows), 3))
        if not core.score_tokens(self._pool, self._isa, logits, rows, tokens, top, found):
            sampling.check_finite(logits[rows].max(axis=1))  # raises, naming the logit
        return found


class CpuBackend:
    """All operations by the compiled kernels, with `threads` threads (all available cores).

    Raises ConfigError if OCKHAM_ISA names an instruction set that this processor lacks.
    """

    name = "cpu"
    layout: Layout = PANELS

    def __init__(self, threads: int | None = None) -> None:
        self._pool = core.ThreadPool(threads or allowed_cores())
        self._isa = chosen_isa()

    def numerics(self, formats: Collection[str] = ()) -> str:
        bits = core.bits_of(self._isa)
        own = {
            name: core.isa_name(core.product_bits(name, self._isa))
            for name in sorted(formats)
            if core.product_bits(name, self._isa) != bits
        }
        return f"cpu-{KERNELS}/{core.isa_name(bits)}" + "".join(
            f"+{name}/{isa}" for name, isa in own.items()
        )

    def multiply(self, linear: Linear, x: Floats) -> Floats:
        x = np.ascontiguousarray(x, np.float32)
        parts = getattr(linear, "parts", (linear,))  # of a matrix in several formats
        found = [core.linear(self._pool, self._isa, native_matrix(each), x) for each in parts]
        return np.concatenate(found, axis=1)

    def allocate(self, groups: Sequence[GroupLayout]) -> CpuPlanes:
        return CpuPlanes(groups, self._pool.size)

    def bind(self, program: Program, planes: Planes) -> CpuExecutor:
        if not isinstance(planes, CpuPlanes):
            raise TypeError("the cpu backend runs over the planes that it allocated itself.")
        return CpuExecutor(program, planes, self._pool, self._isa)
