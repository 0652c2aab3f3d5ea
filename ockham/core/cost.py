"""What a step costs in operations and bytes, from the model's shape. The ledger books from here,
and `core/rates.py` makes seconds of it.

Counting follows the usual conventions (a multiply and an add are two FLOPs): a row costs 2 FLOPs
for each weight that acts on it, and 4 * heads * head_dim FLOPs for each key that it sees in a layer
(scores, then values). A step reads every dense weight once, whatever the number of rows, and the
experts that its rows were routed to: at most rows * experts_per_row of them in a layer, which is
what is booked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import msgspec

from ockham.core.visits import Skipped

Part = tuple[int, int]
"""A run of consecutive rows of one sequence: the keys that its first row sees, and its rows."""

Sublayer = tuple[int, str]
"""A layer, and which of its sublayers: `ATTENTION` or `RECURRENT`, and `FEED_FORWARD`."""
ATTENTION, FEED_FORWARD = "attention", "feed_forward"
RECURRENT = "recurrent"
"""The sublayer that stands in the place of attention in a layer that has none: what it keeps of a
token depends on all before it, or its rows see the latest few alone."""
Skips = frozenset[Sublayer]
"""The sublayers that a sequence's rows do not run."""
RUNS_ALL: Skips = frozenset()


class ProductCost(msgspec.Struct, frozen=True):
    """The products of one kind in a step: `count` matrices of the same shape and format; of experts
    of unequal widths, what they come to on average.

    `experts` is 0 for a product that every row takes part in. Else there are so many matrices in
    each of `count` layers, of which a row takes part in `experts_per_row`.
    """

    format: str
    outputs: int
    inputs: int
    nbytes: int
    """Bytes of one of the matrices."""
    count: int
    head: bool = False
    """Whether only rows that want logits take part."""
    experts: int = 0
    experts_per_row: int = 0
    rank: int = 0
    """Of a sum of low rank that is added to each product; its bytes are among `nbytes`."""

    @property
    def weights(self) -> int:
        """Weights of one of the matrices, and of what is added to its products."""
        return self.outputs * self.inputs + self.rank * (self.outputs + self.inputs)

    @property
    def flops(self) -> int:
        """FLOPs of a row in all of these matrices."""
        return 2 * self.weights * self.count * (self.experts_per_row or 1)


class AttentionCost(msgspec.Struct, frozen=True):
    """The attention of one layer over the cells of one group of layers."""

    group: int
    heads: int
    head_dim: int
    kv_heads: int
    causal: bool = True
    shared: bool = False
    """Whether the keys and values are kept by another layer."""


class OperationCost(msgspec.Struct, frozen=True):
    """What one operation of a program costs the rows that run it."""

    sublayer: Sublayer | None
    """The layer and sublayer that it is part of; None if every row runs it."""
    products: tuple[ProductCost, ...] = ()
    row_bytes: int = 0
    """Weight bytes that are read for each row."""
    gate_values: int = 0
    """Values of a row that enter an activation product."""
    attention: AttentionCost | None = None
    keeps: tuple[int, ...] = ()
    """The groups of layers in which it keeps rows of floats, where it does not attend."""


class Share(NamedTuple):
    """Operations that the same rows of a step run: `runs[i]` says whether those of the i-th kind
    do."""

    runs: tuple[bool, ...]
    cost: ModelCost


class StepCost(msgspec.Struct, frozen=True):
    """What a step computes and moves, as the ledger books it."""

    flops: int
    weight_bytes: int
    state_read_bytes: int
    state_written_bytes: int


