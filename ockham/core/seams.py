"""The protocols that techniques implement: one small class in one file behind one of these.

The engine knows these protocols and never a technique by name. Only what the present engine uses is
fixed here; a seam gains a method when its first technique needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ockham.core.asks import ReuseAsk
from ockham.core.quantised import BlockRows, Encoding, QuantisedRows
from ockham.core.sampling_params import SamplingParams

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


Role = Literal["embedding", "head", "qkv", "attention_output", "router", "gate_up", "down"]
"""What a matrix is for: a format may leave some roles to another. The table of embeddings may be
the head, too."""


class Linear(Protocol):
    """A weight matrix (out_features, in_features) as some format stores it."""

    format: str
    out_features: int
    in_features: int

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name, as the format's docstring lays them out."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one product with this matrix must read."""
        ...

    def matmul(self, x: Floats) -> Floats:
        """x (M, in_features) times the transposed matrix: (M, out_features), accumulated in fp32.

        This is the format's meaning: the plain twin that compiled kernels are tested against."""
        ...

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        """Rows `ids` of the matrix as fp32: (len(ids), in_features). For embedding tables."""
        ...


class Format(Protocol):
    """How a linear layer's weights are stored and multiplied.

    `activations` is the precision in which the input enters the product; it is part of the
    format's definition, because it decides the result.
    """

    name: ClassVar[str]
    activations: ClassVar[str]

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a packed matrix of this shape takes. Raises ModelError for a shape that the
        format cannot have."""
        ...

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Linear:
        """Pack a matrix that comes as consecutive blocks of rows, in the checkpoint's dtype.

        Blocks are consumed one at a time, so that weights are never held twice. Raises ModelError
        if they do not add up to the shape, or hold NaN or infinity.
        """
        ...


@runtime_checkable
class MixedFormat(Format, Protocol):
    """A format that leaves some matrices of a model that is packed in it to other formats."""

    def beside(self, role: Role, in_features: int) -> str | None:
        """The name of the format that takes such a matrix; None for this one."""
        ...


class QuantisedFormat(Format, Protocol):
    """A format that can also take over matrices that a checkpoint stores quantised, as they are."""

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> QuantisedFormat | None:
        """The format with the settings that hold every value of such a matrix exactly, or None."""
        ...

    def adopted_bytes(self, out_features: int, in_features: int, encoding: Encoding) -> int:
        """Bytes that an adopted matrix of this shape takes."""
        ...

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
    ) -> Linear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        The encoding is one for which `holding` gave this format. Raises ModelError if the blocks do
        not add up to the shape, or hold scales that are not finite, or zero points where the
        encoding has none.
        """
        ...


