"""What all blocks that draft have in common: a program of one layer, and what is carried between
its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import DoesNotFit
from ockham.core.seams import Linear, Role
from ockham.core.units import readable
from ockham.kernels.base import GroupLayout
from ockham.kernels.ops import Program
from ockham.model.loading import LoadedModel
from ockham.model.machine_memory import available_bytes
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, VectorPart, Weights

LAYER, NORM = "layers.0.", "norm.weight"
"""How the names of a block's tensors begin where it is compiled as a model of one layer."""


Product = Callable[[Floats], Floats]
"""Rows (n, in) times a matrix: (n, out)."""


class Arithmetic(Protocol):
    """What a block does outside of its program, of a few rows each time."""

    def carry(self, states: Sequence[Floats]) -> Floats:
        """What is carried from rows of the model: of their hidden states after each of the layers
        that the block reads, (n, hidden_size)."""
        ...

    def inputs(self, tokens: Ints, carried: Floats) -> Floats:
        """What rows have in the residual stream before the block: of their tokens, and of what was
        carried from the rows before them."""
        ...

    def passed(self, x: Floats) -> Floats:
        """What is carried from rows of the block: of the residual stream behind it."""
        ...


@dataclass(frozen=True, slots=True)
class DraftHead:
    """A loaded block. `layers` are those of the model after which it reads hidden states. `tokens`
    are the model's ids of the block's tokens, None where those are the same."""

    program: Program
    layouts: tuple[GroupLayout, ...]
    layers: tuple[int, ...]
    arithmetic: Arithmetic
    longest: int
    directory: Path
    hidden_size: int
    tokens: Ints | None = None
    last_layer: int = 0


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The weights of a block, by the names of a model of one layer; `renamed` says what each
    beginning is where they stand. Embedding and head, whose names are `shared`, are those of the
    model."""

    weights: Weights
    renamed: dict[str, str]
    shared: tuple[str, ...]
    table: Linear
    out: Linear

    def has(self, name: str) -> bool:
        return name in self.shared or self.weights.has(self.stored(name))

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        if role in ("embedding", "head"):
            return self.table if role == "embedding" else self.out
        own = [replace(part, name=self.stored(part.name)) for part in parts]
        return self.weights.linear(own, role)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return self.weights.vector([(self.stored(name), shape) for name, shape in parts], offset)

    def stored(self, name: str) -> str:
        """The name under which a tensor stands in the files."""
        for beginning, own in self.renamed.items():
            if name.startswith(beginning):
                return own + name[len(beginning) :]
        return name


def layouts_of(
    described: ModelDescription, own: LoadedModel, pages: int, weights_bytes: int
) -> tuple[GroupLayout, ...]:
    """The state of a block, in so many pages. Raises DoesNotFit where there is no memory for that
    and its weights."""
    page_tokens = own.plan.page_tokens
    layouts = tuple(
        GroupLayout(group.layers, group.spec(own.state_dtype, page_tokens), pages, page_tokens)
        for group in described.groups
    )
    needed = weights_bytes + sum(each.page_bytes * each.pages for each in layouts)
    if needed > available_bytes():
        raise DoesNotFit(
            f"what drafts needs {readable(weights_bytes)} of weights and "
            f"{readable(needed - weights_bytes)} of state, and there are "
            f"{readable(available_bytes())}; lower draft_context or max_num_seqs."
        )
    return layouts
