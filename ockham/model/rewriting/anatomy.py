"""Which tensors of a checkpoint stand where in a model: found by compiling it, so that every
architecture that can be run can be looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Block, FeedForwardNames, Linear, Role
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Embed,
    Experts,
    FeedForward,
    Head,
    Norm,
    Program,
    Recurse,
    Route,
)
from ockham.model.packed.layout import key_of
from ockham.model.program.compile import compile_program
from ockham.model.program.compiling.tensors import SHORTCUT
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, VectorPart, matrix_shape, vector_length


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model's parts. `matrices` and `vectors` are the names that transforms use; where one is a
    slice of a stored tensor, `slices` says of which rows."""

    table: str
    head: str
    final_norm: str
    blocks: tuple[Block, ...]
    slices: dict[str, Part]
    """Every matrix by the name that transforms know it under."""
    vectors: dict[str, int]
    norms: frozenset[str]
    """Of the vectors, those to which the architecture adds its offset."""
    obstacles: tuple[str, ...]
    """What besides norms and matrices reads or writes the residual stream, in words."""


class NamedMatrix:
    """A matrix of which only its parts are known."""

    format = "none"
    nbytes = 0

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.out_features, self.in_features = matrix_shape(parts)
        self.arrays: dict[str, Array] = {}

    def matmul(self, x: Floats) -> NoReturn:
        raise ModelError("the weights of this program have not been loaded.")

    def rows(self, ids: npt.NDArray[np.int32]) -> NoReturn:
        raise ModelError("the weights of this program have not been loaded.")


class Names:
    """Weights that remember what they were asked for."""

    def __init__(self, has: Callable[[str], bool]) -> None:
        self.has = has
        self.vectors: dict[str, int] = {}
        self.offset: set[str] = set()
        self._arrays: list[tuple[Floats, list[str]]] = []

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        return NamedMatrix(parts)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        values = np.empty(vector_length(parts), np.float32)
        self._arrays.append((values, [name for name, _ in parts]))
        self.vectors.update((name, math.prod(shape)) for name, shape in parts)
        if offset:
            self.offset.update(name for name, _ in parts)
        return values

    def of(self, values: Floats | None) -> list[str]:
        """The names of a vector that was given; none of None."""
        return next((names for array, names in self._arrays if array is values), [])


def look_at(description: ModelDescription, has: Callable[[str], bool]) -> Anatomy:
    """The parts of a model of which `has` knows the tensors. Raises ModelError as the compiler
    does, for a model that does not generate text, and for layers of other kinds."""
    if not description.generates or not description.causal:
        raise ModelError(
            f"{description.architecture.name} is a model of vectors or classes, which transforms "
            "do not rewrite; name a model that generates text."
        )
    if description.activation == "clamped_swiglu":
        raise ModelError(
            f"{description.architecture.name} clamps its gates and ups, so that no scale and no "
            "basis passes through them: transforms do not rewrite it; convert it without one."
        )
    names = Names(has)
    program = compile_program(description, names, description.max_position_embeddings)
    for op in program.ops:
        if not isinstance(op, _REWRITTEN):
            raise ModelError(
                f"{description.architecture.name} has layers of the kind {type(op).__name__}, "
                "which transforms do not rewrite; name a model whose layers are attention and "
                "feed-forwards alone."
            )
        if getattr(op, "inner_norm", None) is not None:
            raise ModelError(
                f"{description.architecture.name} norms what its last products multiply, through "
                "which transforms do not rewrite; convert it without one."
            )
    return _Surgeon(names, program, description).anatomy()


_REWRITTEN = (
    Embed,
    AttentionInput,
    Attend,
    AttentionOutput,
    FeedForward,
    Route,
    Experts,
    Recurse,
    Head,
)
"""The operations of models that are taken apart."""


