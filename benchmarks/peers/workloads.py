"""What every engine is asked to do. Prompts are random token ids, fresh in every round, the same
for all engines of a round."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers.peers import PEERS, Configuration

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


@dataclass(frozen=True)
class Returning:
    """Requests whose prompts share text: one of Ockham's own workloads (`ockham.lab.workloads`),
    `at_once` of its requests at a time, begun in its order. `reuse`: whether the engine may keep
    what it computed for an earlier request."""

    name: str
    title: str
    kind: str
    settings: tuple[tuple[str, int], ...]
    at_once: int
    reuse: bool


@dataclass(frozen=True)
class Warm:
    """A system prompt, and then in turn new tokens after it, which is there already, and as many
    new tokens alone."""

    name: str
    title: str
    system_tokens: int
    new_prompt_tokens: int
    pairs: int


@dataclass(frozen=True)
class Drafts:
    """Prompts whose answers can be foretold in part, one after the other, each without drafts and
    with them, on a model that answers (answering.py). `kind`: of `ockham.lab.streams`."""

    name: str
    title: str
    kind: str
    prompts: int


Workload = Batch | Mixed | FirstToken | Returning | Warm | Drafts

RETURNING_BITS = 8
"""What is reused or drafted does not depend on the precision of the weights: one is measured."""


def _returning(reuse: bool) -> Iterator[Returning]:
    """The workloads, cut so that all engines do one in less than two minutes."""
    without = "" if reuse else "-anew"
    titles = ("Chat", "Agents", "Documents", "Offline batch")
    settings = (
        {"sessions": 2, "turns": 2, "system_sentences": 83, "max_tokens": 16},
        {"sessions": 2, "calls": 3, "max_tokens": 8},
        {"queries": 6, "collection": 6, "per_query": 2, "max_tokens": 8},
        {"prompts": 12, "prefixes": 2, "prefix_sentences": 20, "max_tokens": 8},
    )
    for title, chosen in zip(titles, settings, strict=True):
        kind = title.split()[-1].lower()
        told = title if reuse else f"{title}, everything computed anew"
        at_once = 8 if kind == "batch" else 1
        yield Returning(f"{kind}{without}", told, kind, tuple(chosen.items()), at_once, reuse)


WORKLOADS: tuple[Workload, ...] = (
    FirstToken("first-token", "Time to first token from process start", 16),
    Batch("decode-1", "Decode, batch 1", 1, 128, 128),
    Batch("decode-8", "Decode, batch 8", 8, 128, 128),
    Batch("prefill-512", "Prefill of 512 tokens", 1, 512, 1),
    Batch("prefill-2048", "Prefill of 2,048 tokens", 1, 2048, 1),
    Mixed("mixed", "Mixed traffic", 8, 2.0, (16, 1024), (16, 256)),
    Warm("warm", "A warm system prompt", 1000, 48, 6),
    *_returning(reuse=True),
    *_returning(reuse=False),
    Drafts("drafts-edit", "Drafts: edit", "edit", 3),
    Drafts("drafts-chat", "Drafts: chat", "chat", 1),
    Drafts("drafts-code", "Drafts: code", "code", 1),
)


def takes_part(configuration: Configuration, workload: Workload) -> bool:
    """Whether the configuration does the workload at all."""
    if isinstance(workload, (Returning, Warm)):
        reuses = PEERS[configuration.peer].reuses
        return bool(reuses) and configuration.bits == RETURNING_BITS
    if isinstance(workload, Drafts):
        return bool(PEERS[configuration.peer].drafts) and configuration.bits == RETURNING_BITS
    return True


def prompts(count: int, tokens: int, seed: str) -> list[list[int]]:
    numbers = random.Random(seed)
    return [random_prompt(numbers, tokens) for _ in range(count)]


def trace(workload: Mixed, seed: str) -> list[tuple[float, list[int], int]]:
    """Seconds of arrival, prompt and tokens to generate, in order of arrival."""
    numbers = random.Random(seed)
    arrivals = []
    moment_s = 0.0
    for _ in range(workload.requests):
        prompt = random_prompt(numbers, _log_uniform(numbers, *workload.prompt_tokens))
        arrivals.append((moment_s, prompt, _log_uniform(numbers, *workload.new_tokens)))
        moment_s += numbers.expovariate(workload.requests_per_s)
    return arrivals


def random_prompt(numbers: random.Random, tokens: int) -> list[int]:
    return [numbers.randrange(FIRST_ORDINARY_TOKEN, VOCABULARY) for _ in range(tokens)]


def _log_uniform(numbers: random.Random, low: int, high: int) -> int:
    return min(high, int(low * ((high + 1) / low) ** numbers.random()))
