"""Merging what the engine says step by step (`Delta`) into what a caller gets (`RequestOutput`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ockham.core.errors import OckhamError
from ockham.core.ledger import Ledger
from ockham.core.outputs import (
    ClassificationOutput,
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PooledRequestOutput,
    PoolingOutput,
    PositionLogprobs,
    RequestOutput,
    ScoringOutput,
)
from ockham.core.step import Floats, Ints
from ockham.engine.messages import Delta, Request


class _Choice:
    """One completion so far. Its text stays in pieces until someone asks, so that collecting a
    long answer does not copy it once for every token."""

    __slots__ = (
        "cumulative_logprob",
        "drafted",
        "finish_reason",
        "logprobs",
        "pieces",
        "report",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, wants_logprobs: bool) -> None:
        self.pieces: list[str] = []
        self.token_ids: list[int] = []
        self.drafted: list[bool] = []
        self.logprobs: list[PositionLogprobs] | None = [] if wants_logprobs else None
        self.cumulative_logprob: float | None = 0.0 if wants_logprobs else None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.report: dict[str, Any] | None = None

    def add(self, delta: Delta) -> None:
        if delta.text:
            self.pieces.append(delta.text)
        self.token_ids += delta.token_ids
        self.drafted += delta.marks
        self.report = delta.report or self.report
        if delta.logprobs and self.logprobs is not None and self.cumulative_logprob is not None:
            self.logprobs += delta.logprobs
            for token, alternatives in zip(delta.token_ids, delta.logprobs, strict=True):
                self.cumulative_logprob += alternatives[token].logprob
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason

    def output(self, index: int) -> CompletionOutput:
        text = "".join(self.pieces)
        self.pieces = [text]
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=list(self.token_ids),
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            drafted=list(self.drafted),
            report=self.report,
        )


class Collector:
    """The output of one request, as far as its deltas have told.

    It is given each of the request's deltas once, in order. `output` may be asked for at any time
    and returns a new object that later deltas do not change.
    """

    def __init__(self, request: Request, prompt: str | None = None) -> None:
        """`prompt` is the text that the prompt's token ids came from, if there was one."""
        self.request = request
        self.prompt = prompt
        self.finished = False
        self.error: OckhamError | None = None
        """What ended the request, if that was a fault."""
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None
        self._pooled = b""
        self._ledger: Ledger | None = None
        wants_logprobs = request.params.logprobs is not None
        self._choices = [_Choice(wants_logprobs) for _ in range(request.params.n)]

    def add(self, delta: Delta) -> None:
        """Take in what one step added."""
        self._choices[delta.index].add(delta)
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        if delta.pooled:
            self._pooled = delta.pooled
        if delta.ledger is not None:
            self._ledger = delta.ledger
        self.finished = self.finished or delta.finished

    @property
    def generated_tokens(self) -> int:
        """Tokens generated so far, over all choices."""
        return sum(len(choice.token_ids) for choice in self._choices)

    def tokens(self) -> list[Ints]:
        """Of each choice, the prompt and what was generated."""
        prompt = self.request.prompt_token_ids
        return [np.array(prompt + choice.token_ids, np.int32) for choice in self._choices]

    def pooled(self, labels: Sequence[str] = ()) -> PooledRequestOutput:
        """What was made of a text that has finished. `labels` are the model's classes."""
        request, ledger = self.request, self._ledger or Ledger()
        assert self.finished, "only then is there something"
        values = np.frombuffer(self._pooled, "<f4").astype(np.float32, copy=False)
        made = _pooled_output(request, values, labels)
        kind: type[PooledRequestOutput] = PooledRequestOutput
        if isinstance(made, EmbeddingOutput):
            kind = EmbeddingRequestOutput
        return kind(
            request_id=request.request_id,
            prompt=self.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=made,
            num_cached_tokens=ledger.prompt_tokens_reused,
            ledger=ledger,
        )

    def output(self) -> RequestOutput:
        """Everything so far. The ledger is empty until the request has finished."""
        ledger = self._ledger if self._ledger is not None else Ledger()
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=[choice.output(index) for index, choice in enumerate(self._choices)],
            finished=self.finished,
            prompt_logprobs=self._prompt_logprobs,
            num_cached_tokens=ledger.prompt_tokens_reused,
            ledger=ledger,
        )


def _pooled_output(
    request: Request, values: Floats, labels: Sequence[str]
) -> EmbeddingOutput | PoolingOutput | ClassificationOutput | ScoringOutput:
    """The output of a request, of all values that were answered."""
    assert request.pooling is not None, "checked by who calls"
    task = request.pooling.task
    if task == "embed":
        return EmbeddingOutput(values)
    if task == "token_embed":
        return PoolingOutput(values.reshape(len(request.prompt_token_ids), -1))
    if task == "score":
        return ScoringOutput(float(values[0]))
    likeliest = int(values.argmax())
    name = labels[likeliest] if likeliest < len(labels) else str(likeliest)
    return ClassificationOutput(values, name)
