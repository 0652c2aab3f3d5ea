"""Texts of which a vector or a score is wanted, of models that read each text whole: run many at a
time, with little kept of each.

Such a text is computed in one step. It shares no state, keeps none behind, draws no token and is
never preempted. So it needs no `Sequence`, and what is done for it is done for all of a step at
once. Requests that ask for more (a technique, progress, an embedding of each token) go the way of
all sequences, which is the oracle of this one: tests/engine/test_texts.py compares the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, cast

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.ledger import Ledger, Saving, divide
from ockham.core.rows import build_step, chains
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Candidate
from ockham.core.state_key import state_key
from ockham.core.step import Step, Tables
from ockham.engine.assemble import Assembly
from ockham.engine.billing import BATCHING
from ockham.engine.known import TextKey, key_of
from ockham.engine.messages import Delta, Request
from ockham.engine.pooling import Pooler, encoded
from ockham.engine.runner.runner import Runner

GREEDY = SamplingParams(temperature=0.0)
"""Of a request that generates nothing."""


class Text:
    """A text that waits: a `Candidate` of the policy."""

    __slots__ = (
        "arrival_s",
        "computed",
        "key",
        "order",
        "priority",
        "prompt",
        "remaining_prefill",
        "request",
        "salt",
        "tenant",
    )

    computed_once: ClassVar[int] = 0
    generated: ClassVar[int] = 0
    orderly: ClassVar[bool] = False
    remaining_tokens: ClassVar[int] = 0
    seats: ClassVar[int] = 1

    def __init__(
        self, request: Request, arrival: int, salt: str, key: TextKey | None, now_s: float
    ) -> None:
        """`key` is under which what is made of it is kept, None if it is not."""
        self.request = request
        self.order = (arrival, 0)
        self.arrival_s = now_s
        self.prompt: Ints = np.array(request.prompt_token_ids, np.int32)
        self.priority = request.priority
        self.tenant = request.tenant or request.cache_salt
        self.salt, self.key = salt, key
        self.computed = 0
        self.remaining_prefill = len(self.prompt)


class Cost(NamedTuple):
    """What so many rows cost that make up a whole text. `alone_bytes` are the weights that they
    would read in a step of their own."""

    flops: int
    read_bytes: int
    written_bytes: int
    alone_bytes: int


class Texts:
    """The texts that wait, by the ids of their requests, and the steps that compute them."""

    def __init__(self, engine: Assembly, runner: Runner) -> None:
        self._engine, self._runner = engine, runner
        self.waiting: dict[str, Text] = {}
        self._first: Text | None = None
        """The first that found no room in the latest step: it begins the next one."""
        self._costs: dict[int, Cost] = {}

    def take(self, request: Request) -> bool:
        """Whether a request is computed here, in one go with others, and nothing more is to be
        asked of the engine for it."""
        engine = self._engine
        return (
            engine.scheduler.whole
            and engine.pooler is not None
            and request.pooling is not None
            and request.pooling.task != "token_embed"
            and not request.asks
            and not request.progress
            and request.score_from == 1
            and request.prompt_skip < len(request.prompt_token_ids)
            and request.params == GREEDY
        )

    def add(self, request: Request, arrival: int) -> None:
        """Take a request that was checked, and that `take` lets in."""
        engine = self._engine
        salt = state_key(request.cache_salt)  # no setting alters what such models compute
        key = None if engine.known is None else key_of(request, salt)
        text = Text(request, arrival, salt, key, self._engine.clock())
        engine.scheduler.policy.add(text)
        self.waiting[request.request_id] = text
        engine.ledger.prompt_tokens += text.remaining_prefill

    def abort(self, request_id: str) -> list[Delta]:
        """Give up a text that waits."""
        text = self.waiting.pop(request_id)
        self._engine.scheduler.policy.remove(text)
        if text is self._first:
            self._first = None
        bill = Ledger(prompt_tokens=text.remaining_prefill)
        bill.queue_s = self._engine.clock() - text.arrival_s
        self._engine.ledger.queue_s += bill.queue_s
        return [Delta(request_id, 0, finish_reason="abort", finished=True, ledger=bill)]

    def drop_all(self) -> None:
        """Forget every text."""
        for request_id in list(self.waiting):
            self.abort(request_id)

    def step(self) -> list[Delta]:
        """Compute the texts whose turn it is; what is answered."""
        engine = self._engine
        policy, start_s = engine.scheduler.policy, engine.clock()
        texts = self._choose()
        if not texts:
            return []
        try:
            step, pages = self._build(texts)
            try:
                output = self._runner.run(step)
            finally:
                engine.state.drop(pages)
            answers = self._answers(texts, output.hidden[self._layer])
            for text in texts:
                text.computed = text.remaining_prefill
        finally:
            for text in texts:
                policy.end(text)
        engine.scheduler.steps += 1
        return self._tell(texts, answers, start_s)

    # -- inside --------------------------------------------------------------------------------

    @property
    def _pooler(self) -> Pooler:
        pooler = self._engine.pooler
        assert pooler is not None, "only such models take these requests"
        return pooler

    @property
    def _layer(self) -> int:
        layer = self._engine.hidden_layer
        assert layer is not None, "a model that pools has one"
        return layer

    def _choose(self) -> list[Text]:
        """The texts of the next step, which run from now on: in the policy's order, as far as there
        are rows, seats and pages."""
        scheduler, state = self._engine.scheduler, self._engine.state
        policy, tokens = scheduler.policy, state.page_tokens
        rows, seats, pages = scheduler.most_rows, scheduler.free_seats, min(state.free_pages())
        chosen: list[Text] = []
        first, self._first = self._first, None

        def fits(candidate: Candidate) -> bool:
            if not isinstance(candidate, Text) or candidate is first:
                return False
            need = candidate.remaining_prefill
            if need <= rows and -(-need // tokens) <= pages:
                return True
            if self._first is None:
                self._first = candidate
            return False

        def in_turn() -> Iterator[Text]:
            if first is not None:
                yield first
            for candidate in policy.order(fits, _never, False):
                yield cast(Text, candidate)

        if seats < 1 or (first is not None and -(-first.remaining_prefill // tokens) > pages):
            self._first = first  # sequences have what it needs, and give it back
            return []
        for text in in_turn():
            chosen.append(text)
            policy.begin(text)
            need = text.remaining_prefill
            rows, pages, seats = rows - need, pages - -(-need // tokens), seats - 1
            if not (rows and pages and seats):
                break
        for text in chosen:
            policy.remove(text)
            del self.waiting[text.request.request_id]
        return chosen

    def _build(self, texts: list[Text]) -> tuple[Step, list[Ints]]:
        """The step that computes texts, and the pages of each group that it writes to."""
        engine, state = self._engine, self._engine.state
        counts = np.array([text.remaining_prefill for text in texts], np.int32)
        needs = -(-counts // state.page_tokens)
        starts = np.zeros(len(texts) + 1, np.int32)
        np.cumsum(needs, out=starts[1:])
        pages = state.take([int(starts[-1])] * len(state.groups))
        assert pages is not None, "no more were chosen than there are pages for"
        rows = chains(np.zeros(len(texts), np.int32), counts)
        step = build_step(
            np.concatenate([text.prompt for text in texts]),
            rows.places,
            rows.owner,
            tuple(Tables(each, starts) for each in pages),
            state.page_tokens,
        )
        if engine.second_texts:
            for text, row in zip(texts, rows.first_rows.tolist(), strict=True):
                second = text.request.second_text_at
                if second is not None:
                    step.positions[row + second : row + text.remaining_prefill] += (
                        engine.second_texts
                    )
        step.wants_hidden[self._layer] = self._pooler.wanted(rows.first_rows, counts)
        return step, pages

    def _answers(self, texts: list[Text], hidden: Floats) -> list[bytes]:
        """What is answered of each text, of the hidden states that were wanted."""
        known, pooler = self._engine.known, self._pooler
        counts = [text.remaining_prefill for text in texts]
        found = pooler.gathered(hidden, counts, [text.request.prompt_skip for text in texts])
        answers: list[bytes] = []
        for params, alike in itertools.groupby(texts, lambda text: text.request.pooling):
            assert params is not None, "else it is none of these texts"
            done, count = len(answers), len(list(alike))
            answers += map(encoded, pooler.answers(found[done : done + count], params))
        if known is not None:
            for text, pooled in zip(texts, found, strict=True):
                assert text.key is not None, "it was made with the text"
                known.put(text.key, pooled.copy())
        return answers

    def _tell(self, texts: list[Text], answers: list[bytes], start_s: float) -> list[Delta]:
        """The last deltas of texts, with their bills, which are booked in the engine's ledger too:
        the same figures as those of sequences."""
        cost, now_s = self._engine.cost, self._engine.clock()
        counts = [text.remaining_prefill for text in texts]
        weight_bytes = cost.weight_bytes(sum(counts), 0)
        total = Ledger()
        deltas = []
        for text, answer, share in zip(texts, answers, divide(weight_bytes, counts), strict=True):
            rows = text.remaining_prefill
            each = self._cost(rows)
            shared_bytes = each.alone_bytes - share
            bill = Ledger(
                prompt_tokens=rows,
                prompt_tokens_computed=rows,
                rows=rows,
                flops=each.flops,
                weight_bytes=share,
                state_read_bytes=each.read_bytes,
                state_written_bytes=each.written_bytes,
                queue_s=start_s - text.arrival_s,
                prefill_s=now_s - start_s,
                saved={BATCHING: Saving(bytes=shared_bytes)} if shared_bytes > 0 else {},
            )
            total.add(bill)
            deltas.append(
                Delta(
                    text.request.request_id,
                    0,
                    finish_reason="stop",
                    finished=True,
                    ledger=bill,
                    pooled=answer,
                )
            )
        total.prompt_tokens = 0  # which were booked when the texts came
        self._engine.ledger.add(total)
        return deltas

    def _cost(self, rows: int) -> Cost:
        """What a text of so many tokens costs."""
        found = self._costs.get(rows)
        if found is None:
            cost = self._engine.cost
            found = self._costs[rows] = Cost(
                cost.row_flops(1, rows, 0),
                cost.state_read_bytes(1, rows),
                cost.state_written_bytes(rows),
                cost.weight_bytes(rows, 0),
            )
        return found


def _never(candidate: Candidate) -> int:
    """No text waits for what another computes."""
    return 0
