"""An answer's text as it comes, split into thoughts, content and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ockham.api.chatting import ChatPlan, left_out, reasoning_tokens
from ockham.core.outputs import CompletionOutput, Reply
from ockham.core.sampling_params import SamplingParams
from ockham.text.reply.splitter import CUT, ReplyDelta, Splitter
from ockham.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Begun:
    """What an answer begins with that was not generated for it."""

    text: str = ""
    token_ids: Sequence[int] = ()


NOT_BEGUN = Begun()


class Telling:
    """What a stream has told of one choice of a chat's answer."""

    def __init__(
        self, plan: ChatPlan, params: SamplingParams, prompt: str, begun: Begun = NOT_BEGUN
    ) -> None:
        """`params` are the caller's, `prompt` the text that the answer follows."""
        self._plan = plan
        self._params = params
        self._splitter: Splitter | None = plan.splitter(params, prompt) if plan.splits else None
        self._begun = begun
        self._untold = begun.text
        self._token_ids: list[int] = []
        self._left_out: set[int] = set()

    def add(self, choice: CompletionOutput) -> ReplyDelta:
        """What is new with the next part of the choice."""
        text, self._untold = self._untold + choice.text, ""
        if self._splitter is None:
            return ReplyDelta(text)
        self._token_ids += choice.token_ids
        new = self._splitter.feed(text)
        if choice.finish_reason is not None:
            new.add(self._splitter.finish(cut=choice.finish_reason == CUT))
        if not self._plan.choice.parallel:
            self._left_out |= {call.index for call in new.calls if call.index}
            new.calls = [call for call in new.calls if not call.index]
        return new

    @property
    def has_calls(self) -> bool:
        """Whether a tool has been called."""
        return self._splitter is not None and self._splitter.has_calls

    def unread_call(self, index: int) -> str | None:
        """The text of a call that turned out to be none, after it had begun like one."""
        return None if self._splitter is None else self._splitter.unread_call(index)

    def warnings(self) -> list[str]:
        """What is to be said of the answer, once it is finished."""
        found = [] if self._splitter is None else list(self._splitter.warnings)
        return [*found, left_out(len(self._left_out))] if self._left_out else found

    def reasoning_tokens(self, tokenizer: Tokenizer | None) -> int | None:
        """How many tokens of the finished answer belong to its thoughts; None for a model that has
        none."""
        if self._splitter is None:
            return None
        return thought_tokens(
            self._plan,
            self._params,
            tokenizer,
            self._token_ids,
            self._splitter.thoughts,
            self._begun,
        )


def told_whole(
    plan: ChatPlan,
    params: SamplingParams,
    prompt: str,
    choice: CompletionOutput,
    tokenizer: Tokenizer | None,
    begun: Begun = NOT_BEGUN,
) -> tuple[Reply, int | None]:
    """A finished answer, split, and how many of its tokens belong to thoughts (None for a model
    that has none)."""
    text = begun.text + choice.text
    if not plan.splits:
        return Reply(text), None
    reply, thoughts = plan.split(text, choice.finish_reason, params, prompt)
    count = thought_tokens(plan, params, tokenizer, choice.token_ids, thoughts, begun)
    return reply, count


def thought_tokens(
    plan: ChatPlan,
    params: SamplingParams,
    tokenizer: Tokenizer | None,
    token_ids: list[int],
    thoughts: list[tuple[int, int]],
    begun: Begun = NOT_BEGUN,
) -> int | None:
    """How many generated tokens of an answer belong to its thoughts; None for a model that has
    none."""
    if not plan.style.thinks:
        return None
    skips = plan.skips_special_tokens(params)
    given = list(begun.token_ids)
    whole = reasoning_tokens(tokenizer, given + token_ids, thoughts, skips)
    return whole - (reasoning_tokens(tokenizer, given, thoughts, skips) if given else 0)
