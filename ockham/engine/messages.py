"""What goes into an engine and comes out of it, in one process or across two (no pickle)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ockham.cache.store.stats import TierStats
from ockham.core.asks import Ask, Asked, asked_at
from ockham.core.config import EngineConfig
from ockham.core.guarded import GuardStats
from ockham.core.ledger import Ledger
from ockham.core.outputs import PositionLogprobs, PromptProgress
from ockham.core.pooling import PoolingParams
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import EXPECTED, PLAIN, SPENT
from ockham.core.speculative import DraftStats
from ockham.model.program.pooling import PairFrame

CacheHint = Literal["keep", "discard"]
HINTS: dict[CacheHint | None, int] = {None: PLAIN, "keep": EXPECTED, "discard": SPENT}
"""What a request may say of its prefix -> what the Reuse is told."""


class Request(msgspec.Struct, tag="request", kw_only=True):
    """One prompt to complete. `detokenize=False` leaves detokenization out (no tokenizer).

    With `params.prompt_logprobs`, prompt tokens from number `score_from` on are scored: those
    before it have None, and cost no logits. Requests share state only with those of the same
    `cache_salt`. `asks` is what is asked of techniques, by key (see `core.asks`), beside what
    `params.asks` asks: nothing by default.

    `tenant` is who shares the engine's steps and seats fairly with others (its `cache_salt`, if it
    is empty); of one tenant's requests those of a lower `priority` begin first.

    `cache_hint` says of the request's state that others will use it once more ("keep") or will not
    ("discard"); a wrong hint costs time, never a token. A `patient` request waits for whatever
    another computes of its prompt; others do so only for a page or more. An `orderly` one is part
    of a batch that is larger than the memory: it begins only when there is room for what it may
    generate, and after the branches of the batch that come before its own. Of one with `progress`
    each step tells how far its prompt has been read.

    With `pooling` nothing is generated, whatever `params` say: what is made of the prompt's hidden
    states is answered. From token number `second_text_at` on the prompt is the second
    text of a pair, for models that tell the two apart. Its first `prompt_skip` tokens are an
    instruction, which some models leave out of a mean.

    `messages` are those of the chat that the prompt was made of, where the engine has models that
    read them in their own way. `workload` is what kind of request it came as: "completion", "chat"
    or "tools". An `exact` one is served without the approximate techniques that the engine's
    settings name (`techniques.LEFT_OUT`); what it asks for itself it still gets.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    detokenize: bool = True
    score_from: int = 1
    cache_salt: str = ""
    tenant: str = ""
    priority: int = 0
    asks: dict[str, Any] = {}
    cache_hint: CacheHint | None = None
    patient: bool = False
    orderly: bool = False
    progress: bool = False
    pooling: PoolingParams | None = None
    second_text_at: int | None = None
    prompt_skip: int = 0
    messages: list[dict[str, Any]] | None = None
    workload: str = "completion"
    exact: bool = False

    def __post_init__(self) -> None:
        self.asks = make_asks(self.asks)

    def most_generated(self, context: int) -> int:
        """The most tokens that it may generate in a context of so many."""
        if self.pooling is not None:
            return 0
        return context if self.params.max_tokens is None else self.params.max_tokens

    @property
    def all_asks(self) -> dict[str, Ask]:
        """Whatever is asked of techniques, by key."""
        return {**(self.params.asks or {}), **self.asks}

    def asked(self, seam: str) -> Asked | None:
        """What is asked of a technique at a seam of which a request may ask for one."""
        if not self.asks and not self.params.asks:
            return None
        return next(iter(asked_at(seam, self.all_asks)), None)


class Abort(msgspec.Struct, tag="abort"):
    """Give up a request and free its state. Unknown or finished ids are ignored."""

    request_id: str


class Delta(msgspec.Struct, tag="delta", omit_defaults=True):
    """What one step added to choice `index` of a request.

    `text` holds only whole characters that no stop string can still take back; the concatenation
    of a choice's texts is its final text. `prompt_logprobs` comes with choice 0's first delta.
    `ledger` comes with the last delta of the whole request, which has `finished=True`; it is the
    request's, summed over its choices. `token_ids` may be empty (text that was held back, or an
    abort).
    """

    request_id: str
    index: int
    token_ids: list[int] = []
    text: str = ""
    logprobs: list[PositionLogprobs] | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    finished: bool = False
    ledger: Ledger | None = None
    drafted: list[bool] = []
    """Of each token whether it was drafted; [] where none was."""
    report: dict[str, Any] | None = None
    """What techniques tell of how they came to this choice, by name."""
    progress: PromptProgress | None = None
    """How far the prompt has been read; in a delta of its own, where that is asked for."""
    pooled: bytes = b""
    """What was made of the prompt's hidden states: fp32, little-endian."""

    @property
    def marks(self) -> list[bool]:
        return self.drafted or [False] * len(self.token_ids)


