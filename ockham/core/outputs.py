"""What a caller gets back, under vLLM's field names."""

from __future__ import annotations

from typing import Any

import msgspec

from ockham.core.arrays import Floats
from ockham.core.ledger import Ledger


class Logprob(msgspec.Struct, array_like=True):
    """Log probability of one token under the unprocessed logits, and its rank (1 is likeliest)."""

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Token id -> log probability: the chosen token and the likeliest ones, likeliest first."""


class ToolCall(msgspec.Struct):
    """A call of a tool. `arguments` are JSON text."""

    id: str
    name: str
    arguments: str


class Reply(msgspec.Struct):
    """What an answer says. `content` is None where it only calls tools."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    warnings: list[str] = []


class CompletionOutput(msgspec.Struct):
    """One completion of a prompt. `finish_reason`: `"stop"`, `"length"`, `"abort"`, `"error"`, or
    None while it runs; `stop_reason`: the stop string or stop token id that ended it, None for the
    end-of-sequence token. `drafted` says of each token whether it had been drafted. `report` is
    what techniques tell of how they came to this completion, by name. `reply` is the text of a
    chat's answer split into thoughts, content and calls of tools."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    drafted: list[bool] = []
    report: dict[str, Any] | None = None
    reply: Reply | None = None


class PromptProgress(msgspec.Struct):
    """How far a prompt has been read, in tokens: `processed` of `total`, of which `cached` were not
    computed. `seconds` have passed since its first step began."""

    total: int
    cached: int
    processed: int
    seconds: float


class RequestOutput(msgspec.Struct):
    """All completions of one prompt. `prompt_logprobs[0]` is None: nothing precedes it. `progress`
    is only told of requests that ask for it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    progress: PromptProgress | None = None


class EmbeddingOutput(msgspec.Struct):
    """`embedding` is (width,)."""

    embedding: Floats


class PoolingOutput(msgspec.Struct):
    """`data` is (tokens, width): an embedding of each token."""

    data: Floats


class ClassificationOutput(msgspec.Struct):
    """`probs` is (classes,), in the order of the model's labels; `label` is the likeliest."""

    probs: Floats
    label: str


class ScoringOutput(msgspec.Struct):
    """How well the texts of a pair fit together."""

    score: float


class PooledRequestOutput(msgspec.Struct):
    """What was made of one text, or one pair."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput | PoolingOutput | ClassificationOutput | ScoringOutput
    finished: bool = True
    num_cached_tokens: int = 0
    ledger: Ledger = msgspec.field(default_factory=Ledger)


class EmbeddingRequestOutput(PooledRequestOutput, kw_only=True):
    """What was made of one text that was embedded."""

    outputs: EmbeddingOutput


class RankedDocument(msgspec.Struct):
    """One document of those that were ranked: `index` is its place among those that were given."""

    index: int
    score: float
    document: str


class ScoreOutput(msgspec.Struct):
    """Log probability of each prompt token given those before it.

    `logprobs[i]` belongs to token `i + 1`; `perplexity` is exp(-mean) over them.
    """

    prompt_token_ids: list[int]
    logprobs: list[float]
    perplexity: float
    ledger: Ledger = msgspec.field(default_factory=Ledger)
