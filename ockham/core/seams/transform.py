"""Rewriting a checkpoint before it is served: `Transform`, and the model that it rewrites.

A transform changes tensors and config.json of a `Rewritable`, and never a file. It is told where
the residual stream is read and written (`Block`), so that no transform knows an architecture.
`ockham convert --transform` applies some of them to a whole model; a search may score the blocks
that a `BlockTransform` rewrites one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from ockham.core.arrays import Floats


@dataclass(frozen=True, slots=True)
class FeedForwardNames:
    """The matrices of one gated feed-forward, or of one expert: `up` and `gate` (I, D), `down`
    (D, I). `gate` is None where it has no gate. Biases are those of `gate` and `up`, where there
    are any."""

    gate: str | None
    up: str
    down: str
    gate_bias: str | None = None
    up_bias: str | None = None
    number: int | None = None
    """Of an expert."""


@dataclass(frozen=True, slots=True)
class Block:
    """One branch of a layer: x += write(...(read(norm(x)))), where x is the residual stream."""

    layer: int
    kind: Literal["attention", "feed_forward"]
    norm: str
    """The weights of the norm before it, (D,)."""
    reads: tuple[str, ...]
    """The matrices (N, D) that multiply the normed stream, a router and all experts among them."""
    writes: tuple[str, ...]
    """The matrices (D, K) whose products are added to the stream."""
    write_biases: tuple[str, ...] = ()
    feed_forwards: tuple[FeedForwardNames, ...] = ()
    value: tuple[str, int] | None = None
    """Of attention: the matrix that holds the value projection, and its first row there."""
    value_bias: tuple[str, int] | None = None
    shortcut: str = ""
    """The name under which a matrix (D', D) may be put that the stream is multiplied with before
    the branch is added."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a matrix multiplied when the model read the text: sums over `rows` rows x (K,)."""

    rows: int
    moments: Floats
    """The sum of x^T x: (K, K)."""
    largest: Floats
    """The largest |x| of each input: (K,)."""
    absolute: Floats
    """The sum of |x|: (K,)."""


@dataclass(frozen=True, slots=True)
class LayerReading:
    """One layer after the text went through it. `layer` is None for the head."""

    layer: int | None
    inputs: Mapping[str, Inputs]
    """By matrix. One that no row reached (an expert that nobody chose) is not among them."""


@dataclass(frozen=True, slots=True)
class LayerGradients:
    """One layer on the way back: how the mean negative log-likelihood of the text's next tokens
    changes, of the rows that reached a matrix. `inner` are the inputs a of `down` matrices
    (rows, I); `outputs` the gradients g with respect to what these give (rows, D)."""

    layer: int
    inner: Mapping[str, Floats] = field(default_factory=dict)
    outputs: Mapping[str, Floats] = field(default_factory=dict)


class Rewritable(Protocol):
    """A model as a transform sees it: its tensors in fp32, by name, and where they stand.

    Norms are seen with what the architecture adds to their weights, so that 1 means "no scale".
    Fused and stacked matrices are shown as the architecture stores them one by one, except a fused
    query, key and value."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    activation: str

    @property
    def hidden_size(self) -> int: ...

    @property
    def blocks(self) -> Sequence[Block]:
        """All blocks, in the order in which the stream passes them."""
        ...

    @property
    def table(self) -> str:
        """The table of embeddings, (V, D)."""
        ...

    @property
    def head(self) -> str:
        """The head, (V, D): the table itself where both are tied."""
        ...

    @property
    def final_norm(self) -> str: ...

    def untie(self) -> None:
        """Give the head a matrix of its own, a copy of the table; nothing where it has one."""
        ...

    def get(self, name: str) -> Floats:
        """A tensor in fp32, which the caller may change. Raises ModelError if there is none."""
        ...

    def put(self, name: str, values: Floats) -> None:
        """Replace a tensor, or add one. Raises ModelError for NaN or infinity."""
        ...

    def set_config(self, key: str, value: Any) -> None:
        """Change a key of config.json; None removes it."""
        ...

    def get_config(self, key: str) -> Any: ...

    def set_widths(self, widths: Sequence[Sequence[int]], routed: bool) -> None:
        """Say in config.json how wide each feed-forward is, by layer; where `routed`, how wide each
        expert of each layer that has some is."""
        ...

    def check_stream(self, what: str) -> None:
        """Raises ConfigError where the residual stream cannot be rotated or scaled, since something
        besides norms and matrices reads it; `what` names who asks."""
        ...

    def read(self, what: str) -> Iterator[LayerReading]:
        """Read the calibration text with the weights as they are when this is called, layer by
        layer. Raises ConfigError where no text was given, naming `what` needs it."""
        ...

    def gradients(self, what: str) -> Iterator[LayerGradients]:
        """The same, and back from the loss: layers from the last to the first."""
        ...

    def tell(self, line: str) -> None: ...


class Transform(Protocol):
    """Rewrites a model. One that is registered as `exact` leaves every output as it is, in infinite
    precision; others say in their card what they measured.

    A class may have `Options`, as the techniques of other seams. `apply` is called once for a
    model. It may be called after other transforms, in the order that the user gave; what it finds
    in `model` is then their work. Raises ConfigError for a model that it cannot rewrite."""

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        """Rewrite the model; what is given goes into the card: plain values of JSON."""
        ...


@runtime_checkable
class BlockTransform(Transform, Protocol):
    """One that can rewrite each block apart from the others, so that a search can score it there:
    `apply` is `apply_block` for all blocks that it is about."""

    def apply_block(self, model: Rewritable, block: Block, reading: LayerReading | None) -> None:
        """Rewrite one block. `reading` is that of its layer, before any change; None where
        `needs_text` is False."""
        ...

    @property
    def needs_text(self) -> bool: ...
