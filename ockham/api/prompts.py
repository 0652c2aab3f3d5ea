"""Prompts: from what a caller says to the token ids of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ockham.core.errors import InvalidRequest

T = TypeVar("T")

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, its token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`; the mappings may have
`cache_salt` and `cache_hint` beside that, as `AsyncLLM.generate` takes them."""


def as_list(prompts: Any) -> list[Any]:
    """The prompts of a batch: a text, an object or a list of token ids is a batch of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise InvalidRequest(
            "prompts must be text, token ids, a prompt object, or a list of these, got "
            f"{type(prompts).__name__}.",
            "prompt",
        )
    if prompts and all(isinstance(entry, int) for entry in prompts):
        return [prompts]
    return list(prompts)


def named(index: int, work: Callable[..., T], *args: Any) -> T:
    """Do something for the prompt at `index`; an error names it."""
    try:
        return work(*args)
    except InvalidRequest as error:
        raise InvalidRequest(f"prompt {index}: {error}", error.param) from error
