"""The plan of an offline batch: what its prompts share, and in which order they run best.

BatchLLM (arXiv:2412.03594) finds the common prefixes of a whole batch before anything is computed.
Here they are a trie, which the sorted prompts and the lengths that neighbours have in common give.
The trie is walked depth first, so that a prefix is used up before the next one is begun: it is
computed once, and may be let go when the last of those below it has run. Of the branches at a node,
those with more tokens to generate for each token to compute go first: while they decode, the
prompts of the others fill the room in their steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import msgspec
import numpy as np

from ockham.core.step import Ints
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.messages import Request


@dataclass(frozen=True, slots=True)
class Plan:
    """`order` are the prompts by number, in the order in which they should run; `tokens` is the
    size of the trie, all that must be computed of the prompts if each prefix is computed once."""

    order: list[int]
    tokens: int
    _ends: list[_Node]
    """Of each prompt, the node at which it ends."""

    def done(self, number: int) -> int:
        """A prompt and its answer are finished, told once of each: how many of its first tokens
        others that are not finished begin with too."""
        node = self._ends[number]
        depth: int | None = None
        while True:
            node.users -= 1
            if node.users and depth is None:
                depth = node.depth
            if node.parent is None:
                return depth or 0
            node = node.parent


@dataclass(slots=True)
class _Node:
    """A branch of the trie: its first `depth` tokens belong to all that is below it. `prompts` end
    here. `new` and `generated` are tokens of the node and all below, without those above it."""

    depth: int
    parent: _Node | None = None
    prompts: list[int] = field(default_factory=list)
    users: int = 0
    """Prompts that end here or below and are not finished."""
    children: list[_Node] = field(default_factory=list)
    new: int = 0
    generated: int = 0
    first: float = inf
    """The lowest number of a prompt that ends here or below."""

    def take(self, child: _Node) -> None:
        self.first = min(self.first, child.first)
        self.users += child.users
        child.parent = self
        child.new += child.depth - self.depth
        self.new += child.new
        self.generated += child.generated
        self.children.append(child)

    @property
    def rank(self) -> tuple[float, float]:
        """The more it generates for what must be computed, the earlier; else as it was given."""
        return -self.generated / self.new, self.first


class OfflineBatch:
    """Requests that are all there before the first of them runs, marked for the scheduler.

    They go to the engine by `order`; it is told when nobody is left to use a prefix. Seeds are
    drawn in the order that was given, so that no plan changes an output.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.params.seed is None and request.pooling is None:
                seed = engine.draw_seed()
                request.params = msgspec.structs.replace(request.params, seed=seed)
        self._engine = engine
        longest, state = engine.max_model_len, engine.state
        answers = [r.params.n * min(longest, r.most_generated(longest)) for r in requests]
        prompts = [np.asarray(request.prompt_token_ids, np.int32) for request in requests]
        self._plan = plan_batch(prompts, answers)
        self._numbers = {request.request_id: i for i, request in enumerate(requests)}
        ends = len(requests) * state.page_tokens  # each ends in a page of its own
        fits = self._plan.tokens + sum(answers) + ends <= state.capacity
        for request in requests:
            request.patient, request.orderly = True, not fits

    @property
    def order(self) -> list[int]:
        """The requests by number, in the order in which they should be added."""
        return self._plan.order

    @property
    def tokens(self) -> int:
        """Different prompt tokens, by what stands before them: what must be computed of all."""
        return self._plan.tokens

    def ended(self, collector: Collector) -> None:
        """One of the requests has finished: what of its state no other will use may go first."""
        request = collector.request
        start = self._plan.done(self._numbers.pop(request.request_id))
        for tokens in collector.tokens():
            self._engine.discard(request, tokens, start)


def plan_batch(prompts: Sequence[Ints], generated: Sequence[int]) -> Plan:
    """The plan of prompts that may generate so many tokens each."""
    root = _trie(prompts, generated)
    order: list[int] = []
    ends = [root] * len(prompts)
    for node in _walk(root):
        order += node.prompts
        for number in node.prompts:
            ends[number] = node
    return Plan(order, root.new, ends)


def _trie(prompts: Sequence[Ints], generated: Sequence[int]) -> _Node:
    """Built from the sorted prompts: `path` are the nodes that the one before passed through."""
    # By their bytes: any order does in which those with the same beginning stand together.
    by_bytes = sorted(range(len(prompts)), key=lambda i: prompts[i].tobytes())
    root = _Node(0)
    path = [root]
    last: Ints | None = None
    for number in by_bytes:
        prompt = prompts[number]
        shared = 0 if last is None else _in_common(last, prompt)
        _close(path, shared)
        if path[-1].depth == len(prompt):
            node = path[-1]
        else:
            node = _Node(len(prompt))
            path.append(node)
        node.prompts.append(number)
        node.first = min(node.first, number)
        node.users += 1
        node.generated += generated[number]
        last = prompt
    _close(path, 0)
    return root


def _close(path: list[_Node], depth: int) -> None:
    """Nothing more comes below `depth`."""
    while path[-1].depth > depth:
        node = path.pop()
        if path[-1].depth < depth:
            path.append(_Node(depth))
        path[-1].take(node)


def _walk(root: _Node) -> Iterator[_Node]:
    """Depth first: a node before those below it."""
    below = [root]
    while below:
        node = below.pop()
        yield node
        below.extend(sorted(node.children, key=lambda child: child.rank, reverse=True))


def _in_common(one: Ints, other: Ints) -> int:
    most = min(len(one), len(other))
    differ = np.flatnonzero(one[:most] != other[:most])
    return int(differ[0]) if len(differ) else most
