"""`options` of Ollama's requests, as what chat completions call the same."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ockham.api.server.fields import ANY
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

UNBOUNDED = (-1, -2)
"""Values of `num_predict` that mean: until the model stops or the context is full."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # How a runner computes: nothing of it changes an answer, or it is the server's own to set.
    "num_batch": (ANY,),
    "num_keep": (ANY,),
    "num_gpu": (0, -1),
    "num_thread": (0,),
    "main_gpu": (ANY,),
    "numa": (ANY,),
    "low_vram": (ANY,),
    "f16_kv": (ANY,),
    "use_mmap": (ANY,),
    "use_mlock": (ANY,),
    "logits_all": (ANY,),
    "vocab_only": (False,),
    "embedding_only": (False,),
    "draft_num_predict": (ANY,),
    # Samplers that are not here, where they are off.
    "typical_p": (1.0,),
    "tfs_z": (1.0,),
    "mirostat": (0,),
    "mirostat_tau": (ANY,),
    "mirostat_eta": (ANY,),
    "penalize_newline": (True,),
}
"""Options that are known and have no use here -> the values at which they ask for nothing."""

NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    **{
        name: f"options.{name}"
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty"),
        )
    },
}
"""Field of chat completions -> what it is called in a request of Ollama's."""


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How an answer is sampled, and how long it may be."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL

    num_predict: int | None = None
    """Most tokens of the answer; -1 and -2: until the model stops or the context is full."""
    num_ctx: int | None = None
    """The context that the caller expects. The server has one, which no request changes; an answer
    warns where it is smaller."""
    temperature: float | None = None
    """0 takes the likeliest token each time."""
    top_k: int | None = None
    """So many of the likeliest tokens may be taken; 0 is all."""
    top_p: float | None = None
    """The likeliest tokens that have this share of the probability together may be taken."""
    min_p: float | None = None
    """Tokens may be taken that have this share of the likeliest one's probability."""
    seed: int | None = None
    """The same seed gives the same answer; -1, or none, takes another each time."""
    stop: str | list[str] | None = None
    """Texts that end the answer, and are no part of it."""
    repeat_penalty: float | None = None
    """Divides the logits of tokens that came before: in the whole prompt and answer, not only
    among the last `repeat_last_n`."""
    repeat_last_n: int | None = None
    """0 turns `repeat_penalty` off; other values change nothing."""
    presence_penalty: float | None = None
    """Taken from the logits of tokens that the answer holds."""
    frequency_penalty: float | None = None
    """The same, once for each time."""

    def fields(self) -> dict[str, Any]:
        """The same as fields of chat completions. Raises `InvalidRequest`."""
        if self.num_predict is not None and self.num_predict < 1:
            if self.num_predict not in UNBOUNDED:
                raise InvalidRequest(
                    "options.num_predict must be at least 1, or -1 for an answer of any length, "
                    f"got {shown(self.num_predict)}.",
                    "options.num_predict",
                )
            length = None
        else:
            length = self.num_predict
        return {
            "max_tokens": length,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,
            "stop": self.stop,
            "repetition_penalty": None if self.repeat_last_n == 0 else self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }

    def warnings(self, context: int) -> list[str]:
        """What a caller is told of options that are not kept, by a server of so long a context."""
        if self.num_ctx is None or self.num_ctx <= context:
            return []
        return [
            f"options.num_ctx={self.num_ctx} is larger than the context of this server, {context} "
            "tokens: a prompt that does not fit is refused, never cut."
        ]