def merge(earlier: Delta, later: Delta) -> Delta:
    """One delta that says what two consecutive ones of the same choice said."""
    logprobs = earlier.logprobs
    if later.logprobs is not None:
        logprobs = (logprobs or []) + later.logprobs
    drafted = earlier.marks + later.marks if earlier.drafted or later.drafted else []
    return Delta(
        request_id=later.request_id,
        index=later.index,
        token_ids=earlier.token_ids + later.token_ids,
        text=earlier.text + later.text,
        logprobs=logprobs,
        prompt_logprobs=earlier.prompt_logprobs or later.prompt_logprobs,
        finish_reason=later.finish_reason or earlier.finish_reason,
        stop_reason=later.stop_reason if later.stop_reason is not None else earlier.stop_reason,
        finished=earlier.finished or later.finished,
        ledger=later.ledger or earlier.ledger,
        drafted=drafted,
        report=later.report or earlier.report,
        progress=later.progress or earlier.progress,
        pooled=later.pooled or earlier.pooled,
    )


def merged(deltas: list[Delta]) -> list[Delta]:
    """One delta for each choice that has several, in the order of their last ones: what finishes
    a request stays its last."""
    found: dict[tuple[str, int], Delta] = {}
    for delta in deltas:
        key = (delta.request_id, delta.index)
        before = found.pop(key, None)
        found[key] = delta if before is None else merge(before, delta)
    return list(found.values())


class Refused(msgspec.Struct, tag="refused"):
    """The engine did not take, or could not go on with, a request. `status` as in HTTP."""

    request_id: str
    message: str
    status: int
    param: str | None = None
    code: str | None = None


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """The engine's counters so far. Sent after steps, at most a few times a second, and when idle.

    `steps` counts completed steps; `seconds_since_step` lets a health check see a stall while
    requests wait. `ledger` is the sum over all steps.
    """

    running: int = 0
    waiting: int = 0
    steps: int = 0
    preemptions: int = 0
    pages_used: int = 0
    pages_total: int = 0
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    tiers: TierStats = msgspec.field(default_factory=TierStats)
    drafts: DraftStats = msgspec.field(default_factory=DraftStats)
    guard: GuardStats = msgspec.field(default_factory=GuardStats)


class Loading(msgspec.Struct, tag="loading"):
    """What is being loaded, as a line for people. Such messages come before `Ready`."""

    line: str


class ModelFacts(msgspec.Struct, kw_only=True):
    """What can be said of a loaded model to who asks. `path` is its directory or GGUF file,
    `architecture` the class that config.json names, `weight_format` the formats of its matrices as
    they are held, joined by +. `trained_length` is the number of positions that it is meant for.
    The defaults are what is said of a model that was not loaded yet."""

    path: str
    architecture: str = ""
    weight_format: str = ""
    weight_bytes: int = 0
    parameters: int = 0
    layers: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    heads: int = 0
    kv_heads: int = 0
    trained_length: int = 0


class PooledFacts(msgspec.Struct, kw_only=True):
    """What a caller may want to know of a model that gives vectors or scores. `width` is the values
    of an embedding, or the number of `labels`; `prompts` are the instructions that stand before
    texts, by name, and `default_prompt` the name of the one that is taken where none is named.
    Texts are lower-cased first where `lower_case`. `similarity` is how embeddings are compared.
    `pair_frame` is how pairs are shown to a decoder; None for the tokenizer's own way."""

    width: int
    labels: tuple[str, ...] = ()
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    lower_case: bool = False
    similarity: str = "cosine"
    pair_frame: PairFrame | None = None


class Ready(msgspec.Struct, tag="ready", kw_only=True):
    """The engine has loaded its model. The lengths are in tokens; `context_limit` says in words
    what sets `max_model_len`, and what would raise it."""

    model: str
    max_model_len: int
    context_limit: str
    vocab_size: int
    memory_plan: dict[str, int]
    numerics_id: str
    load_s: float
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a sequence unless a request ignores them."""
    sampling_defaults: dict[str, int | float] = {}
    """What the checkpoint sets of `SamplingParams`, by name."""
    facts: ModelFacts | None = None
    drafters: tuple[str, ...] = ()
    """The names under which ledgers have what was drafted."""
    tasks: tuple[str, ...] = ("generate",)
    """What requests may ask for."""
    pooled: PooledFacts = msgspec.field(default_factory=lambda: PooledFacts(width=0))
    """Of a model that gives vectors or scores in place of text."""


class Question(msgspec.Struct, frozen=True):
    """What `ockham.engine.survey` is asked: `share_bytes` is what a model gets unless it needs
    more, `most_bytes` what there is."""

    config: EngineConfig
    share_bytes: int
    most_bytes: int


class Survey(msgspec.Struct, frozen=True):
    """What it answers. `memory_bytes` is the model's share, `tasks` what requests may ask of it.
    `error` says why it cannot be loaded, `fits` whether there could be enough memory for it."""

    memory_bytes: int = 0
    max_model_len: int = 0
    tasks: tuple[str, ...] = ()
    error: str | None = None
    fits: bool = True


class Died(msgspec.Struct, tag="died"):
    """The engine cannot start or go on; the last message of its process."""

    message: str


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Finish nothing more and exit."""


