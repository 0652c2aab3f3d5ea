"""The engine: requests in, tokens out, one step at a time.

It knows sequences, steps and seams; it knows no technique by name and nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from ockham.cache.state import View
from ockham.cache.store.stats import TierStats
from ockham.core.clock import Clock
from ockham.core.config import EngineConfig
from ockham.core.ledger import Ledger
from ockham.core.seams import GONE, ApproximateReuse, Reuse, SearchState
from ockham.core.step import Ints
from ockham.engine import billing
from ockham.engine.assemble import Assembly, Load, load_with_metadata
from ockham.engine.batch import build, note_choices, note_deep, note_spared
from ockham.engine.companions import companions_of
from ockham.engine.endings import Endings
from ockham.engine.harvest import Harvest
from ockham.engine.messages import Delta, Request, Stats
from ockham.engine.observing import deal, deal_newest
from ockham.engine.preparing import NOTHING_PREPARED, Preparation, Prepared
from ockham.engine.requests import Requests
from ockham.engine.runner.attach import Hook
from ockham.engine.runner.decoding import Decoding
from ockham.engine.runner.runner import Runner
from ockham.engine.searching import Searching
from ockham.engine.sequence import Sequence
from ockham.engine.slow_grammars import SlowGrammars
from ockham.engine.speculation.tree import Tree
from ockham.engine.texts import Texts

WAIT_S = 0.05
"""The longest that a step with nothing to do sleeps before the caller may look around."""
_PROMPTS_SHARE = 8
"""Of the room that is left beside the running sequences' rows, drafts get one part in so many while
prompts need it too."""


@dataclass(slots=True)
class Done:
    """What an iteration gave. If its step did nothing but decode, `rows` are those of `sequences`
    sequences."""

    deltas: list[Delta]
    sequences: int = 0
    rows: int = 0


class Engine(Assembly):
    """One model, its state, and the requests that it is serving.

    Not thread-safe: one thread calls `add`, `abort` and `step`. Raises ModelError, DoesNotFit or
    ConfigError if it cannot be built; `progress` is told in words what is being loaded. A
    simulation brings its `clock`, and a `load` that reads no weights.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        progress: Callable[[str], None] | None = None,
        clock: Clock = time.monotonic,
        load: Load = load_with_metadata,
    ) -> None:
        super().__init__(config, progress=progress, clock=clock, load=load)
        self.companions = companions_of(
            config,
            Engine,
            self.book_companion,
            self.model.description,
            self.target(self.vocabulary),
            self.tokenizer,
        )
        self.runner = Runner(self)
        self.endings = Endings(self, self.runner)
        self.slow_grammars = SlowGrammars(self, self.endings)
        self.texts = Texts(self, self.runner)
        self._texts_ran = False
        """Whether the latest step was one of texts: with other work they take turns."""
        self.requests = Requests(self, self.runner, self.slow_grammars, self.texts)
        self.harvest = Harvest(self, self.runner, self.endings, self.slow_grammars)
        self.searching = Searching(
            self, self.runner, self.endings, self.slow_grammars, self.harvest
        )

    # -- requests ------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.groups or self.texts.waiting or self.answered)

    def prepare(self, request: Request) -> Preparation | None:
        """Make ready what a request needs, for `add`; None if it needs nothing. Raises
        InvalidRequest, as the result does, if it can never be served. A request that is given up
        before `add` must be released."""
        return self.requests.prepare(request)

    def add(self, request: Request, prepared: Prepared = NOTHING_PREPARED) -> None:
        """Take a request, with what was made ready for it (see `prepare`). Raises InvalidRequest,
        before any work, if it can never be served."""
        self.requests.add(request, prepared)

    def take(self, request: Request, search: SearchState | None = None) -> None:
        """`prepare`, wait for what that gives, and `add`: for callers that serve nobody else, and
        that may bring the search that answers the request."""
        prepared = self.requests.prepare_now(request)
        if search is not None:
            prepared = msgspec.structs.replace(prepared, search=search)
        self.add(request, prepared)

    def export_request(self, request_id: str) -> bytes:
        """Take a request out, between two steps, for `import_request` of another engine. Raises
        InvalidRequest if there is none, or it cannot be moved."""
        return self.requests.export(request_id)

    def import_request(self, data: bytes) -> str:
        """Go on with a request that another engine of the same numerics id exported; its id. Raises
        InvalidRequest, and changes nothing, if it cannot go on here to the same bits."""
        return self.requests.import_(data)

    def draw_seed(self) -> int:
        """The seed of the next request that brings none of its own."""
        return self.requests.draw_seed()

    def abort(self, request_id: str) -> list[Delta]:
        """Give up a request and free its state. Ids that are not running are ignored."""
        if request_id in self.texts.waiting:
            return self.texts.abort(request_id)
        return self.endings.abort(request_id)

    def end_thought(self, request_id: str) -> None:
        """Let the thoughts of a request's choices end with their next tokens. Raises
        InvalidRequest if there is no such request, or none of its choices thinks now."""
        self.requests.end_thought(request_id)

    def drop_all(self) -> None:
        """Take every request out, after a step that failed: what it left half done is not gone on
        with, and all pages are free again or kept by what keeps them."""
        self.endings.drop_all()
        self.texts.drop_all()

    def discard(self, request: Request, tokens: Ints, start: int) -> None:
        """Nobody will use the state of a request's `tokens` from cell `start` on again: it may go
        first."""
        self.reuse.hint(tokens, self.techniques.key(request), GONE, start)

    def attach(self, breakpoint_name: str, hook: Hook) -> None:
        """Call `hook(run)` at a breakpoint of the program in every step."""
        self.attachments.add(breakpoint_name, hook)

    # -- the loop ------------------------------------------------------------------------------

    def step(self) -> list[Delta]:
        """One iteration: draft, schedule, run, bill, sample, collect; and search."""
        self.companions.step()
        answered = self.answered.copy()
        self.answered.clear()
        if self.texts.waiting and (not self.groups or not self._texts_ran):
            self._texts_ran = True
            return [*answered, *self.texts.step()]
        self._texts_ran = False
        if answered and not self.groups:
            return answered
        deltas = self._iterate_drafting()
        deltas = self.searching.after(deltas) if self.searched else deltas
        return [*answered, *deltas] if answered else deltas

    def _iterate_drafting(self) -> list[Delta]:
        """An iteration with whatever drafts are worth it."""
        if self.attachments or self.speculation.rests(self.scheduler.running):
            return self._iterate({}).deltas
        began = self.clock()
        done = self._iterate(self._draft())
        if done.rows:
            tokens = sum([len(delta.token_ids) for delta in done.deltas])
            seconds = self.clock() - began
            ended = any(delta.finish_reason is not None for delta in done.deltas)
            self.speculation.observe(done.sequences, done.rows, tokens, seconds, ended)
        else:
            self.speculation.tempo.interrupt()
        return done.deltas

    def _draft(self) -> dict[Sequence, Tree]:
        """What the running sequences should verify in the next step."""
        scheduler = self.scheduler
        decoding = [each for each in scheduler.running if each.decoding and each.ready]
        room = min(scheduler.most_rows, scheduler.most_logits) - len(decoding)
        if scheduler.waiting or len(decoding) < len(scheduler.running):
            room //= _PROMPTS_SHARE  # the rest is for prompts
        trees = self.speculation.plan(decoding, room) if decoding else None
        if trees is None:
            return {}
        return {s: tree for s, tree in zip(decoding, trees, strict=True) if tree is not None}

    def _iterate(self, drafts: Mapping[Sequence, Tree]) -> Done:
        """A step that goes on with a kept decoding, or else is planned."""
        if drafts:
            self.runner.forget_decoding()
        elif (decoding := self.runner.go_on()) is not None:
            return self._decode(decoding)
        return self._plan_step(drafts)

    def _decode(self, decoding: Decoding) -> Done:
        """One more row for sequences that do nothing but decode."""
        runner = self.runner
        self.scheduler.go_on(decoding.chunks)
        output = runner.run(decoding.step)
        tokens = decoding.tokens(output.argmax, runner.sample(output, decoding.draws))
        if decoding.watches:
            deal(decoding.watches, decoding.step, output)
            deal_newest(decoding.watches, {}, decoding.step, output)
        if output.left_out:
            decoding.note_choices(output)
        if output.spared.size:
            decoding.spared.append(output.spared)
        deep = output.deep if output.deep.size else None
        decoding.advance(tokens, deep)
        self.scheduler.commit(decoding.chunks, deep)
        deltas = self.harvest.decoded(decoding.sequences, tokens)
        return Done(deltas, len(tokens), len(tokens))

    def _plan_step(self, drafts: Mapping[Sequence, Tree]) -> Done:
        """A step of any kind."""
        if ended := self.slow_grammars.settle():
            return Done(ended)
        chunks = self.scheduler.schedule(drafts)
        if not chunks:
            if not self.texts.waiting:
                self._wait()
            return Done([])
        now = self.clock()
        for chunk in chunks:
            if chunk.sequence.start_s is None:
                chunk.sequence.start_s = now
        speculation = self.speculation
        speculation.streams.meet(chunk.sequence for chunk in chunks)
        batch = build(
            chunks,
            self.state,
            self.sublayers,
            speculation.marks,
            speculation.observers,
            hidden_layer=self.hidden_layer,
            second_texts=self.second_texts,
            recall_every=self.config.recall_every,
        )
        before_s = self.backend_s
        output = self.runner.run(batch.step)
        self.pace.note(batch.parts, self.backend_s - before_s)
        if batch.watches:
            deal(batch.watches, batch.step, output)
        if output.left_out:
            note_choices(batch, output, self.cost)
        if output.spared.size:
            note_spared(batch, output)
        if output.deep.size:
            note_deep(batch, output, self.passes, self.state)
        billing.book_step(batch.parts, self.cost, self.ledger)
        if output.recall:
            billing.book_recall(batch.parts, batch.step, output, self.state, self.ledger)
        self.scheduler.commit(chunks, output.deep if output.deep.size else None)
        decodes = all(chunk.kept == 1 for chunk in chunks)
        deltas = self.harvest.collect(batch, output)
        return Done(deltas, len(chunks), batch.step.rows if decodes else 0)

    def _wait(self) -> None:
        """Nothing can run: sleep until something may."""
        if self.companions.busy or (self.searched and self.searching.unblock()):
            return
        if self.slow_grammars.wait(WAIT_S) or (self.searched and self.searching.wait(WAIT_S)):
            return
        self.reuse.wait(WAIT_S)

    # -- what there is to see ------------------------------------------------------------------

    @property
    def total(self) -> Ledger:
        """What all steps so far have cost."""
        self.runner.settle()
        return self.ledger

    @property
    def backend_s(self) -> float:
        """Seconds in the backend's operations; the rest of a step is scheduling and bookkeeping."""
        return self.runner.backend_s

    def stats(self) -> Stats:
        return Stats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self.texts.waiting),
            steps=self.scheduler.steps,
            preemptions=self.scheduler.preemptions,
            # What could be evicted is known only about: pages that two sequences computed alike
            # may count twice.
            pages_used=max(0, self.state.pages_used - sum(self.scheduler.evictable())),
            pages_total=self.state.pages_total,
            ledger=self.total,
            drafts=self.speculation.stats(),
            tiers=TierStats() if self.tiers is None else self.tiers.stats(),
        )

    def check_integrity(self) -> None:
        """Raise OckhamError unless every page is held by a running sequence, kept or free."""
        views: list[View] = [s.view for s in self.scheduler.running if s.view is not None]
        every: list[Reuse | ApproximateReuse] = [self.reuse, *self.approximate.values()]
        held = [each.held() for each in every]
        kept = [np.concatenate(pages) for pages in zip(*filter(None, held), strict=True)]
        self.state.check_integrity(views, kept)