class BlockFormat(Format, Protocol):
    """A format that takes over one block type of GGUF files, as it is."""

    def adopt(self, out_features: int, in_features: int, blocks: Iterable[BlockRows]) -> Linear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        Raises ModelError if they do not add up to the shape, or hold scales that are not finite.
        """
        ...


class PagePool(Protocol):
    """The pool of pages, as far as a Reuse may touch it. Lists are by layer group."""

    page_tokens: int
    windows: tuple[int, ...]
    """The sliding window of each group, 0 for none."""
    sizes: tuple[int, ...]
    """How many pages each group has."""
    reclaim: Callable[[list[int]], None] | None
    """Asked to make so many pages of each group free, when there are fewer."""

    def free_pages(self) -> list[int]: ...

    def take(self, counts: Sequence[int]) -> list[Ints] | None:
        """So many pages of each group, held once; None, and nothing changed, if there are fewer."""
        ...

    def hold(self, pages: Sequence[Ints]) -> None:
        """Count one more holder of each page."""
        ...

    def drop(self, pages: Sequence[Ints]) -> None:
        """Count one holder less; a page that nobody holds is free."""
        ...

    def holders(self, group: int, pages: Ints) -> Ints:
        """How often each of the pages is held."""
        ...


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """State that a Reuse found for a prompt: its first `tokens` cells need not be computed.

    `tables[g]` are their pages, -1 where no later row sees them; the last may be shared in part.
    `handle` is what the Reuse keeps for as long as the sequence runs.
    """

    tokens: int
    tables: Sequence[Ints]
    handle: int


class Fetch(Protocol):
    """State of a waiting prompt on its way back into the pool from where it lies farther away."""

    @property
    def done(self) -> bool:
        """Whether no more will come; what came is found by `Reuse.lookup`."""
        ...

    @property
    def brought(self) -> Sequence[tuple[range, str]]:
        """Cells that came, and from where, as the ledger calls it."""
        ...

    @property
    def reach(self) -> int:
        """Of the tokens before the last, how many the pool had when the fetch was done."""
        ...

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        ...


class Tiers(Protocol):
    """Where pages of state lie beside the pool, found by what they hold. `tree` is the radix tree
    of a Reuse, which says what the pool holds."""

    def kept(self, tokens: Ints, salt: str, tables: Sequence[Ints], taken: Sequence[Ints]) -> None:
        """The cells of `tokens` are valid and stand in `tables`; the tree now holds `taken` too."""
        ...

    def letting_go(self, pages: Sequence[Ints]) -> None:
        """The tree is about to give up these pages of each group."""
        ...

    def fetch(self, tree: Any, tokens: Ints, salt: str) -> Fetch | None:
        """Begin to bring back what follows the first of these tokens that the tree has.

        None if another is bringing back a part of it: then ask again."""
        ...

    def advance(self, tree: Any, beside_steps: bool) -> None:
        """Take in what has arrived; `beside_steps`: only so much that steps are not held up."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Sleep until something has arrived, if anything is on its way."""
        ...

    def held(self) -> list[Ints]:
        """Of each group, the pages of the pool that fetches hold."""
        ...

    def forget(self) -> None:
        """Forget what is in memory."""
        ...


class NodeFacts(NamedTuple):
    """What is known of a run of tokens whose state a Reuse holds: a node of a tree."""

    salt: str
    number: int
    parent: int
    """-1 for what begins a prompt."""
    start: int
    tokens: int
    pages: int
    hits: int
    locks: int
    pinned: bool
    hint: int
    """GONE, SPENT, PLAIN or EXPECTED."""
    made_s: float
    used_s: float
    """When it was made and last used, on the clock of `time.monotonic`."""


NOTHING_KEPT = -1
"""The handle of a sequence of which a Reuse keeps nothing."""

GONE, SPENT, PLAIN, EXPECTED = 0, 1, 2, 3
"""What is said of state: its last user is known to be done; somebody predicts that nobody will use
it again; nothing; somebody predicts that it will be used."""