class GroupCost(msgspec.Struct, frozen=True):
    """A group of attention layers that keep the same cells."""

    layers: int
    heads: int
    head_dim: int
    cell_bytes: int
    """Bytes of one cell's keys and values in all layers of the group, as often as they are read."""
    window: int | None
    kv_heads: int = 0
    causal: bool = True
    """Whether a row sees no later ones. Else the rows of a sequence are all in one step."""
    shared: int = 0
    """Of the layers, how many read what another keeps."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of one cell, each layer's once."""
        return self.cell_bytes // max(self.layers, 1) * (self.layers - self.shared)

    def keys_seen(self, first: int, rows: int) -> int:
        """The keys that `rows` consecutive rows see together, the first of which sees `first` if it
        sees no later ones."""
        seen = keys_seen(first, rows, self.window)
        return seen if self.causal else 2 * seen - rows


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The figures of one model in one format."""

    linear_flops: int
    """FLOPs of all matrices but the head that act on one row."""
    head_flops: int
    """FLOPs of the output head for one row of logits."""
    dense_weight_bytes: int
    """Bytes of the weights that every step reads, without head and embedding table."""
    head_weight_bytes: int
    embedding_row_bytes: int
    groups: tuple[GroupCost, ...]
    moe_layers: int = 0
    experts: int = 0
    experts_per_row: int = 0
    expert_bytes: int = 0
    """Bytes of one expert of one layer."""
    products: tuple[ProductCost, ...] = ()
    gate_values: int = 0
    """Values of a row that enter an activation product, in all layers."""
    operations: tuple[OperationCost, ...] = ()
    """What all of this is the sum of."""
    _known: dict[object, object] = field(default_factory=dict, compare=False, repr=False)
    """What `without` and `shared` were asked before."""

    def without(self, skipped: Skips) -> ModelCost:
        """The figures of the model without some sublayers: what a row costs that skips them."""
        if not skipped:
            return self
        found = self._known.get(skipped)
        if not isinstance(found, ModelCost):
            kept = [op for op in self.operations if op.sublayer not in skipped]
            found = self._known[skipped] = sum_costs(kept, self.groups)
        return found

    def only(self, sublayer: Sublayer) -> ModelCost:
        """The figures of one sublayer alone."""
        found = self._known.get(sublayer)
        if not isinstance(found, ModelCost):
            ops = [op for op in self.operations if op.sublayer == sublayer]
            found = self._known[sublayer] = sum_costs(ops, self.groups)
        return found

    def shared(self, skips: tuple[Skips, ...]) -> tuple[Share, ...]:
        """The operations of a step whose rows skip different sublayers, by who runs them."""
        key = ("shared", *skips)
        found = self._known.get(key)
        if not isinstance(found, tuple):
            runs: dict[tuple[bool, ...], list[OperationCost]] = {}
            for op in self.operations:
                who = tuple(op.sublayer not in each for each in skips)
                runs.setdefault(who, []).append(op)
            found = tuple(Share(who, sum_costs(ops, self.groups)) for who, ops in runs.items())
            self._known[key] = found
        return found

    def step(self, parts: Sequence[Part], logits: int) -> StepCost:
        """The cost of a step of these runs of rows, `logits` of whose rows want logits."""
        rows = sum(count for _, count in parts)
        return StepCost(
            flops=rows * self.linear_flops
            + logits * self.head_flops
            + sum(self.attention_flops(first, count) for first, count in parts),
            weight_bytes=self.weight_bytes(rows, logits),
            state_read_bytes=sum(self.state_read_bytes(first, count) for first, count in parts),
            state_written_bytes=self.state_written_bytes(rows),
        )

    def attention_flops(self, first: int, rows: int, dropped: Sequence[int] = ()) -> int:
        """FLOPs of attention for `rows` consecutive rows, the first of which sees `first` keys, but
        for those that each group has `dropped`."""
        return sum(
            4 * g.layers * g.heads * g.head_dim * g.keys_seen(first - gone, rows)
            for g, gone in zip(self.groups, dropped or repeat(0), strict=False)
        )

    @property
    def attention_slope(self) -> float:
        """FLOPs that a row costs more for each key that it sees, in units of its linear ones."""
        attention = sum(4 * g.layers * g.heads * g.head_dim for g in self.groups if not g.window)
        return attention / self.linear_flops

    def row_flops(self, first: int, rows: int, logits: int, dropped: Sequence[int] = ()) -> int:
        """FLOPs of `rows` consecutive rows of a sequence, `logits` of which want logits."""
        attention = self.attention_flops(first, rows, dropped)
        return rows * self.linear_flops + logits * self.head_flops + attention

    def skipped(self, of_groups: Sequence[Skipped]) -> tuple[int, int]:
        """The FLOPs and the state bytes of what rows did not visit, of each group of layers."""
        flops = nbytes = 0
        for group, skipped in zip(self.groups, of_groups, strict=True):
            if skipped.keys or skipped.cells:
                flops += skipped.keys * 4 * (group.heads // group.kv_heads) * group.head_dim
                nbytes += skipped.cells * group.cell_bytes // (group.layers * group.kv_heads)
        return flops, nbytes

    def weight_bytes(self, rows: int, logits: int) -> int:
        """Weight bytes that a step of `rows` rows reads."""
        experts = self.moe_layers * min(self.experts, rows * self.experts_per_row)
        return (
            self.dense_weight_bytes
            + (self.head_weight_bytes if logits else 0)
            + rows * self.embedding_row_bytes
            + experts * self.expert_bytes
        )

    def state_read_bytes(self, first: int, rows: int, dropped: Sequence[int] = ()) -> int:
        """State bytes read by a run of rows: each cell that some row of the run sees, once."""
        return sum(
            g.cell_bytes * cells_seen(first - gone, rows, g.window)
            for g, gone in zip(self.groups, dropped or repeat(0), strict=False)
        )

    def decode_read_bytes(self, first: int, rows: int, dropped: Sequence[int] = ()) -> int:
        """The same where each row is a step of its own, and reads anew what it sees."""
        return sum(
            g.cell_bytes * keys_seen(first - gone, rows, g.window)
            for g, gone in zip(self.groups, dropped or repeat(0), strict=False)
        )

    def state_written_bytes(self, rows: int) -> int:
        return rows * sum(g.kept_bytes for g in self.groups)


def sum_costs(operations: Sequence[OperationCost], groups: Sequence[GroupCost]) -> ModelCost:
    """The figures of a model of these operations. `groups` has an entry for each group of layers
    that keep state; of it counts what the given operations attend to, or keep."""
    products = [product for op in operations for product in op.products]
    plain = [each for each in products if not each.head]
    heads = [each for each in products if each.head]
    routed = [each for each in plain if each.experts]
    mixtures = [op for op in operations if any(each.experts for each in op.products)]
    return ModelCost(
        linear_flops=sum(each.flops for each in plain),
        head_flops=sum(each.flops for each in heads),
        dense_weight_bytes=sum(each.nbytes for each in plain if not each.experts),
        head_weight_bytes=sum(each.nbytes for each in heads),
        embedding_row_bytes=sum(op.row_bytes for op in operations),
        groups=tuple(_attended(group, number, operations) for number, group in enumerate(groups)),
        moe_layers=len(mixtures),
        experts=max((each.experts for each in routed), default=0),
        experts_per_row=max((each.experts_per_row for each in routed), default=0),
        expert_bytes=sum(each.nbytes for op in mixtures for each in op.products if each.experts)
        // max(1, len(mixtures)),
        products=_counted(products),
        gate_values=sum(op.gate_values for op in operations),
        operations=tuple(operations),
    )


def _attended(group: GroupCost, number: int, operations: Sequence[OperationCost]) -> GroupCost:
    """The group, of those layers that the operations attend in, or keep something in."""
    found = [
        op.attention
        for op in operations
        if op.attention is not None and op.attention.group == number
    ]
    layers = len(found) + sum(number in op.keeps for op in operations)
    return msgspec.structs.replace(
        group,
        layers=layers,
        heads=max((each.heads for each in found), default=0),
        causal=all(each.causal for each in found),
        shared=sum(each.shared for each in found),
        cell_bytes=group.cell_bytes // max(group.layers, 1) * layers,
    )


def _counted(products: Sequence[ProductCost]) -> tuple[ProductCost, ...]:
    """Each kind once, with the number of its matrices."""
    counts: Counter[ProductCost] = Counter()
    for each in products:
        counts[msgspec.structs.replace(each, count=1)] += each.count
    return tuple(msgspec.structs.replace(each, count=count) for each, count in counts.items())


def keys_seen(first: int, rows: int, window: int | None) -> int:
    """Sum of min(window, k) over k = first, first + 1, ... for `rows` rows."""
    if window is None or first + rows - 1 <= window:
        return rows * first + rows * (rows - 1) // 2
    growing = max(0, window - first)
    return growing * first + growing * (growing - 1) // 2 + (rows - growing) * window


def cells_seen(first: int, rows: int, window: int | None) -> int:
    """Cells that at least one of the rows sees."""
    last = first + rows - 1
    return last if window is None else last - max(0, first - window)