class _Surgeon:
    def __init__(self, names: Names, program: Program, description: ModelDescription) -> None:
        self._names, self._program, self._d = names, program, description
        self._slices: dict[str, Part] = {}
        self._obstacles: list[str] = []

    def anatomy(self) -> Anatomy:
        table = head = final = ""
        blocks: list[Block] = []
        ops = self._program.ops
        for number, op in enumerate(ops):
            if isinstance(op, Embed):
                table = self._whole(op.table)
                if op.positions is not None or op.norm is not None:
                    self._obstacles.append("positions or a norm are added to its embeddings")
            elif isinstance(op, AttentionInput):
                output = next(each for each in ops[number:] if isinstance(each, AttentionOutput))
                blocks.append(self._attention(op, output))
            elif isinstance(op, FeedForward):
                blocks.append(self._feed_forward(op))
            elif isinstance(op, Route):
                experts = next(each for each in ops[number:] if isinstance(each, Experts))
                blocks.append(self._experts(op, experts))
            elif isinstance(op, Head):
                head = self._whole(op.out)
                final = self._norm(op.norm, "its head")
        return Anatomy(
            table,
            head,
            final,
            tuple(blocks),
            self._slices,
            self._names.vectors,
            frozenset(self._names.offset),
            tuple(dict.fromkeys(self._obstacles)),
        )

    def _attention(self, op: AttentionInput, output: AttentionOutput) -> Block:
        reads = self._parts(op.qkv)
        biases, first = self._names.of(op.bias), (op.heads + op.kv_heads) * op.head_dim
        self._check(output.post_norm, output.stream_norm, output.shortcut, "attention")
        out = self._whole(output.out)
        return Block(
            op.layer,
            "attention",
            self._norm(op.norm, "its attention"),
            tuple(reads),
            (out,),
            tuple(self._names.of(output.bias)),
            value=(reads[-1], 0 if len(reads) == 3 else first),
            value_bias=(biases[-1], 0 if len(biases) == 3 else first) if biases else None,
            shortcut=_shortcut(out),
        )

    def _feed_forward(self, op: FeedForward) -> Block:
        self._check(op.post_norm, op.stream_norm, op.shortcut, "feed-forward")
        inner = self._inner(op.gate_up, op.down, op.gated, self._names.of(op.gate_up_bias))
        return Block(
            op.layer,
            "feed_forward",
            self._norm(op.norm, "its feed-forward"),
            tuple(name for name in (inner.gate, inner.up) if name is not None),
            (inner.down,),
            tuple(self._names.of(op.down_bias)),
            (inner,),
            shortcut=_shortcut(inner.down),
        )

    def _experts(self, route: Route, op: Experts) -> Block:
        self._check(op.post_norm, None, op.shortcut, "experts")
        router = self._whole(route.router)
        inners = [
            self._inner(gate_up, down, True, [], number)
            for number, (gate_up, down) in enumerate(zip(op.gate_up, op.down, strict=True))
        ]
        reads = [router]
        if op.shared_gate_up is not None and op.shared_down is not None:
            inners.append(self._inner(op.shared_gate_up, op.shared_down, True, []))
        if op.shared_gate is not None:
            reads.append(self._whole(op.shared_gate))
        reads += [name for each in inners for name in (each.gate, each.up) if name is not None]
        return Block(
            op.layer,
            "feed_forward",
            self._norm(route.norm, "its router"),
            tuple(reads),
            tuple(each.down for each in inners),
            feed_forwards=tuple(inners),
            shortcut=_shortcut(router),
        )

    def _inner(
        self,
        gate_up: Linear,
        down: Linear,
        gated: bool,
        biases: list[str],
        number: int | None = None,
    ) -> FeedForwardNames:
        names = self._parts(gate_up, halves=gated)
        gate, up = (names[0], names[1]) if gated else (None, names[0])
        own = biases if len(biases) == len(names) else []
        if biases and not own:
            self._obstacles.append("its gates' biases are stored fused")
        return FeedForwardNames(
            gate,
            up,
            self._whole(down),
            own[0] if own and gated else None,
            own[-1] if own else None,
            number,
        )

    def _check(
        self, post: Norm | None, stream: Norm | None, shortcut: Linear | None, what: str
    ) -> None:
        if shortcut is not None:
            self._whole(shortcut)
            self._obstacles.append("its stream is sliced")
        if post is not None:
            self._obstacles.append(f"what its {what} gives is normed before it is added")
        if stream is not None:
            self._obstacles.append(f"its stream is normed after its {what}")

    def _norm(self, norm: Norm | None, what: str) -> str:
        if norm is None or norm.kind != "rms" or norm.bias is not None:
            self._obstacles.append(f"no RMS norm stands before {what}")
        return next(iter(self._names.of(None if norm is None else norm.weight)), "")

    def _whole(self, linear: Linear) -> str:
        (name,) = self._parts(linear)
        return name

    def _parts(self, linear: Linear, halves: bool = False) -> list[str]:
        """The names of a matrix's parts; with `halves`, of both halves of one that is fused."""
        assert isinstance(linear, NamedMatrix)
        parts = list(linear.parts)
        if halves and len(parts) == 1:
            (part,) = parts
            middle = (part.start + part.stop) // 2
            parts = [
                Part(part.name, part.shape, part.start, middle),
                Part(part.name, part.shape, middle, part.stop),
            ]
        for part in parts:
            self._slices[key_of([part])] = part
        return [key_of([part]) for part in parts]


def _shortcut(name: str) -> str:
    """The name of the matrix on the stream beside a block whose last matrix, or router, this is."""
    return f"{name.partition('[')[0].removesuffix('.weight').rpartition('.')[0]}.{SHORTCUT}.weight"


def is_whole(part: Part) -> bool:
    """Whether a part is a tensor of its own."""
    return part.start == 0 and part.stop == math.prod(part.shape[:-1])


def fused(slices: dict[str, Part]) -> Iterator[tuple[str, list[str]]]:
    """Of each stored tensor, the names of its slices in their order."""
    found: dict[str, list[str]] = {}
    for name, part in sorted(slices.items(), key=lambda each: (each[1].name, each[1].start)):
        found.setdefault(part.name, []).append(name)
    yield from found.items()
