"""What requests of every protocol may hold beside the protocol's own fields.

These are fields of chat completions under their names, and the fields of techniques. A protocol
whose requests are translated to chat completions derives its requests from `Extras`.
"""

from __future__ import annotations

from typing import Any, Literal

from ockham.api.server.asking import TakesAsks
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.thoughts import RepetitionDetectionParams


class Extras(TakesAsks, kw_only=True, forbid_unknown_fields=True):
    """Fields that are no protocol's own: see chat completions."""

    logit_bias: dict[int, float] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: StructuredOutputsParams | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_token_budget: int | None = None
    thinking_closing_text: str | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    cache_salt: str | None = None
    cache_hint: Literal["keep", "discard"] | None = None
    reuse: str | None = None
    priority: int | None = None

    def extras(self) -> dict[str, Any]:
        """These fields, those of techniques, and what is asked to be seen: for the chat completion
        that asks the same, whose type is `with_asks(..., self.asking)`."""
        names = (*EXTRAS, *self.asking)
        return {**self.seeing(), **{name: getattr(self, name) for name in names}}


EXTRAS = tuple(name for name in Extras.__struct_fields__ if name not in TakesAsks.__struct_fields__)
"""The names of the fields that are no technique's."""
