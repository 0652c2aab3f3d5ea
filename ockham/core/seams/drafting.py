"""Tokens to verify in the next step: `Drafter`, and what a drafter may be beside that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from ockham.core.arrays import Floats, Ints
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams.models import LoadSmall, OwnModel
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
    told of them, if its drafter `observes`, and only while drafting goes on; of a row by which the
    newest token was chosen, before it is given that token."""

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


class Drafter(Protocol):
    """Proposes tokens to verify in the next step.

    A drafter derives from it and says in class attributes what it does beside that; by default,
    nothing.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[float, ...]]
    """Of each kind of token, the share that is accepted as long as nothing better is known."""
    observes: ClassVar[bool] = False
    """Whether its streams want to know of their sequences' rows."""
    marks: Floats | None = None
    """(kinds of marks, hidden_size), of a drafter whose drafts have marks: tokens below 0, of which
    no row is ever accepted. The input of mark -1 - i is row i; it sees what a token in its place
    would. The chance of a mark is that of the token that its stream will draft by what the mark's
    row makes likely, in the next step."""

    def open(self, salt: str) -> DraftStream:
        """Begin with a sequence. `salt` is its tenant: two never learn from each other."""
        ...


@dataclass(frozen=True, slots=True)
class Noise:
    """What a sampled sequence draws its tokens with."""

    params: SamplingParams
    seed: int
    stream: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a `GroupDrafter` for one sequence; see `DraftStream.propose`. `noise` is
    None where the likeliest token is taken. `view` is the sequence's state in the model that is
    drafted for: its next row has the cell `view.length`."""

    most: int
    accepted: Sequence[float]
    noise: Noise | None
    view: Any = None


@runtime_checkable
class GroupDrafter(Drafter, Protocol):
    """A drafter that proposes for all sequences together, as a model does."""

    reading_s: float
    """Seconds of the last proposal that went into reading what it had not read yet."""

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """A draft for each stream. `token_s` is what a token is worth, in seconds."""
        ...


@runtime_checkable
class JointDrafter(GroupDrafter, Protocol):
    """A drafter with a second model."""

    def attach(self, load: LoadSmall) -> None:
        """Begin to work for an engine, which loads models by name. Raises ConfigError or
        DoesNotFit, as `load` does, if that cannot be."""
        ...


@runtime_checkable
class SelfDrafter(Protocol):
    """A drafter that drafts with parts of the model that it drafts for."""

    def attach_model(self, model: OwnModel) -> None:
        """Begin to work for an engine. Raises ConfigError if what was trained belongs to another
        model."""
        ...


@runtime_checkable
class ConstrainedDrafter(Protocol):
    """A Drafter that has something to say only of outputs that must look like something, and only
    what is certain: chains that come whatever the model says, of tokens of its only kind."""

    def open_constrained(self, salt: str, constraint: Constraint) -> DraftStream:
        """Begin with a sequence that follows `constraint`, which is always where the sequence is.
        The others begin with `open`."""
        ...


@runtime_checkable
class LearningDrafter(Protocol):
    """A Drafter that learns from one sequence for another."""

    def recall(self, vocabulary: Callable[[], str]) -> None:
        """Take in what was saved. `vocabulary` gives a digest of what the engine's tokens mean.
        Raises ConfigError if what was saved cannot be used."""
        ...

    def save(self) -> None:
        """The engine is no more: save what is to be kept."""
        ...

    @property
    def bytes(self) -> int:
        """Memory that sequences share, about."""
        ...


@runtime_checkable
class KeepingDrafter(Protocol):
    """A Drafter that keeps something that its streams share."""

    @property
    def bytes(self) -> int:
        """Memory that they share, about."""
        ...
