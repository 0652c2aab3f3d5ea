"""What a caller asks of a model that gives vectors or scores in place of text: `PoolingParams`."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

Task = Literal["embed", "token_embed", "classify", "score"]
"""One vector of a text; one of each of its tokens; its classes; how well a pair fits together."""
TASKS: tuple[Task, ...] = get_args(Task)

MOST_DIMENSIONS = 1 << 20


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is made of the hidden states of one text, under vLLM's names where it has one.

    `task` may be left to the method that is called with the parameters.
    `dimensions` keeps the first so many values of an embedding, before it is normalised (Matryoshka
    representations, arXiv:2205.13147). `normalize` says whether embeddings get length 1, None what
    the checkpoint says. `use_activation` says whether classes and scores go through the
    checkpoint's activation (softmax or sigmoid); without it they are the logits. Raises
    InvalidRequest.
    """

    task: Task | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool = True

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise InvalidRequest(
                f"task must be one of {', '.join(TASKS)}, got {shown(self.task)}.", "task"
            )
        if self.dimensions is None:
            return
        if self.task not in (None, "embed", "token_embed"):
            raise InvalidRequest(
                f"dimensions are of embeddings, and the task is {self.task}; leave them out.",
                "dimensions",
            )
        if type(self.dimensions) is not int or not 1 <= self.dimensions <= MOST_DIMENSIONS:
            raise InvalidRequest(
                f"dimensions must be a positive integer, got {shown(self.dimensions)}.",
                "dimensions",
            )
