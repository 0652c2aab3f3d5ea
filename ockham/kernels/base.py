"""What a backend is: all operations over its own arrays, the state's planes, and the sampler."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.seams import AdapterDtype, Layout, Linear, LowRank
from ockham.core.step import PackedAdapter, Step, StepOutput
from ockham.kernels.layout import GroupLayout as GroupLayout
from ockham.kernels.ops import Program
from ockham.kernels.sampling import Draw, Drawn


class Planes(Protocol):
    """The state of all layers, as a backend holds it. Groups are numbered as they were given."""

    layout: str
    """How whole pages lie in memory, with a version."""

    def copy(
        self,
        group: int,
        source: Longs,
        target: Longs,
        head: int | None = None,
        index: int | None = None,
    ) -> None:
        """Copy the state of slots `source` to slots `target`, in the group's layer `index`, or in
        all; of one `head`, or of all. All is read before anything is written."""
        ...

    def read(self, group: int, slots: Longs) -> npt.NDArray[np.generic]:
        """The stored bits of `slots`: (layers, planes, len(slots), heads, width)."""
        ...

    def write(self, group: int, slots: Longs, state: npt.NDArray[np.generic]) -> None:
        """Put back what `read` gave, bit for bit."""
        ...

    def stored_page_bytes(self, group: int) -> int:
        """Bytes of a whole page of all layers of the group, as it lies in memory."""
        ...

    def read_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        """Copy whole pages, as they lie in memory, to the rows of `data` (len(pages), ...), from
        byte `at` of each."""
        ...

    def write_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        """Put back what `read_pages` gave."""
        ...

    def read_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Copy the bytes of a whole page, as it lies in memory, from byte `start` on, as many as
        `data` has room for."""
        ...

    def write_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Put back what `read_part` gave."""
        ...

    def alike(self, group: int, slots: Longs) -> Ints:
        """An order of the slots, as places among them, in which keys that are alike stand side by
        side, for each layer and key-value head: (layers, kv_heads, len(slots)). `state/alike.h`
        says which. A function of the stored keys alone."""
        ...

    def back(self, group: int, index: int, pages: int) -> None:
        """Have the system back the first pages of the group's layer `index` with memory, so that
        the first to write to them need not wait. Changes nothing; may run beside a step."""
        ...


class Run(Protocol):
    """One step under way: its activations between ranges of the program.

    `x` (R, hidden) may be read and replaced at a breakpoint.
    """

    step: Step
    x: Floats


class Executor(Protocol):
    """A program bound to a backend and to its state."""

    def begin(self, step: Step) -> Run: ...

    def run(self, run: Run, start: int, stop: int) -> None:
        """Run operations [start, stop) of the program."""
        ...

    def finish(self, run: Run) -> StepOutput: ...

    def pack_adapter(self, sums: Sequence[LowRank], dtype: AdapterDtype) -> PackedAdapter:
        """What is added for the rows of one adapter (`Step.adapters`), read and packed one matrix
        after another, rounded to `dtype`. May run beside a step. Raises ValueError for what does
        not fit the program, and whatever `LowRank.read` raises."""
        ...

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        """Copy the state of slots `source` to slots `target`, in all layers of the group, where
        `target[i]` stands `shifts[i]` positions after `source[i]`.

        Keys are rotated on by their shift (a rotary embedding composes; its scale is in them
        already) and rounded once to the planes' dtype, values are copied; a shift of 0 changes no
        bit. Sources and targets must not overlap."""
        ...

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        """Choose a token for each draw; `draw.row` says from which row of `logits`."""
        ...

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        """The noise with which `sample` chooses among tokens (ids from 0) at a position, to the bit
        as `core.noise.gumbel` gives it."""
        ...

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        """For each row: token -> (log probability, rank) of the target, the `top` likeliest and
        those of `also`."""
        ...

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
        """Log probability, confidence over the `top` likeliest, and entropy: (n, 3), see
        `kernels.sampling.token_scores`."""
        ...


class Backend(Protocol):
    """All operations over one kind of array. `layout` is how it wants matrices of weights."""

    name: str
    layout: Layout

    def numerics(self, formats: Collection[str] = ()) -> str:
        """What decides the bits besides the weights: instruction set and kernel version, and where
        matrices of one of `formats` (by name) have bits of their own, whose those are."""
        ...

    def multiply(self, linear: Linear, x: Floats) -> Floats:
        """A product outside of any step, with the backend's own threads: of rows x (n, in_features)
        with a matrix in its layout."""
        ...

    def allocate(self, groups: Sequence[GroupLayout]) -> Planes: ...

    def bind(self, program: Program, planes: Planes) -> Executor: ...
