"""The models that drafters run: a second one, or parts of the one that they draft for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.cost import Skips, Sublayer


@dataclass(frozen=True, slots=True)
class Target:
    """What a drafter may know of the model that it drafts for: the size of its vocabulary, the
    longest sequence, how many run at once, and for how many tokens there is state."""

    vocabulary: int
    max_model_len: int
    sequences: int
    cells: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one view in a step of a `SecondModel`, in its next cells, which are reserved.

    Tokens that follow each other, or of a draft tree: then row i sees the cells [0, `committed`)
    and then those of its ancestors, `above[i]`. Of a `HeadModel`, `beside` (n, `carried`) is what
    is read beside each token: what was carried from the row before it.
    """

    view: Any
    tokens: Sequence[int]
    committed: int = 0
    above: Sequence[Sequence[int]] | None = None
    beside: Floats | None = None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a `SecondModel` says after some rows: (n, vocabulary) logits, (n, k) likely tokens, the
    likeliest first, and where it was asked for, (n, hidden) the state after the last layer, or of
    a `HeadModel` what is carried to the rows behind them."""

    logits: Floats
    candidates: Ints
    hidden: Floats | None = None

    def row(self, number: int) -> Foreseen:
        """One of the rows."""
        rows = slice(number, number + 1)
        hidden = None if self.hidden is None else self.hidden[rows]
        return Foreseen(self.logits[rows], self.candidates[rows], hidden)

    @staticmethod
    def of(parts: Sequence[Foreseen]) -> Foreseen:
        """The rows of several, one after another."""
        hidden = [part.hidden for part in parts if part.hidden is not None]
        return Foreseen(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.candidates for part in parts]),
            np.concatenate(hidden) if hidden else None,
        )


class SecondModel(Protocol):
    """What drafts beside the engine's model, with a state of its own. A view is one sequence's
    window onto that."""

    longest: int
    """Tokens of a sequence, at most."""
    most_rows: int
    """Of a step."""
    directory: Path
    """Of its checkpoint."""
    hidden_size: int
    layer_parallel: int
    """So many consecutive layers take the same input where drafted rows are computed, so that they
    could run at the same time; 1 is exact."""

    def open(self) -> Any: ...

    def reserve(self, view: Any, cells: int) -> bool:
        """Whether the cells up to `cells` can be written to."""
        ...

    def truncate(self, view: Any, cells: int) -> None: ...

    def move(self, view: Any, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy the state of cells `source` to cells `target`, one after another."""
        ...

    def release(self, view: Any) -> None: ...

    def bytes(self, view: Any) -> int: ...

    def run(self, chunks: Sequence[Rows], likely: int, hidden: bool = False) -> Foreseen:
        """Compute rows of some views: what comes after the last of each chain, and after each row
        of a tree; `likely` is how many candidates are wanted."""
        ...

    def sample(self, logits: Floats, draws: Sequence[Any]) -> list[int | None]:
        """The tokens of some draws (`kernels.sampling.Draw`); None where masks left none."""
        ...

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        """The noise with which tokens are drawn at a position (`core.noise.gumbel`)."""
        ...


class LoadSmall(Protocol):
    """Loads a second model."""

    def __call__(self, model: str | None, longest: int | None = None) -> SmallModel:
        """The model of this name; None: the one that is drafted for, with a state beside its own.
        `longest` bounds the tokens of a sequence that it reads, where those are not all. Raises
        ConfigError or DoesNotFit."""
        ...


class SmallModel(SecondModel, Protocol):
    """A whole second model."""

    def states(self, view: Any, tokens: Sequence[int], layers: Sequence[int]) -> dict[int, Floats]:
        """Compute tokens in a view's next cells: the residual stream after each of the layers (-1:
        before the first), (tokens, hidden_size). Raises ConfigError where there is no room."""
        ...


class HeadModel(SecondModel, Protocol):
    """A block that was trained to draft for one model. Each of its rows reads a token, and beside
    it what is carried from the row before: from the model's own row where that has been computed,
    else from the block's."""

    layers: Sequence[int]
    """Of the model: those after which its hidden states are carried."""
    shares: bool
    """Whether it reads the state of the engine's model and has none. Its rows then name views of
    that, and each stands behind all that the view holds."""

    def carry(self, states: Sequence[Floats]) -> Floats:
        """What is carried from rows of the model, of whose hidden states after each of `layers`
        these are, (n, hidden_size) each."""
        ...

    def slide(self, view: Any) -> None:
        """Give back the cells that no later row sees. The view is not truncated below its present
        cells any more."""
        ...


class LoadHead(Protocol):
    """Loads a block that drafts for the engine's model."""

    def __call__(self, form: str, model: str | None, context: int) -> HeadModel:
        """That of a published `form`, "mtp" or "eagle3", from the directory `model`; None: from the
        checkpoint of the engine's model. Its rows see `context` tokens. Raises ConfigError,
        ModelError or DoesNotFit."""
        ...


@dataclass(frozen=True, slots=True)
class Likely:
    """What some rows make likely: `logits` (rows, vocabulary), and of each row the likeliest
    tokens, the likeliest first, (rows, count)."""

    logits: Floats
    tokens: Ints


class OwnModel(Protocol):
    """The model that is drafted for, as far as a drafter runs parts of it."""

    hidden_size: int
    layers: int
    vocabulary: int
    sublayers: tuple[Sublayer, ...]
    """Those of all layers, in order. Not every layer need have both."""
    neurons: tuple[int, ...]
    """How many each feed-forward has, in order. None of layers with experts, which always run
    whole."""

    @property
    def tokenizer(self) -> str | None:
        """A digest of what its tokens mean; None where that is not known."""
        ...

    def head(self, x: Floats, count: int) -> Likely:
        """The final norm and the output head over rows x (rows, hidden_size) of the residual
        stream."""
        ...

    def partly(
        self,
        rows: Sequence[tuple[Any, int, int]],
        skips: Sequence[Skips],
        count: int,
        leave: Callable[[Floats], Floats] | None = None,
        leading: Sequence[int] | None = None,
    ) -> Likely:
        """Run rows, each a (view, cell, token) with the view of another sequence, whose cells
        before it hold the state of what comes before, without the sublayers that `skips` has for
        each; the others write their state. Of each feed-forward (`neurons`), the first `leading`
        neurons run. Then `leave`, (rows, hidden_size) to the same, and the head."""
        ...

    def foretold(
        self, view: Any, tokens: Sequence[int], skips: Sequence[Skips]
    ) -> list[list[int]] | None:
        """What would have been said after each of `tokens`, the latest of those whose state the
        view holds, without the sublayers of each of `skips`: of each the likeliest token after
        every one. The view's state stays as it is. None where there is no room beside it, or the
        state of what came before is not there as it was."""
        ...

    def reserve(self, view: Any, cells: int) -> bool:
        """Whether the cells up to `cells` can be written to, without taking a page from anyone."""
        ...

    def sample(self, logits: Floats, draws: Sequence[Any]) -> list[int | None]:
        """The tokens of some draws (`kernels.sampling.Draw`); None where masks left none."""
        ...
