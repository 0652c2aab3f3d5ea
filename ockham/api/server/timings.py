"""What a request may see of its own course: how its prompt is read, its times, its bill.

The fields and their names are llama-server's, but for `return_timings` and `return_ledger`. Every
protocol takes them, and answers in the same objects.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ockham.core.ledger import Ledger
from ockham.core.outputs import PromptProgress, RequestOutput


class AsksToSee(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields by which a request asks to see its own course."""

    return_progress: bool | None = None
    """A stream tells how far the prompt has been read, after each step that reads of it."""
    return_timings: bool | None = None
    """The answer has `timings`."""
    timings_per_token: bool | None = None
    """The answer has `timings`, and so has each part of a stream."""
    return_ledger: bool | None = None
    """The answer has the itemised bill, where it does not have it anyway."""

    def seeing(self) -> dict[str, Any]:
        """These fields, for the request that another protocol's is translated to."""
        return {name: getattr(self, name) for name in AsksToSee.__struct_fields__}

    @property
    def wants_timings(self) -> bool:
        return bool(self.return_timings or self.timings_per_token)

    @property
    def watches_prompt(self) -> bool:
        """Whether the engine must tell how far the prompt has been read."""
        return bool(self.return_progress or self.timings_per_token)


class Progress(msgspec.Struct):
    """Tokens of the prompt that have been read, those from the cache among them, and the time since
    its first step began."""

    total: int
    cache: int
    processed: int
    time_ms: int


class Timings(msgspec.Struct, kw_only=True):
    """llama-server's figures. `cache_n` tokens of the prompt were not computed, `prompt_n` were.
    `predicted_ms` begins with the first token, so that the rates are of the tokens after it."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    draft_n: int | UnsetType = UNSET
    draft_n_accepted: int | UnsetType = UNSET


class Report(msgspec.Struct):
    """What a request asked to see of its own course, where its protocol has no place for it."""

    timings: Timings | UnsetType = UNSET
    ledger: Ledger | UnsetType = UNSET


class Figures(msgspec.Struct, kw_only=True):
    """What the log says of a request's course. `finish_reasons` is empty where its caller or an
    error ended it, `first_token_ms` is None where there was no token."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    first_token_ms: float | None
    tokens_per_second: float
    drafted_tokens: int
    accepted_tokens: int
    finish_reasons: list[str]

    def in_words(self) -> str:
        words = [f"{self.prompt_tokens} prompt tokens ({self.cached_tokens} cached)"]
        if self.first_token_ms is not None:
            words += [
                f"{self.generated_tokens} generated",
                f"first after {self.first_token_ms:.0f} ms",
                f"{self.tokens_per_second:.1f} tokens/s",
                f"{self.accepted_tokens} of {self.drafted_tokens} drafted accepted",
            ]
        elif not self.finish_reasons:
            words.append("no token")
        words.append("ended by " + ("+".join(self.finish_reasons) or "its caller or an error"))
        return ", ".join(words)


def progress_of(told: PromptProgress) -> Progress:
    """What the engine told, as it is written."""
    return Progress(told.total, told.cached, told.processed, int(told.seconds * 1000.0))


class Course:
    """The course of one HTTP request as its outputs show it: tokens, times, how it ended."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        """The bill of what has finished."""
        self.completion_tokens = 0
        self.endings: list[str] = []
        self._begin_s = time.monotonic()
        self._first_s: float | None = None
        self._waited_s: float | None = None
        self._told: PromptProgress | None = None

    def add(self, output: RequestOutput) -> None:
        """Take in what is new, or all of a finished output."""
        tokens = 0
        for choice in output.outputs:
            tokens += len(choice.token_ids)
            if choice.finish_reason is not None:
                self.endings.append(choice.finish_reason)
        if tokens:
            self.completion_tokens += tokens
            if self._first_s is None:
                self._first_s = time.monotonic()
        if output.progress is not None:
            self._told = output.progress
        if output.finished:
            self.ledger.add(output.ledger)
            waited_s = output.ledger.queue_s + output.ledger.prefill_s
            self._waited_s = min(waited_s, self._waited_s or waited_s)

    def add_pooled(self, ledger: Ledger) -> None:
        """Take in the bill of a text of which a vector or a score was made."""
        self.ledger.add(ledger)
        self.endings = ["stop"]

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that came from the cache: of what has finished, else of what runs
        and is watched."""
        told = 0 if self._told is None else self._told.cached
        return self.ledger.prompt_tokens_reused if self.endings else told

    @property
    def first_token_s(self) -> float | None:
        """From the engine's taking of the request to its first token, by the engine's clock where
        it has told; None if there was none."""
        if self._first_s is None:
            return None
        return self._first_s - self._begin_s if self._waited_s is None else self._waited_s

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens that follow the first of each choice."""
        later = max(0, self.completion_tokens - max(1, len(self.endings)))
        return _per(later, self.ledger.decode_s)

    def drafted(self, drafters: Sequence[str]) -> tuple[int, int]:
        """Tokens that were drafted and looked at, and those of them that were accepted."""
        saved, wasted = self.ledger.saved, self.ledger.wasted
        accepted = sum(saved[name].tokens for name in drafters if name in saved)
        discarded = sum(wasted[name].tokens for name in drafters if name in wasted)
        return accepted + discarded, accepted

    def timings(self, drafters: Sequence[str]) -> Timings:
        """The figures of a request that has finished."""
        ledger = self.ledger
        timings = self._timings(
            ledger.prompt_tokens_reused,
            ledger.prompt_tokens_computed,
            ledger.prefill_s,
            ledger.decode_s,
        )
        drafted, accepted = self.drafted(drafters)
        if drafted:
            timings.draft_n, timings.draft_n_accepted = drafted, accepted
        return timings

    def timings_so_far(self) -> Timings:
        """The figures of one that runs, and has been watched while its prompt was read."""
        told = self._told or PromptProgress(0, 0, 0, 0.0)
        now_s = time.monotonic()
        return self._timings(
            told.cached,
            told.processed - told.cached,
            told.seconds,
            0.0 if self._first_s is None else now_s - self._first_s,
        )

    def _timings(self, cached: int, read: int, prompt_s: float, decode_s: float) -> Timings:
        later = max(0, self.completion_tokens - max(1, len(self.endings)))
        return Timings(
            cache_n=cached,
            prompt_n=read,
            prompt_ms=_ms(prompt_s),
            prompt_per_token_ms=_ms(_per(prompt_s, read)),
            prompt_per_second=round(_per(read, prompt_s), 3),
            predicted_n=self.completion_tokens,
            predicted_ms=_ms(decode_s),
            predicted_per_token_ms=_ms(_per(decode_s, later)),
            predicted_per_second=round(_per(later, decode_s), 3),
        )

    def figures(self, prompt_tokens: int, drafters: Sequence[str]) -> Figures:
        """The course in figures, for the log."""
        first_s, (drafted, accepted) = self.first_token_s, self.drafted(drafters)
        return Figures(
            prompt_tokens=prompt_tokens,
            cached_tokens=self.ledger.prompt_tokens_reused,
            generated_tokens=self.completion_tokens,
            first_token_ms=None if first_s is None else _ms(first_s),
            tokens_per_second=round(self.tokens_per_second, 3),
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            finish_reasons=list(dict.fromkeys(self.endings)),
        )


def _per(amount: float, of: float) -> float:
    return amount / of if of else 0.0


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 3)
