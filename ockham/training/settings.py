"""What is trained, from what, and for how long. Knows nothing of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.draft_files import MOST_OFFSETS

DRAFT_MODEL, MEDUSA, PROMPT_TOKENS = "draft_model", "medusa", "prompt_tokens"
EARLY_EXIT, MTP, EAGLE3, ACCEPTANCE = "early_exit", "mtp", "eagle3", "acceptance"
METHODS = (DRAFT_MODEL, MEDUSA, PROMPT_TOKENS, EARLY_EXIT, MTP, EAGLE3, ACCEPTANCE)

_ONLY_FOR = {
    "heads": (MEDUSA, PROMPT_TOKENS),
    "layers": (DRAFT_MODEL, EARLY_EXIT),
    "hidden_size": (DRAFT_MODEL,),
    "start": (DRAFT_MODEL,),
    "text_share": (DRAFT_MODEL,),
    "draft_model": (ACCEPTANCE,),
}
"""Settings that mean something to some methods only."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What None stands for is decided when training begins, by the method and the target.

    `tokens` are read in training, in batches of `batch_tokens` and rows of `context`;
    `output_tokens` are written by the target first. Of a draft model's tokens the share
    `text_share` comes before, from text as it is. `heads` counts Medusa's heads or prompt tokens,
    `layers` those of a draft model or below an early exit. `rate` is the learning rate's peak.
    """

    target: str
    out: Path
    method: str
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    tokens: int = 1_000_000
    output_tokens: int | None = None
    context: int = 512
    batch_tokens: int = 2048
    rate: float | None = None
    seed: int = 0
    heads: int | None = None
    layers: int | None = None
    hidden_size: int | None = None
    text_share: float | None = None
    start: Path | None = None
    draft_model: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"there is no method {self.method!r} to train; there are {', '.join(METHODS)}."
            )
        for name, methods in _ONLY_FOR.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise ConfigError(
                    f"{name} is for {' and '.join(methods)} only, and the method is "
                    f"{self.method}; leave it out."
                )
        for name in ("tokens", "output_tokens", "batch_tokens", "heads", "layers", "hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.context < 16:
            raise ConfigError(f"context must be at least 16 tokens, got {self.context}.")
        if self.heads is not None and self.heads > MOST_OFFSETS:
            raise ConfigError(f"heads must be at most {MOST_OFFSETS}, got {self.heads}.")
        if self.rate is not None and not 0.0 < self.rate < 10.0:
            raise ConfigError(f"rate must be positive and below 10, got {self.rate}.")
        if self.text_share is not None and not 0.0 <= self.text_share <= 1.0:
            raise ConfigError(f"text_share must lie in [0, 1], got {self.text_share}.")
        if self.method == ACCEPTANCE and self.draft_model is None:
            raise ConfigError(
                "the method acceptance needs a draft_model, whose tokens it judges: name its "
                "directory."
            )
        if self.start is not None and (self.layers or self.hidden_size):
            raise ConfigError("start brings layers and hidden_size of its own; leave them out.")

    @property
    def steps(self) -> int:
        """Steps of training."""
        return max(1, self.tokens // self.batch_tokens)