class Reuse(Protocol):
    """Which state need not be computed again.

    `lookup` is asked when a prompt is admitted, `keep` is told when more cells of a sequence hold
    valid state. Both give a handle, which stands for what the sequence reads; `share` takes it for
    one more sequence, `leave` gives it back when the sequence runs no longer. `salt` is the tenant:
    two never share.
    """

    name: ClassVar[str]

    def attach(self, pool: PagePool, slope: float, tiers: Tiers | None = None) -> None:
        """Begin to work for an engine. `slope`: what computing a token costs more for each token
        before it, in units of the first. `tiers`: where state may go beside the pool."""
        ...

    def fetch(self, tokens: Ints, salt: str) -> Fetch | None:
        """Begin to bring near what is held of `tokens` farther away than in the pool. Asked when a
        sequence could run, and again if the pool has lost what it had; None means: ask later."""
        ...

    def advance(self, beside_steps: bool) -> None:
        """Take in what fetches have brought. Called before each step; `beside_steps` says that
        sequences run, which should not be held up."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Sleep until a fetch has news, if there is one: there is nothing else to do."""
        ...

    def lookup(self, tokens: Ints, salt: str) -> CachedPrefix | None:
        """The longest prefix of `tokens` that is held."""
        ...

    def should_wait(
        self, tokens: Ints, salt: str, others: Iterable[tuple[Ints, str]], least: int
    ) -> int:
        """If one of `others` (their tokens and salts), which are being computed now, will soon have
        computed at least `least` more tokens of a prompt than are held: how many that will be, and
        the prompt should wait. Else 0."""
        ...

    def keep(self, handle: int, tokens: Ints, salt: str, tables: Sequence[Ints]) -> int:
        """The cells of `tokens` are valid and stand in `tables`. Gives the handle from now on."""
        ...

    def share(self, handle: int) -> int: ...

    def leave(self, handle: int) -> None: ...

    def hint(self, tokens: Ints, salt: str, hint: int, start: int) -> None:
        """Say GONE, SPENT, PLAIN or EXPECTED of the state of `tokens` from cell `start` on."""
        ...

    def held_tokens(self, tokens: Ints, salt: str) -> int:
        """How many of the first tokens `lookup` would find. This is no use of them."""
        ...

    def pin(self, tokens: Ints, salt: str, pinned: bool) -> int:
        """Never let go of what is held of `tokens`, or do so again; how many are held."""
        ...

    def facts(self) -> list[NodeFacts]:
        """Every run of tokens that is held."""
        ...

    def tokens_of(self, number: int, most: int) -> Ints:
        """The first tokens of such a run, `most` of them at most."""
        ...

    def evictable(self) -> list[int]:
        """About how many pages of each group could be given back now."""
        ...

    def forget(self) -> None:
        """Give back everything that no running sequence reads."""
        ...

    def held(self) -> list[Ints]:
        """Of each group, every page as often as it is held; [] if nothing ever is."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """State that a prompt takes over: its cell `cells[i]` gets what stands in slot `slots[g][i]` of
    each layer group, computed `shifts[i]` positions before it."""

    cells: Ints
    slots: Sequence[Longs]
    shifts: Ints


class Splice(Protocol):
    """What one prompt takes over from others, and what it leaves for them."""

    todo: Ints
    """The cells that must be computed, ascending, the prompt's last among them. All others from
    the first that was asked about are given."""
    layers: Sequence[int]
    """Layers whose attention probabilities are wanted of the rows of `scored`."""

    def given(self, start: int, stop: int) -> Given:
        """Sources of the given cells among [start, stop); cells that are computed may be with
        them, which is overwritten."""
        ...

    def scored(self, cells: Ints) -> Ints:
        """Indices into `cells`, which are computed next: those whose attention is wanted."""
        ...

    def observe(self, cells: Ints, scores: Sequence[Sequence[Floats]]) -> None:
        """The attention of those cells, of each of `layers`: one value for each key that a cell
        sees, the last its own."""
        ...

    def reached(self, cells: int, tables: Sequence[Ints]) -> None:
        """The cells [0, cells) are valid and stand in `tables`."""
        ...

    def leave(self) -> None:
        """Nothing more is taken or left. May be called again."""
        ...


class ApproximateReuse(Protocol):
    """State computed at other positions, or after other text, taken over as it is.

    Only requests that ask for the technique meet it. The engine keeps what follows a cell that was
    taken over away from every `Reuse`. `salt` is the tenant: two never share.
    """

    name: ClassVar[str]

    def attach(self, pool: PagePool, slope: float, layers: Sequence[int]) -> None:
        """Begin to work for an engine, whose model has these layers. `slope` as for `Reuse`."""
        ...

    def open(self, tokens: Ints, first: int, salt: str, ask: ReuseAsk) -> Splice | None:
        """What a prompt takes over from its cell `first` on, those before it being held exactly;
        None if it neither takes nor leaves anything."""
        ...

    def pin(self, tokens: Ints, salt: str, pinned: bool) -> int:
        """Never let go of what is held of `tokens`, or do so again; how many are held."""
        ...

    def facts(self) -> list[NodeFacts]:
        """Every run of tokens that is held."""
        ...

    def tokens_of(self, number: int, most: int) -> Ints:
        """The first tokens of such a run, `most` of them at most."""
        ...

    def evictable(self) -> list[int]:
        """About how many pages of each group could be given back now."""
        ...

    def forget(self) -> None:
        """Give back everything that no running sequence reads."""
        ...

    def held(self) -> list[Ints]:
        """Of each group, every page as often as it is held."""
        ...


class Keep(Protocol):
    """Which state stays. `first_kept` is the lowest cell that a layer group must still hold when
    the sequence's next row has logical index `length`; everything below may be let go."""

    name: ClassVar[str]

    def first_kept(self, length: int, window: int | None) -> int: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of proposed tokens: `parents[i]` is the index of token i's parent, -1 for the root,
    and always below i. `kinds[i]` says how strong the drafter's reason for it is: of tokens of one
    kind, about the same share is accepted when their parents are."""

    tokens: Sequence[int]
    parents: Sequence[int]
    kinds: Sequence[int]


class DraftStream(Protocol):
    """What a drafter knows of one sequence."""

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
        ...

    @property
    def bytes(self) -> int:
        """Memory that it takes beside what is shared, about."""
        ...


class Constraint(Protocol):
    """What an output must look like."""

    def forced(self) -> Sequence[int]:
        """The only tokens that may come next, one after the other; empty if there is a choice."""
        ...


class Drafter(Protocol):
    """Proposes tokens to verify in the next step."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[float, ...]]
    """Of each kind of token, the share that is accepted as long as nothing better is known."""

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
    """Rows of one view in a step of a `SmallModel`, in its next cells, which are reserved.

    Tokens that follow each other, or of a draft tree: then row i sees the cells [0, `committed`)
    and then those of its ancestors, `above[i]`.
    """

    view: Any
    tokens: Sequence[int]
    committed: int = 0
    above: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a `SmallModel` says after some rows: (n, vocabulary) logits, (n, k) likely tokens, the
    likeliest first, and where it was asked for, (n, hidden) the state after the last layer."""

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


class SmallModel(Protocol):
    """A second model, with a state of its own. A view is one sequence's window onto that."""

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


