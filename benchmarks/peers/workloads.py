"""What every engine is asked to do. Prompts are random token ids, fresh in every round, the same
for all engines of a round."""

from __future__ import annotations

import random
from dataclasses import dataclass

VOCABULARY = 32000
FIRST_ORDINARY_TOKEN = 3
"""Below it are the tokens that stand for unknown, beginning and end in a Llama vocabulary."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are all there at the start, run together to their end."""

    name: str
    title: str
    prompts: int
    prompt_tokens: int
    new_tokens: int

    @property
    def decodes(self) -> bool:
        """Whether the figure is the rate of generated tokens after the first, or of the prompt."""
        return self.new_tokens > 1


@dataclass(frozen=True)
class Mixed:
    """Poisson arrivals, lengths drawn log-uniformly."""

    name: str
    title: str
    requests: int
    requests_per_s: float
    prompt_tokens: tuple[int, int]
    new_tokens: tuple[int, int]


@dataclass(frozen=True)
class FirstToken:
    """A fresh process: from its start to the first token of a short prompt."""

    name: str
    title: str
    prompt_tokens: int


Workload = Batch | Mixed | FirstToken

WORKLOADS: tuple[Workload, ...] = (
    FirstToken("first-token", "Time to first token from process start", 16),
    Batch("decode-1", "Decode, batch 1", 1, 128, 128),
    Batch("decode-8", "Decode, batch 8", 8, 128, 128),
    Batch("prefill-512", "Prefill of 512 tokens", 1, 512, 1),
    Batch("prefill-2048", "Prefill of 2,048 tokens", 1, 2048, 1),
    Mixed("mixed", "Mixed traffic", 8, 2.0, (16, 1024), (16, 256)),
)


def prompts(count: int, tokens: int, seed: str) -> list[list[int]]:
    numbers = random.Random(seed)
    return [_prompt(numbers, tokens) for _ in range(count)]


def trace(workload: Mixed, seed: str) -> list[tuple[float, list[int], int]]:
    """Seconds of arrival, prompt and tokens to generate, in order of arrival."""
    numbers = random.Random(seed)
    arrivals = []
    moment_s = 0.0
    for _ in range(workload.requests):
        prompt = _prompt(numbers, _log_uniform(numbers, *workload.prompt_tokens))
        arrivals.append((moment_s, prompt, _log_uniform(numbers, *workload.new_tokens)))
        moment_s += numbers.expovariate(workload.requests_per_s)
    return arrivals


def _prompt(numbers: random.Random, tokens: int) -> list[int]:
    return [numbers.randrange(FIRST_ORDINARY_TOKEN, VOCABULARY) for _ in range(tokens)]


def _log_uniform(numbers: random.Random, low: int, high: int) -> int:
    return min(high, int(low * ((high + 1) / low) ** numbers.random()))
