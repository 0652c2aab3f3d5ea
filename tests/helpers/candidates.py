"""What a policy may know of a sequence, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.seams import Candidate, Policy

P = TypeVar("P", bound=Policy)


@dataclass(eq=False)
class Prompt:
    """A `Candidate`."""

    order: tuple[int, int]
    prompt: Ints = field(default_factory=lambda: np.zeros(1, np.int32))
    salt: str = ""
    tenant: str = ""
    priority: int = 0
    seats: int = 1
    computed: int = 0
    computed_once: int = 0
    orderly: bool = False
    arrival_s: float = 0.0
    remaining_prefill: int = 1
    generated: int = 0
    remaining_tokens: int = 1


def policy_of(policy: P, waiting: Sequence[Candidate]) -> P:
    """A policy, with those waiting."""
    for candidate in waiting:
        policy.add(candidate)
    return policy


def nobody(candidate: Candidate) -> int:
    return 0


def admit(
    policy: Policy,
    most: int,
    waits: Callable[[Candidate], int] = nobody,
    held: int = 3,
    full: bool = False,
) -> list[Prompt]:
    """What one step begins; so many cells of each were held."""
    taken: list[Prompt] = []
    for candidate in policy.order(lambda each: True, waits, full):
        if len(taken) == most:
            break
        assert isinstance(candidate, Prompt)
        candidate.computed_once = candidate.computed = held
        policy.begin(candidate)
        taken.append(candidate)
    for candidate in taken:
        policy.remove(candidate)
    return taken