class LoadSmall(Protocol):
    """Loads a second model."""

    def __call__(self, model: str | None, longest: int | None = None) -> SmallModel:
        """The model of this name; None: the one that is drafted for, with a state beside its own.
        `longest` bounds the tokens of a sequence that it reads, where those are not all. Raises
        ConfigError or DoesNotFit."""
        ...


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

    @property
    def tokenizer(self) -> str | None:
        """A digest of what its tokens mean; None where that is not known."""
        ...

    def head(self, x: Floats, count: int) -> Likely:
        """The final norm and the output head over rows x (rows, hidden_size) of the residual
        stream."""
        ...

    def early(
        self,
        rows: Sequence[tuple[Any, int, int]],
        layers: int,
        leave: Callable[[Floats], Floats],
        count: int,
    ) -> Likely:
        """Run rows, each a (view, cell, token) with the view of another sequence, whose cells
        before it hold the state of what comes before, through the first `layers` layers, whose
        state is written; then `leave`, (rows, hidden_size) to the same, and the head."""
        ...

    def reserve(self, view: Any, cells: int) -> bool:
        """Whether the cells up to `cells` can be written to, without taking a page from anyone."""
        ...

    def sample(self, logits: Floats, draws: Sequence[Any]) -> list[int | None]:
        """The tokens of some draws (`kernels.sampling.Draw`); None where masks left none."""
        ...


@runtime_checkable
class SelfDrafter(Protocol):
    """A drafter that drafts with parts of the model that it drafts for."""

    def attach_model(self, model: OwnModel) -> None:
        """Begin to work for an engine. Raises ConfigError if what was trained belongs to another
        model."""
        ...


class HiddenStream(DraftStream, Protocol):
    """A stream that is told the hidden states of its sequence."""

    def stand(self, hidden: Floats) -> None:
        """The row before the sequence's latest token stood so, (hidden_size,), after the last
        layer. Told before that token is, and only while drafting goes on."""
        ...


@runtime_checkable
class HiddenDrafter(Protocol):
    """A Drafter whose streams are all told hidden states."""

    wants_hidden_states: ClassVar[bool]


class MarkedStream(DraftStream, Protocol):
    """A stream whose drafts may have marks among their tokens."""

    def guess(self, candidates: Ints) -> None:
        """The marks after the sequence's latest row but for its token, (marks, count): the
        likeliest tokens of each, the likeliest first. Told only while drafting goes on."""
        ...


@runtime_checkable
class MarkingDrafter(Protocol):
    """A Drafter whose drafts have marks: tokens below 0, of which no row is ever accepted. The
    input of mark -1 - i is row i of `marks`, (kinds of marks, hidden_size); it sees what a token in
    its place would, and what it makes likely is told to the stream. The chance of a mark is that
    of the token that its stream will draft by it in the next step."""

    marks: Floats
    count: ClassVar[int]
    """How many of the likeliest tokens of each mark are told."""


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


