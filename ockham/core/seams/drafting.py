"""Tokens to verify in the next step: `Drafter`, and its streams, one of each sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ockham.core.arrays import Floats, Ints
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams.models import LoadHead, LoadSmall, OwnModel
from ockham.core.seams.observe import Observer


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of proposed tokens: `parents[i]` is the index of token i's parent, -1 for the root,
    and always below i. `kinds[i]` says how strong the drafter's reason for it is: of tokens of one
    kind, about the same share is accepted when their parents are."""

    tokens: Sequence[int]
    parents: Sequence[int]
    kinds: Sequence[int]


class DraftStream(Observer, Protocol):
    """What a drafter knows of one sequence. It is asked what it wants of the sequence's rows, and
    told of them, if its drafter `observes`, and only while drafting goes on (see `Drafter.reads`);
    of a row by which the newest token was chosen, before it is given that token."""

    def extend(self, tokens: Ints) -> None:
        """The sequence's next tokens, each given once and in order."""
        ...

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """Tokens that may come next, at most `most`. `accepted[kind]` is the share of a kind that
        is accepted now; a token whose own and whose ancestors' shares multiply to less than `worth`
        will not be verified, and need not be proposed."""
        ...

    def close(self) -> None:
        """The sequence has ended."""
        return

    @property
    def bytes(self) -> int:
        """Memory that it takes beside what is shared, about."""
        return 0


class Constraint(Protocol):
    """What an output must look like."""

    def forced(self) -> Sequence[int]:
        """The only tokens that may come next, one after the other; empty if there is a choice."""
        ...


@dataclass(frozen=True, slots=True)
class Noise:
    """What a sampled sequence draws its tokens with."""

    params: SamplingParams
    seed: int
    stream: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a drafter that is `joint`, for one sequence; see `DraftStream.propose`.
    `noise` is None where the likeliest token is taken. `view` is the sequence's state in the model
    that is drafted for: its next row has the place `view.tokens`."""

    most: int
    accepted: Sequence[float]
    noise: Noise | None
    view: Any = None


class Drafter(Protocol):
    """Proposes tokens to verify in the next step.

    A drafter derives from it and says in class attributes what it does beside that; by default,
    nothing.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[float, ...]]
    """Of each kind of token, the share that is accepted as long as nothing better is known."""
    automatic: ClassVar[bool] = True
    """Whether the setting "auto" includes it."""
    needs_model: ClassVar[bool] = False
    """Whether it drafts with any model of the target's vocabulary, and must be given one."""
    learns: ClassVar[bool] = False
    """Whether it learns from one sequence for another: its streams are given all that a sequence
    has said before they are closed."""
    joint: ClassVar[bool] = False
    """Whether it proposes for all sequences together, as a model does (`propose_all`), which takes
    time. Its streams are not asked."""
    certain: ClassVar[bool] = False
    """Whether it has something to say only of outputs that must look like something, and only what
    comes whatever the model says: chains of tokens of its only kind."""
    observes: ClassVar[bool] = False
    """Whether its streams want to know of their sequences' rows."""
    reads: bool = False
    """Whether, beside that, its streams are asked and told of every row, those of prompts too, and
    while nothing is drafted. They are opened before they are given any token. Rows that were
    computed before, or for another sequence, are not among them."""
    marks: Floats | None = None
    """(kinds of marks, hidden_size), of a drafter whose drafts have marks: tokens below 0, of which
    no row is ever accepted. The input of mark -1 - i is row i; it sees what a token in its place
    would. The chance of a mark is that of the token that its stream will draft by what the mark's
    row makes likely, in the next step."""
    reading_s: float = 0.0
    """Seconds of the last `propose_all` that went into reading what had not been read yet."""

    def attach(self, load: LoadSmall) -> None:
        """Begin to work for an engine, which loads second models by name. Raises ConfigError or
        DoesNotFit, as `load` does, if that cannot be."""
        return

    def attach_head(self, load: LoadHead) -> None:
        """Begin to work for an engine, which loads heads that draft for its model. Raises
        ConfigError, ModelError or DoesNotFit, as `load` does, if that cannot be."""
        return

    def attach_model(self, model: OwnModel) -> None:
        """Begin to work for an engine, whose model this is. Raises ConfigError if what was trained
        belongs to another model."""
        return

    def recall(self, vocabulary: Callable[[], str]) -> None:
        """Take in what was saved. `vocabulary` gives a digest of what the engine's tokens mean.
        Raises ConfigError if what was saved cannot be used."""
        return

    def save(self) -> None:
        """The engine is no more: save what is to be kept."""
        return

    def open(self, salt: str) -> DraftStream:
        """Begin with a sequence. `salt` is its tenant: two never learn from each other."""
        ...

    def open_constrained(self, salt: str, constraint: Constraint) -> DraftStream:
        """Begin with a sequence whose output follows `constraint`, which keeps up with it."""
        return self.open(salt)

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """A draft for each stream, if it is `joint`. `token_s` is what a token is worth, in
        seconds."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory that sequences share, about."""
        return 0
