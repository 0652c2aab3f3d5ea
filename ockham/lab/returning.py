"""Prompts whose text returns: documents in another order, code that was edited.

What approximate reuse saves and what it changes is measured on them: the same prompts through an
engine that takes exact prefixes over, and through one that is asked for more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.asks import Ask
from ockham.core.ledger import Ledger
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.difference import distance
from ockham.lab.running import drive
from ockham.lab.tasks import TASKS, items
from ockham.lab.tasks.documents import returning_items
from ockham.lab.tasks.reading import draw_documents, item_about
from ockham.lab.workloads import make_workload
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Change:
    """What taking state over changes, beside the exact engine on the same text."""

    agreement: float
    """Share of positions whose likeliest token is the same."""
    kl_mean: float
    """Nats, as is the 99th percentile."""
    kl_p99: float
    perplexity_ratio: float
    positions: int


Score = Callable[[str], float]

COLLECTION, MOST_PEOPLE = 20, 5
"""Documents that return, and most of them in a prompt."""
LEVELS = ("documents=4", "documents=8", "documents=4, hops=2", "documents=8, hops=2")


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt. `asked` is what it allows to be reused, `score` scores its answer, if it can be.
    `continued` is text that truly follows. One that only `prepares` leaves its state behind for the
    next, and is not counted."""

    tokens: list[int]
    max_tokens: int
    asked: Mapping[str, Ask]
    score: Score | None = None
    continued: tuple[int, ...] = ()
    prepares: bool = False

    def request(self, name: str, approximate: bool) -> Request:
        """The query as a greedy request."""
        return Request(
            request_id=name,
            prompt_token_ids=self.tokens,
            params=SamplingParams(temperature=0.0, max_tokens=self.max_tokens),
            asks=dict(self.asked) if approximate else {},
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What queries gave, one after the other, on an engine that knew nothing before."""

    ledger: Ledger
    seconds: float
    answers: list[list[int]]
    scores: list[float]

    @property
    def score(self) -> float:
        """The share of right answers; NaN where none can be scored."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else math.nan


def returning_documents(
    tokenizer: Tokenizer, queries: int, seed: int, reuse: ReuseParams
) -> Iterator[Query]:
    """New questions over documents that return: items of the task `documents`, each line of whose
    prompt is a chunk."""
    lines = reuse.changed(chunk_separator="\n")
    per_level = -(-queries // len(LEVELS))
    by_level = [returning_items(seed, per_level, level) for level in LEVELS]
    rounds = [item for same in zip(*by_level, strict=True) for item in same]
    for item in rounds[:queries]:
        messages = list(item.messages)
        pieces = lines.cut_chat(_rendered(tokenizer, messages), messages)
        tokens, asked = reuse.encode(tokenizer, pieces, add_special_tokens=False)
        yield Query(tokens, item.max_tokens, asked, partial(TASKS["documents"].score, item))


def returning_people(
    tokenizer: Tokenizer, queries: int, seed: int, reuse: ReuseParams
) -> Iterator[Query]:
    """The same in English: questions of the task `reading` over documents of one collection."""
    lines = reuse.changed(chunk_separator="\n")
    rng = Random(f"returning people {seed}")
    collection = draw_documents(Random(f"people {seed}"), COLLECTION)
    task = TASKS["reading"]
    for number in range(queries):
        item = item_about(rng, rng.sample(collection, 1 + number % MOST_PEOPLE), "returning")
        messages = list(item.messages)
        pieces = lines.cut_chat(_rendered(tokenizer, messages), messages)
        tokens, asked = reuse.encode(tokenizer, pieces, add_special_tokens=False)
        yield Query(tokens, item.max_tokens, asked, partial(task.score, item))


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    """The prompt that a chat becomes, whether or not the model knows chats."""
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template(messages)
    return "".join(f"{message['content']}\n" for message in messages)


def workload(
    tokenizer: Tokenizer, name: str, settings: dict[str, int], seed: int, reuse: ReuseParams
) -> Iterator[Query]:
    """The prompts of a workload of single requests, in its order."""
    for request in make_workload(name, settings).requests(seed):
        if request.prompt is not None:
            text, messages = request.prompt, None
        else:
            messages = [
                {"role": m["role"], "content": m["content"]} for m in request.messages or ()
            ]
            text = _rendered(tokenizer, messages)
        pieces = [(text, False)]
        if reuse.marks_chunks:
            pieces = reuse.cut_text(text) if messages is None else reuse.cut_chat(text, messages)
        tokens, asked = reuse.encode(tokenizer, pieces, messages is None)
        yield Query(tokens, request.max_tokens, asked)


def edited_code(
    tokenizer: Tokenizer, number: int, seed: int, reuse: ReuseParams
) -> Iterator[Query]:
    """Items of the task `edit`, each after the same with another line in its code: only that line
    is new to the engine."""
    for item in items("edit", seed, number):
        rng = Random(f"edited code {seed} {item.answer}")
        prompt = item.messages[0]["content"]
        lines = prompt.split("\n")
        other = [*lines]
        other[rng.randrange(2, len(lines) - 1)] = f"    total = count + {rng.randrange(10, 100)}"
        for text, last in (("\n".join(other), False), (prompt, True)):
            rendered = _rendered(tokenizer, [{"role": "user", "content": text}])
            tokens = tokenizer.encode(rendered, add_special_tokens=False)
            yield Query(
                tokens,
                item.max_tokens if last else 1,
                reuse.asks,
                partial(TASKS["edit"].score, item) if last else None,
                prepares=not last,
            )


def continued_code(
    tokenizer: Tokenizer, number: int, seed: int, reuse: ReuseParams, most: int
) -> Iterator[Query]:
    """Held-out code of at most `most` tokens whose last quarter is to be predicted, each after the
    same without one of its lines."""
    for item in items("code", seed, number):
        tokens = tokenizer.encode(item.text or "")[:most]
        cut = 3 * len(tokens) // 4
        rng = Random(f"continued code {seed} {len(tokens)}")
        ends = [i for i, token in enumerate(tokens[:cut]) if "\n" in tokenizer.token_text(token)]
        at = rng.randrange(max(1, len(ends) // 4), len(ends) // 2)
        without = tokens[: ends[at - 1] + 1] + tokens[ends[at] + 1 : cut]
        yield Query(without, 1, reuse.asks, prepares=True)
        yield Query(tokens[:cut], 1, reuse.asks, continued=tuple(tokens[cut:]))


RETURNING = {"lab": returning_documents, "English": returning_people}
"""What returns in the prompts of each suite's models."""


def forget(engine: Engine) -> None:
    """Let an engine know nothing of what it computed."""
    engine.reuse.forget()
    for approximate in engine.approximate.values():
        approximate.forget()


def ask(engine: Engine, queries: Sequence[Query], approximate: bool, at_once: int = 1) -> Run:
    """Send queries, `at_once` at a time, to an engine that knows nothing yet."""
    forget(engine)
    outputs: dict[str, RequestOutput] = {}
    started = time.perf_counter()
    for begin in range(0, len(queries), at_once):
        batch = enumerate(queries[begin : begin + at_once], begin)
        drive(
            engine,
            [query.request(str(number), approximate) for number, query in batch],
            lambda output: outputs.update({output.request_id: output}),
        )
    seconds = time.perf_counter() - started
    ledger = Ledger()
    for name, output in outputs.items():
        if not queries[int(name)].prepares:
            ledger.add(output.ledger)
    found = [outputs[str(number)] for number in range(len(queries))]
    choices = [output.outputs[0] for output in found]
    return Run(
        ledger=ledger,
        seconds=seconds,
        answers=[list(choice.token_ids) for choice in choices],
        scores=[
            query.score(choice.text)
            for query, choice in zip(queries, choices, strict=True)
            if query.score is not None
        ],
    )


def continue_with(queries: Sequence[Query], answers: Sequence[Sequence[int]]) -> list[Query]:
    """The queries with these answers as what follows them."""
    return [
        query if query.continued or query.prepares else replace(query, continued=tuple(answer))
        for query, answer in zip(queries, answers, strict=True)
    ]


def change(engine: Engine, queries: Sequence[Query]) -> Change:
    """How the distributions over what follows each query change when state is taken over."""
    exact, approximate = (_continuations(engine, queries, asked) for asked in (False, True))
    agree, nats, kl = 0, 0.0, []
    for before, after, query in zip(exact, approximate, queries, strict=True):
        if not len(before):
            continue
        same, divergence = distance(before, after)
        agree += same
        kl.append(divergence)
        nats += _nats(after, query.continued) - _nats(before, query.continued)
    every = np.concatenate(kl)
    return Change(
        agreement=agree / len(every),
        kl_mean=float(every.mean()),
        kl_p99=float(np.percentile(every, 99)),
        perplexity_ratio=math.exp(nats / len(every)),
        positions=len(every),
    )


def _continuations(engine: Engine, queries: Sequence[Query], approximate: bool) -> list[Floats]:
    """The logits over what follows each query, in turn: (tokens, vocabulary)."""
    forget(engine)
    kept: dict[str, list[Floats]] = {}
    engine.on_scored = lambda name, logits: kept.setdefault(name, []).append(logits.copy())
    try:
        for number, query in enumerate(queries):
            request = query.request(str(number), approximate)
            if query.continued:
                request.prompt_token_ids = [*query.tokens, *query.continued]
                request.score_from = len(query.tokens)
                request.params = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)
            drive(engine, [request], lambda output: None)
    finally:
        engine.on_scored = None
    nothing = np.empty((0, engine.vocabulary), np.float32)
    return [np.concatenate(kept.get(str(n), [nothing])) for n in range(len(queries))]


def _nats(logits: Floats, tokens: Sequence[int]) -> float:
    """The negative log likelihood of tokens, one for each row of logits."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(wide).sum(axis=1))
    return float((log_sums - wide[np.arange(len(tokens)), list(tokens)]).sum())