class ObservingStream(DraftStream, Protocol):
    """A stream that is told what rows of its sequence found likely."""

    def observe(self, tokens: Ints, candidates: Ints) -> None:
        """A step had rows of the sequence, drafted ones among them, whose inputs were `tokens`
        (n,); `candidates` (n, k) are the k likeliest tokens after each, the likeliest first, or -1
        where nothing is known. Told only while drafting goes on."""
        ...


@runtime_checkable
class ObservingDrafter(Protocol):
    """A Drafter whose streams are all observing ones."""

    candidates: ClassVar[int]
    """How many of the likeliest tokens they are told."""


class SearchState(Protocol):
    """The completions of one prompt that a Search goes through together, a row a step."""

    @property
    def drafts(self) -> list[list[int]]:
        """The completions so far, the best first."""
        ...

    def take(self, logits: Floats) -> list[tuple[int, float]]:
        """The latest row has these logits (vocabulary,). Tokens and weights: the sum of their
        embeddings, weighted so, is the next row's input. Empty when every completion has ended."""
        ...


class Search(Protocol):
    """How many completions, which of them live, when to stop."""

    name: ClassVar[str]

    def begin(self, drafts: int, prompt: Ints, salt: str, stops: frozenset[int]) -> SearchState:
        """Begin with a prompt, of which so many completions are wanted. A completion ends with one
        of `stops`. `salt` is the tenant: two never learn from each other."""
        ...


class Candidate(Protocol):
    """What a Policy may know of a sequence."""

    arrival_s: float
    order: tuple[int, int]
    """Place in the order of arrival, and the choice's index: the lower, the earlier."""
    prompt: Ints
    salt: str
    """State is shared only with the same salt."""
    tenant: str
    """Who shares the engine fairly with others."""
    priority: int
    """Among those of its tenant: the lower, the earlier."""
    seats: int
    """Running sequences that it counts for."""
    computed: int
    """Cells that hold valid state."""
    computed_once: int
    """Cells that were computed already: more than 0 in a candidate that was preempted."""
    orderly: bool
    """Whether the order of arrival was planned so that the memory suffices: see `Request`."""

    @property
    def remaining_prefill(self) -> int:
        """Rows that must be computed before the next token can be sampled, minus one."""
        ...

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        ...

    @property
    def remaining_tokens(self) -> int:
        """Tokens that it may still generate, at most."""
        ...


class Policy(Protocol):
    """The order and size of work in a step."""

    name: ClassVar[str]

    def add(self, candidate: Candidate) -> None:
        """It waits from now on."""
        ...

    def remove(self, candidate: Candidate) -> None:
        """It waits no longer."""
        ...

    def begin(self, candidate: Candidate) -> None:
        """It runs from now on; what is held of its state is known. One that waited is removed
        right after, or at the end of the step."""
        ...

    def end(self, candidate: Candidate) -> None:
        """It runs no longer: it has ended, or was preempted and will be added again."""
        ...

    def order(
        self,
        fits: Callable[[Candidate], bool],
        waits: Callable[[Candidate], int],
        full: bool,
    ) -> Iterator[Candidate]:
        """The waiting sequences in the order in which they should be admitted: each that is given
        begins, unless no more are asked for. (Or it is found that its state lies farther away, and
        then it waits for that.) Nothing is added or removed while more are asked for. `full` says
        that there is no seat: only one for which another gives way can begin.

        One that does not fit beside what its tenant computes now should not be admitted yet; that
        is asked at little cost. `waits` tells how many tokens of a candidate another is about to
        compute; if that is more than 0, it should not be admitted yet either. Thousands may wait:
        a policy should not look at all of them in a step."""
        ...

    @property
    def pressing(self) -> bool:
        """Whether a running sequence may have to give its place to one that waits. Asked in every
        step."""
        ...

    def gives_way(self, candidate: Candidate, running: Sequence[Candidate]) -> Candidate | None:
        """Which running sequence gives its place to a waiting one, which is next and finds no seat
        or no pages; None if it should wait until one ends. Two must not take places from each
        other in turn."""
        ...

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        """Rows of this step for each prefilling sequence; their sum is at most `budget`, and each
        is at most the rows that the sequence still needs."""
        ...

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        """Which running sequence gives up its pages when there are no more."""
        ...