class Pin(msgspec.Struct):
    """A prefix that is to stay. Its `owner` may pin one part in `owners` of what may be pinned.
    `lasting` says whether it is restored after a restart, where pins are kept in a file."""

    name: str
    prompt_token_ids: list[int]
    cache_salt: str = ""
    owner: str = ""
    owners: int = 1
    lasting: bool = True


class Unpin(msgspec.Struct):
    """A prefix that is to go again: the pin of that name under `cache_salt`, or, if that is None,
    of the tenant that a report calls `tenant`, or of any."""

    name: str
    cache_salt: str | None = ""
    tenant: str | None = None


class PinnedPrefix(msgspec.Struct):
    """A prefix that stays; `tenant` stands for its salt."""

    name: str
    tokens: int
    tenant: str


class CacheQuery(msgspec.Struct, tag="cache_query", kw_only=True):
    """Pin or unpin a prefix, if asked to, and tell what the prefix cache holds under `salt`; None
    is everything. `only_check`: only say whether the prefix could be pinned. `texts`: show the
    beginnings of what is held.
    """

    ask_id: str
    salt: str | None
    pin: Pin | None = None
    only_check: bool = False
    unpin: Unpin | None = None
    most_nodes: int = 0
    texts: bool = False


class AdapterQuery(msgspec.Struct, tag="adapter_query", kw_only=True):
    """Say whether the adapter that is asked for could be served; its weights are not read."""

    ask_id: str
    asks: dict[str, Any]

    def __post_init__(self) -> None:
        self.asks = make_asks(self.asks)


class AdapterReport(msgspec.Struct, tag="adapter_report", kw_only=True):
    """The answer to an `AdapterQuery`: it could."""

    ask_id: str


class EndThought(msgspec.Struct, tag="end_thought", kw_only=True):
    """Let the thoughts of a running request end, so that its answer begins."""

    ask_id: str
    request_id: str


class ThoughtEnded(msgspec.Struct, tag="thought_ended", kw_only=True):
    """The answer to an `EndThought`: they end with the next step."""

    ask_id: str


class GuardQuery(msgspec.Struct, tag="guard_query", kw_only=True):
    """Tell what the quality guard has found."""

    ask_id: str


class GuardReport(msgspec.Struct, tag="guard_report", kw_only=True):
    """The answer to a `GuardQuery`: None where nothing is guarded."""

    ask_id: str
    guard: GuardStats | None


class CachedNode(msgspec.Struct, kw_only=True):
    """A run of cached tokens that goes on from `parent`, -1 for none; numbers hold within a report
    only. `tenant` stands for its salt,
    `readers` are running sequences."""

    number: int
    parent: int
    tenant: str
    start: int
    tokens: int
    bytes: int
    hits: int
    readers: int
    pinned: bool
    hint: str
    age_s: float
    idle_s: float
    text: str | None


class CacheReport(msgspec.Struct, tag="cache_report", kw_only=True):
    """The answer to a `CacheQuery`; `error` says why a prefix was not pinned or unpinned, `param`
    which field was at fault. The sums are over all that the query may see."""

    ask_id: str
    error: str | None
    param: str | None
    nodes: list[CachedNode]
    nodes_total: int
    tokens_total: int
    bytes_total: int
    pool_bytes: int
    pins: list[PinnedPrefix]


Query = CacheQuery | AdapterQuery | EndThought | GuardQuery
Report = CacheReport | AdapterReport | ThoughtEnded | GuardReport
"""What an engine is asked beside requests, and what it answers, each by its `ask_id`."""
ToEngine = Request | Abort | CacheQuery | AdapterQuery | EndThought | GuardQuery | Shutdown
FromEngine = (
    Loading
    | Ready
    | Delta
    | Refused
    | Stats
    | CacheReport
    | AdapterReport
    | ThoughtEnded
    | GuardReport
    | Died
)
