"""How many completions, which branches live, when to stop: `Search`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from ockham.core.arrays import Floats, Ints
from ockham.core.asks import Ask
from ockham.core.cost import ModelCost
from ockham.core.errors import OckhamError
from ockham.core.price import Work
from ockham.core.probe import Probe
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams.observe import Observer

if TYPE_CHECKING:
    from ockham.core.seams.companion import Companion


class Judge(Protocol):
    """Says how good a text is, outside of the engine."""

    def submit(self, prompt: Ints, text: str) -> Future[float]:
        """A score in [0, 1] of a text after a prompt (n,), later. The future raises what kept the
        judge from one."""
        ...


class Programs(Protocol):
    """Runs programs that a model wrote, outside of the engine."""

    def submit(self, program: str, calls: Sequence[str]) -> Future[tuple[str, ...]]:
        """What each of the calls returns, in order, as text, or "raises KIND"; without calls, what
        the program prints. The future raises a WorkerError if there is nothing to tell."""
        ...


def _no_tokenizer(text: str) -> Sequence[int]:
    raise OckhamError("there is no tokenizer for what a search writes")


class Problem(msgspec.Struct, frozen=True):
    """The request that a search answers. `stops` are the tokens that end a completion. `salt` is
    the tenant: searches of two tenants never learn from each other. `seats` is how many sequences
    the engine runs at once, and `text` says whether completions have a text. `asked` says whether
    the request asked for this search; else the engine's setting names it."""

    prompt: Ints
    params: SamplingParams
    salt: str
    stops: frozenset[int]
    seats: int
    text: bool
    asked: bool
    encode: Callable[[str], Sequence[int]] = _no_tokenizer
    """The tokens of a text that stands within another."""
    judges: Mapping[str, Judge] = {}
    """The checkers that the engine has, by name."""
    rewards: Mapping[str, Judge] = {}
    """The reward models that the engine has, by name."""
    probes: Mapping[str, Probe] = {}
    """The probes that the engine has, by name."""
    programs: Programs | None = None
    """What runs programs; None where they may not be run."""
    companions: Mapping[str, Companion] = {}
    """The other models that the engine has, by name."""
    cost: ModelCost | None = None
    """What the engine's own model costs."""
    turns: tuple[str, str] | None = None
    """What ends the assistant's turn and begins the user's, and the other way round, where that is
    known of the model's chat template."""


class TokenScores:
    """How sure the model was of each token that a branch has generated, in their order.

    `confidences` are minus the mean log probability of the 20 likeliest tokens of each row (Fu et
    al. 2025, arXiv:2508.15260), `entropies` are in nats. All are taken from the unprocessed logits.
    Of a token that was not drawn, as it was forced or written, the log probability is 0.0 and the
    others are nan; but see `Write`.
    """

    __slots__ = ("confidences", "entropies", "logprobs")

    def __init__(self) -> None:
        self.logprobs: list[float] = []
        self.confidences: list[float] = []
        self.entropies: list[float] = []

    def add(self, logprob: float, confidence: float, entropy: float) -> None:
        """Those of one more token."""
        self.logprobs.append(logprob)
        self.confidences.append(confidence)
        self.entropies.append(entropy)

    def put(self, place: int, logprob: float, confidence: float, entropy: float) -> None:
        """Those of the token at a place, of which nothing was known."""
        self.logprobs[place] = logprob
        self.confidences[place] = confidence
        self.entropies[place] = entropy

    def add_unknown(self) -> None:
        """One more token that was not drawn."""
        self.add(0.0, nan, nan)

    def first(self, tokens: int) -> TokenScores:
        """A copy of those of the first tokens."""
        copy = TokenScores()
        copy.logprobs = self.logprobs[:tokens]
        copy.confidences = self.confidences[:tokens]
        copy.entropies = self.entropies[:tokens]
        return copy


class Branch(Protocol):
    """One of the sequences that a search runs, as the search may see it."""

    @property
    def number(self) -> int:
        """Its number within the request, which is also its noise stream. The first branch has 0."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """What it has generated. Read it only."""
        ...

    @property
    def length(self) -> int:
        """How many tokens it has generated."""
        ...

    @property
    def text(self) -> str:
        """The same as text; a stop string that ended it is cut off."""
        ...

    def place(self, characters: int) -> int:
        """The most of its tokens whose text has no more than so many characters. Only a search
        that `watches` may ask, here and for `characters`."""
        ...

    def characters(self, tokens: int) -> int:
        """Characters of the text of its first tokens, at least 1."""
        ...

    @property
    def logprob(self) -> float:
        """Sum of its tokens' log probabilities; 0.0 unless the request asks for `logprobs`."""
        ...

    @property
    def scores(self) -> TokenScores:
        """How sure the model was of its tokens. Read it only; empty unless the search `scores`."""
        ...

    @property
    def room(self) -> int:
        """Tokens that it may still generate."""
        ...

    @property
    def due(self) -> bool:
        """Whether its next row is computed, and a search that `chooses` has yet to say what its
        next token is."""
        ...

    @property
    def held(self) -> bool:
        """Whether it sits steps out until the search goes on with it (`Hold`)."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why it has ended, as in the API; None while it runs."""
        ...

    def processed(self, logits: Floats) -> Floats:
        """The logits of its next token after masks, biases and penalties, as the sampler would see
        them: -inf where a token may not come. (vocabulary,) -> (vocabulary,)."""
        ...


class Say(msgspec.Struct, frozen=True):
    """`token` comes next in a branch that is due."""

    branch: int
    token: int


class Blend(msgspec.Struct, frozen=True):
    """The next row of a branch that is due has as input the sum of the embeddings of `tokens`, each
    times its weight. The branch counts one token more; which one that is means nothing."""

    branch: int
    tokens: Sequence[int]
    weights: Sequence[float]


class Fork(msgspec.Struct, frozen=True):
    """Begin the branch `number` with what `branch` has said, or with its first `tokens` tokens.

    The number was never used in this request before. The new branch has the state, the text, the
    place in the grammar and the counts of penalties of the old one, and noise of its own. It is due
    if the old one is due and all of its tokens are taken over. An earlier place costs one row,
    which is computed again.
    """

    branch: int
    number: int
    tokens: int | None = None


class Split(msgspec.Struct, frozen=True):
    """A branch that runs gives way to others, `numbers`, each a `Fork` of its first `tokens`
    tokens. They take its seat, and what it has said beyond those is waste. Without numbers it is
    dropped."""

    branch: int
    numbers: Sequence[int]
    tokens: int


class Write(msgspec.Struct, frozen=True):
    """These tokens come next in a branch that runs, as if it had said them. Their rows are computed
    as those of a prompt are. What ends a text ends it here, too, unless `ends` is false: then only
    its length does, as where a turn of a chat is written. Only for searches that do not `choose`,
    and for requests without a grammar. Of a search that `scores`, `scored` has the model
    say how sure it is of these tokens: that is known when the next token has been drawn."""

    branch: int
    tokens: Sequence[int]
    scored: bool = False
    ends: bool = True


class End(msgspec.Struct, frozen=True):
    """A branch that runs ends here, as if it had said that it stops. What it has said may be a
    choice."""

    branch: int


class Drop(msgspec.Struct, frozen=True):
    """Give a branch up. The rows that no other branch goes on from are booked as waste."""

    branch: int


class Hold(msgspec.Struct, frozen=True):
    """A branch sits steps out until `Continue`. What its state takes may be given to others then,
    and is computed again."""

    branch: int


class Continue(msgspec.Struct, frozen=True):
    """A branch that was held goes on."""

    branch: int


class Finish(msgspec.Struct, frozen=True):
    """The request is answered. `choices` are its completions, the best first: the number of a
    branch, or the tokens of a text that is no branch. A branch that still runs ends here: because
    there was no more room, if it was `cut`, else as if it had said that it stops.

    `spared` has, of each completion that need not be generated (any more), how many tokens it had,
    and how many it would have had: the ledger books them as saved. `report` is told to the caller
    with the first choice, under the technique's name: plain JSON values.
    """

    choices: Sequence[int | Sequence[int]]
    spared: Sequence[tuple[int, int]] = ()
    report: Mapping[str, Any] | None = None
    cut: bool = False


Action = Say | Blend | Fork | Split | Write | End | Drop | Hold | Continue


class SearchState(Protocol):
    """The search for the answer to one request."""

    chooses: ClassVar[bool] = False
    """Whether it says itself which tokens come next. Else the sampler draws them, as it would
    without a search. What a branch is to say is asked when its next row has been computed; a
    branch of which nothing is said waits."""
    watches: ClassVar[bool] = False
    """Whether it is asked after each step of a branch, and not only when one has ended. A step
    brings a branch several tokens where a draft was right."""
    scores: ClassVar[bool] = False
    """Whether it wants to know how sure the model is of each token (`Branch.scores`). Only a search
    that does not `choose` may."""

    holds: ClassVar[bool] = False
    """Whether its first branch is held at first: of the prompt, too, nothing is computed until the
    search goes on with it (`Continue`)."""

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """What it waits for that happens outside of the engine. It is asked again when one of these
        is done, and all of its branches may be held meanwhile."""
        return ()

    @property
    def width(self) -> int:
        """How many branches may live at once from now on. So many seats are kept for it."""
        ...

    @property
    def begins(self) -> int:
        """With how many branches it begins, all at the end of the prompt: numbers 0, 1, ..."""
        return 1

    def observer(self, branch: int) -> Observer | None:
        """What wants to know of the rows of a branch that begins; None for nothing. Branches that
        are observed are not drafted for."""
        return None

    def close(self) -> None:
        """The request is over, or given up: nobody waits for what is outside any more."""
        return

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        """What is to be done, in this order. `branches` are those that were not dropped, by number;
        the state of one that has ended is there only until this returns.

        An answer that leaves nothing to wait for must end in `Finish`. An error ends the request.
        """
        ...


class SearchOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The `Options` of a search that says what it costs before it runs."""

    def works(self, prompt: int, tokens: int) -> Sequence[Work]:
        """What the model computes at most for a prompt of so many tokens and answers of so many
        tokens each, one piece after the other."""
        raise NotImplementedError


class Search(Protocol):
    """How many completions, which of them live, when to stop."""

    name: ClassVar[str]
    needs_companion: ClassVar[bool] = False
    """Whether it makes sense only in an engine with companions."""

    def begin(self, ask: Ask, problem: Problem) -> SearchState | None:
        """Begin with a request. None leaves it to the sampler, as does a request for which a search
        makes no sense that it did not ask for. Raises InvalidRequest if it cannot be answered."""
        ...
