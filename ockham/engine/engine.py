"""The engine: requests in, tokens out, one step at a time.

It knows sequences, steps and seams; it knows no technique by name and nothing of HTTP.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ockham.cache.state import State, View
from ockham.cache.store.stats import TierStats
from ockham.core.config import EngineConfig
from ockham.core.errors import FAULT, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.outputs import Logprob, PositionLogprobs
from ockham.core.registry import find
from ockham.core.seams import (
    GONE,
    ApproximateReuse,
    Drafter,
    JointDrafter,
    LearningDrafter,
    Reuse,
    Search,
    SearchState,
    SelfDrafter,
    Target,
)
from ockham.core.speculative import SpeculativeConfig, parse
from ockham.core.step import Floats, Ints, Step, StepOutput
from ockham.engine import billing, moving
from ockham.engine.attach import Attachments, Hook
from ockham.engine.batch import Part, Walk, build
from ockham.engine.cache_report import CacheKeeper
from ockham.engine.chosen import choose_reuses, make_drafters
from ockham.engine.decoding import Decoding
from ockham.engine.drafts import ROOT, Tree
from ockham.engine.limits import Limits, context_limit
from ockham.engine.messages import HINTS, Delta, Request, Stats, merged
from ockham.engine.own_model import OwnModel
from ockham.engine.scheduler import Scheduler
from ockham.engine.sequence import Sequence, Status
from ockham.engine.small_model import SmallModel
from ockham.engine.speculation import Speculation
from ockham.engine.structured.compiler import Grammars
from ockham.engine.structured.grammar import Grammar
from ockham.engine.text import TextOutput
from ockham.engine.tiering import Pace, open_tiers
from ockham.kernels.sampling import Draw, Drawn
from ockham.model.costs import cost_of
from ockham.model.loading import LoadedModel, load_model
from ockham.model.tokenizer import Tokenizer, load_tokenizer

WAIT_S = 0.05
"""The longest that a step with nothing to do sleeps before the caller may look around."""
SCORED_LOGITS = 2_000_000
"""Logits of scored prompt rows in a step in which others decode: some 20 ms of looking at them."""
SCORED_ROWS = 128
"""And so many rows: what is found of each takes 0.1 ms more to be written down."""
_PROMPTS_SHARE = 8
"""Of the room that is left beside the running sequences' rows, drafts get one part in so many while
prompts need it too."""


class Engine:
    """One model, its state, and the requests that it is serving.

    Not thread-safe: one thread calls `add`, `abort` and `step`. Raises ModelError, DoesNotFit or
    ConfigError if it cannot be built; `progress` is told in words what is being loaded.
    """

    def __init__(
        self, config: EngineConfig, *, progress: Callable[[str], None] | None = None
    ) -> None:
        self.config = config
        seams = {
            seam: find(seam, name).cls()
            for seam, name in (
                ("policy", config.policy),
                ("keep", config.keep),
            )
        }
        self.reuse, self.approximate = choose_reuses(config)
        drafting = parse(config.speculative_config)
        drafters = make_drafters(drafting)
        loaded = load_model(config, progress, keep_metadata=True)
        self.model: LoadedModel = dataclasses.replace(loaded, metadata=None)
        self.tokenizer: Tokenizer | None = load_tokenizer(config, loaded.directory, loaded.metadata)
        del loaded
        for note in () if self.tokenizer is None else self.tokenizer.notes:
            (progress or (lambda _: None))(note)
        plan = self.model.plan
        self.max_model_len = plan.max_model_len
        self.context_limit = context_limit(config, plan, self.model.description)
        self.vocabulary = self.model.description.vocab_size
        planes = self.model.backend.allocate(self.model.layouts)
        self.executor = self.model.backend.bind(self.model.program, planes)
        self.state = State(planes, self.model.layouts, self.max_model_len, self.model.numerics_id)
        self.scheduler = Scheduler(
            self.state,
            seams["policy"],
            seams["keep"],
            self.reuse,
            self.approximate,
            most_rows=config.max_num_batched_tokens,
            most_sequences=config.max_num_seqs,
            most_logits=plan.logits_rows,
            most_scores=max(1, min(SCORED_ROWS, SCORED_LOGITS // self.vocabulary)),
        )
        self.grammars = Grammars(self._tokenizer_described, self.vocabulary)
        self.attachments = Attachments(self.model.program)
        self.on_scored: Callable[[str, Floats], None] | None = None
        """Given a request's id and the logits, (positions, vocabulary), that scored the next tokens
        of its prompt. They are valid until it returns."""
        self._total = Ledger()
        self._decoding: Decoding | None = None
        self._unsettled: set[Sequence] = set()
        """Sequences whose grammar has not yet said, since their latest token, what may follow."""
        self._walks: dict[Sequence, Walk] = {}
        """Of the step that is being collected, what its drafts have come to."""
        self._decoded_rows = 0
        """Rows of the latest step, if it did nothing but decode, and of how many sequences:"""
        self._decoding_sequences = 0
        self.backend_s = 0.0
        """Seconds in the backend's operations; the rest of a step is scheduling and bookkeeping."""
        self._cost = cost_of(self.model.program, self.model.layouts)
        self.own_model = OwnModel(
            self.model.program,
            self.executor,
            self.state,
            self.model.description.hidden_size,
            self.vocabulary,
            self.scheduler.reserve_draft,
            lambda: None if self.tokenizer is None else self.tokenizer.digest,
        )
        self.pace = Pace(self._cost)
        self.tiers = open_tiers(config, self.model, self.state, self.pace.seconds)
        self.speculation = self.make_speculation(drafting, drafters)
        closes = [self.speculation.save, *([self.tiers.close] if self.tiers else [])]
        self._closing = weakref.finalize(self, _close_all, os.getpid(), closes)
        self.reuse.attach(self.state, self._cost.attention_slope, self.tiers)
        layers = sorted(layer for group in self.model.layouts for layer in group.layers)
        for approximate in self.approximate.values():
            approximate.attach(self.state, self._cost.attention_slope, layers)
        self.scheduler.place_given = self._place_given
        self.scheduler.on_given = lambda sequence, stop: billing.book_given(
            sequence, stop, self._cost, self._total
        )
        self.scheduler.on_reused = lambda sequence, tokens, held: billing.book_reuse(
            sequence, tokens, held, self.reuse.name, self._cost, self._total
        )
        decode = None if self.tokenizer is None else self.tokenizer.decode
        self.cache = CacheKeeper(self.reuse, self.state, decode)
        """Shows and pins what the reuse holds."""
        self.eos_token_ids = self._end_tokens()
        """Tokens that end a sequence: those of the model's files and of its tokenizer."""
        self._eos = frozenset(self.eos_token_ids)
        self._limits = Limits(
            vocabulary=self.vocabulary,
            max_model_len=self.max_model_len,
            context_limit=self.context_limit,
            max_num_seqs=config.max_num_seqs,
            chunk=config.max_num_batched_tokens,
            state=self.state,
            has_tokenizer=lambda: self.tokenizer is not None,
            eos=self._eos,
            approximate=self.approximate,
        )
        self._searches: dict[str, Search] = {}
        self._requests: dict[str, list[Sequence]] = {}
        self._arrivals = itertools.count()
        self._seeds = random.Random(config.seed)

    def close(self) -> None:
        """Finish writing what goes to the disk and let others have its directory. Done by itself
        when the engine is no more; it must not be used afterwards."""
        self._closing()
        self.grammars.close()
        if self.tokenizer is not None:
            self.tokenizer.close()

    def _end_tokens(self) -> tuple[int, ...]:
        """A fine-tuned checkpoint often names its end of turn in the tokenizer's files alone."""
        named = None if self.tokenizer is None else self.tokenizer.eos_token_id
        more = () if named is None or named >= self.vocabulary else (named,)
        return tuple(dict.fromkeys([*self.model.eos_token_ids, *more]))

    def forked(self) -> None:
        """Make anew what a process lacks that was forked off the engine's: the threads that compile
        grammars. (The kernels' threads see to themselves.)"""
        self.grammars = Grammars(self._tokenizer_described, self.vocabulary)

    # -- requests ------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def prepare(self, request: Request) -> Future[Grammar] | None:
        """Compile what a request needs compiled, for `add`; None if nothing is. Raises
        InvalidRequest, as the future does, if it can never be served."""
        asked = request.params.structured_outputs
        if asked is None:
            return None
        self._check(request)
        return self.grammars.compile(asked, request.cache_salt)

    def add(self, request: Request, grammar: Grammar | None = None) -> None:
        """Take a request, with the grammar of its output if it asks for one (see `prepare`). Raises
        InvalidRequest, before any work, if it can never be served."""
        self._check(request)
        if grammar is None and request.params.structured_outputs is not None:
            raise ValueError("a request with structured outputs comes with what `prepare` gave")
        params = request.params
        seed = self.draw_seed() if params.seed is None else params.seed & (2**64 - 1)
        sequence = self._first(request, seed, grammar)
        if sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs *= request.score_from
        self.scheduler.add(sequence)  # the last that may fail: whatever counts comes after it
        self._requests[request.request_id] = [sequence]
        for book in (sequence.ledger, self._total):
            book.prompt_tokens += sequence.prompt_tokens

    def take(self, request: Request) -> None:
        """`prepare`, wait for what that gives, and `add`: for callers that serve nobody else."""
        compiling = self.prepare(request)
        self.add(request, None if compiling is None else compiling.result())

    def _first(self, request: Request, seed: int, grammar: Grammar | None) -> Sequence:
        """The first choice of a request, before anything is done."""
        params, tokens = request.params, request.prompt_token_ids
        most = min(self.max_model_len, len(tokens) + (params.max_tokens or self.max_model_len))
        eos = frozenset() if params.ignore_eos else self._eos
        return Sequence(
            request.request_id,
            0,
            (next(self._arrivals), 0),
            list(tokens),
            params,
            seed=seed,
            most_tokens=len(tokens) if params.max_tokens == 0 else most,
            stop_ids=eos | frozenset(params.stop_token_ids or ()),
            bad_words=self._bad_words(params.bad_words or []),
            text=self._text(request),
            grammar=None if grammar is None else grammar.begin(eos),
            arrival_s=time.monotonic(),
            salt=request.cache_salt,
            tenant=request.tenant or request.cache_salt,
            priority=request.priority,
            approximation=request.approximation,
            hint=HINTS[request.cache_hint],
            patient=request.patient,
            orderly=request.orderly,
            search=self._search_of(request),
        )

    def _search_of(self, request: Request) -> SearchState | None:
        """What goes through all choices of a request together, if they are not one each."""
        params = request.params
        if params.search is None:
            return None
        if params.search not in self._searches:
            self._searches[params.search] = find("search", params.search).cls()
        prompt = np.array(request.prompt_token_ids, np.int32)
        stops = frozenset() if params.ignore_eos else self._eos
        stops |= frozenset(params.stop_token_ids or ())
        return self._searches[params.search].begin(params.n, prompt, request.cache_salt, stops)

    def _tokenizer_described(self) -> str:
        assert self.tokenizer is not None, "checked with the request"
        return self.tokenizer.described

    def export_request(self, request_id: str) -> bytes:
        """Take a request out, between two steps, for `import_request` of another engine. Its
        choices go on there as if they had never moved; what was said of them stays said.

        Raises InvalidRequest if there is none, or it cannot be moved.
        """
        group = self._requests.get(request_id)
        if group is None:
            raise InvalidRequest(f"there is no running request {request_id!r} to export.")
        if any(sequence.search is not None for sequence in group):
            raise InvalidRequest(
                "choices that are made together cannot be moved; let them end here."
            )
        self._settle()
        data = moving.pack(group, self.state, time.monotonic())
        for sequence in group:
            if sequence.status is not Status.FINISHED:
                self.speculation.forget(sequence)
                self.scheduler.finish(sequence)
        del self._requests[request_id]
        return data

    def import_request(self, data: bytes) -> str:
        """Go on with a request that another engine of the same numerics id exported; its id. Waits
        until the grammar of its output is compiled, if it has one.

        What finds no room in the pool is computed again. Raises InvalidRequest, and changes
        nothing, if it cannot go on here to the same bits.
        """
        moved = moving.unpack(data, self.state.numerics_id)
        request, now_s = moved.request, time.monotonic()
        self._check(request)
        self._limits.check_moved(moved)
        compiling = self.prepare(request)
        grammar = None if compiling is None else compiling.result()
        first = self._first(request, moved.seed, grammar)
        first.most_tokens, first.stop_ids = moved.most_tokens, frozenset(moved.stop_ids)
        group = [first, *(first.choice(c.index, self._text(request)) for c in moved.choices[1:])]
        views = moving.import_states(moved, self.state)
        self._requests[request.request_id] = group
        for sequence, choice, view in zip(group, moved.choices, views, strict=True):
            moving.restore(sequence, choice, moved.age_s, now_s)
            if sequence.grammar is not None and sequence.grammar.slow:
                self._leave_unsettled(sequence)
            if not choice.finished:
                self.scheduler.take_in(sequence, view)
        return request.request_id

    def draw_seed(self) -> int:
        """The seed of the next request that brings none of its own."""
        return self._seeds.getrandbits(64)

    def abort(self, request_id: str) -> list[Delta]:
        """Give up a request and free its state. Ids that are not running are ignored."""
        deltas: list[Delta] = []
        for sequence in list(self._requests.get(request_id, ())):
            if sequence.status is not Status.FINISHED:
                delta = Delta(request_id, sequence.index)
                deltas.append(self._guarded(sequence, self._end, sequence, delta, "abort") or delta)
        if deltas and not deltas[-1].finished:  # choices that were still to be forked
            self._close(request_id, deltas[-1])
        return deltas

    def drop_all(self) -> None:
        """Take every request out, after a step that failed: what it left half done is not gone on
        with, and all pages are free again or kept by what keeps them."""
        self._forget_decoding()
        self._walks.clear()
        groups, self._requests = self._requests, {}
        left = [*self.scheduler.running, *self.scheduler.waiting]
        for sequence in dict.fromkeys([*itertools.chain(*groups.values()), *left]):
            self._drop(sequence)

    def discard(self, tokens: Ints, salt: str, start: int) -> None:
        """Nobody will use the state of `tokens` from cell `start` on again: it may go first."""
        self.reuse.hint(tokens, salt, GONE, start)

    def attach(self, breakpoint_name: str, hook: Hook) -> None:
        """Call `hook(run)` at a breakpoint of the program in every step."""
        self.attachments.add(breakpoint_name, hook)

    def make_speculation(
        self,
        config: SpeculativeConfig,
        drafters: list[Drafter] | None = None,
        vocabulary: int | None = None,
    ) -> Speculation:
        """A controller for this engine, and its drafters unless they are given. `vocabulary` is
        how many tokens its texts have, where they are replayed. Raises ConfigError or DoesNotFit
        for a draft model that cannot draft for this one, or learned drafts of other tokens."""
        drafters = make_drafters(config) if drafters is None else drafters
        target = Target(
            vocabulary=vocabulary or self.vocabulary,
            max_model_len=self.max_model_len,
            sequences=self.config.max_num_seqs,
            cells=max(layout.pages * layout.page_tokens for layout in self.state.groups),
        )
        for drafter in drafters:
            if isinstance(drafter, JointDrafter):
                drafter.attach(
                    lambda name, longest=None: SmallModel(name, target, longest, self.model)
                )
            if isinstance(drafter, SelfDrafter):
                drafter.attach_model(self.own_model)
            if isinstance(drafter, LearningDrafter):
                drafter.recall(self._vocabulary_digest)
        return Speculation(config, drafters)

    # -- the loop ------------------------------------------------------------------------------

    def step(self) -> list[Delta]:
        """One iteration: draft, schedule, run, bill, sample, collect."""
        if self.attachments or self.speculation.rests(self.scheduler.running):
            decoding = self._go_on()
            return self._plan_step() if decoding is None else self._decode(decoding)
        began = time.perf_counter()
        drafts = self._draft()
        if drafts:
            self._forget_decoding()
            deltas = self._plan_step(drafts)
        else:
            if self.own_model.wrote:  # its pages may have changed
                self._forget_decoding()
            decoding = self._go_on()
            deltas = self._plan_step() if decoding is None else self._decode(decoding)
        if self._decoded_rows:
            tokens = sum([len(delta.token_ids) for delta in deltas])
            seconds = time.perf_counter() - began
            self.speculation.observe(self._decoding_sequences, self._decoded_rows, tokens, seconds)
        return deltas

    def _forget_decoding(self) -> None:
        self._settle()
        self._decoding, self.own_model.wrote = None, False

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

    def _plan_step(self, drafts: dict[Sequence, Tree] | None = None) -> list[Delta]:
        """A step of any kind."""
        self._decoded_rows = 0
        if ended := self._settle_grammars():
            return ended
        chunks = self.scheduler.schedule(drafts)
        if not chunks:
            self._wait()
            return []
        if all(chunk.kept == 1 for chunk in chunks):
            self._decoded_rows = sum(chunk.rows for chunk in chunks)
            self._decoding_sequences = len(chunks)
        now = time.monotonic()
        for chunk in chunks:
            if chunk.sequence.start_s is None:
                chunk.sequence.start_s = now
        batch = build(chunks, self.state, self.speculation.marks)
        before_s = self.backend_s
        output = self._run(batch.step)
        self.pace.note(batch.parts, self.backend_s - before_s)
        for part in batch.parts:
            self._observe(part, output)
        self._tell_likely(batch.step, batch.parts, output)
        billing.book_step(batch.parts, self._cost, self._total)
        self.scheduler.commit(chunks)
        return self._collect(batch.step, batch.parts, output)

    def _leave_unsettled(self, sequence: Sequence) -> None:
        """What its grammar says of its latest token is found out beside the steps."""
        sequence.unsettled = True
        self._unsettled.add(sequence)

    def _settle_grammars(self) -> list[Delta]:
        """End the sequences of which it has become known, since their latest token, that nothing
        more may come, and those whose grammar takes too long to say."""
        deltas = []
        late = [s for s in self.scheduler.running if s.grammar is not None and s.grammar.late]
        for sequence in {*self._unsettled, *late}:
            grammar, asked = sequence.grammar, sequence.params.structured_outputs
            if sequence.status is Status.FINISHED or grammar is None or asked is None:
                self._unsettled.discard(sequence)
                continue
            delta = Delta(sequence.request_id, sequence.index)
            if grammar.late:
                reason = grammar.give_up()
                self.grammars.refuse(asked, reason)
                deltas.append(self._end(sequence, delta, "error", reason))
            elif sequence.unsettled and grammar.ready:
                self._unsettled.discard(sequence)
                sequence.unsettled = False
                if grammar.complete:
                    deltas.append(self._end(sequence, delta, "stop"))
                elif len(sequence.tokens) >= sequence.most_tokens:
                    deltas.append(self._end(sequence, delta, "length"))
        return deltas

    def _wait(self) -> None:
        """Nothing can run: sleep until something may."""
        for sequence in self.scheduler.running:
            if sequence.grammar is not None and not sequence.grammar.ready:
                sequence.grammar.wait(WAIT_S)
                return
        self.reuse.wait(WAIT_S)

    def _go_on(self) -> Decoding | None:
        """The running sequences as a decoding ready for its next step, if that is all there is to
        do and nothing is attached."""
        running, decoding = self.scheduler.running, self._decoding
        possible = self.scheduler.decodes_only and not self.attachments
        if decoding is not None and not (
            possible and decoding.sequences == running and decoding.reserve()
        ):
            self._settle()
            decoding = None
        if decoding is None and possible:
            decoding = Decoding.of(running, self.state)
        self._decoding = decoding
        return decoding

    def _decode(self, decoding: Decoding) -> list[Delta]:
        """One more row for sequences that do nothing but decode."""
        self._decoded_rows = self._decoding_sequences = len(decoding.chunks)
        self.scheduler.go_on(decoding.chunks)
        output = self._run(decoding.step)
        tokens = decoding.tokens(output.argmax, self._sample(output, decoding.draws))
        self._tell_likely(decoding.step, decoding.parts, output)
        self._tell_where(decoding.step, decoding.parts, {}, output)
        decoding.advance(tokens)
        self.scheduler.commit(decoding.chunks)
        appended = zip(decoding.sequences, tokens, strict=True)
        deltas = [self._guarded(each[0], self._append, *each) for each in appended]
        return [delta for delta in deltas if delta is not None]

    def _settle(self) -> None:
        """Put into the ledgers what is still to be billed."""
        if self._decoding is not None:
            billing.book_decoding(self._decoding, self._cost, self._total)

    def _run(self, step: Step) -> StepOutput:
        step.candidates = self.speculation.candidates
        step.wants_hidden = {}
        if self.speculation.wants_hidden_states:
            rows = np.concatenate((step.wants_logits, step.wants_argmax))
            step.wants_hidden = {self.own_model.layers - 1: rows}
        with self._in_backend():
            run = self.executor.begin(step)
            for start, stop, hook in self.attachments.ranges():
                self.executor.run(run, start, stop)
                if hook is not None:
                    hook(run)
            return self.executor.finish(run)

    def _place_given(self, sequence: Sequence, stop: int) -> None:
        """Copy what a sequence is given, up to the cell `stop`, into its reserved cells."""
        assert sequence.view is not None, "a running sequence has a view"
        assert sequence.splice is not None, "only a splice gives"
        given = sequence.splice.given(sequence.computed, stop)
        if not len(given.cells):
            return
        with self._in_backend():
            for group, source in enumerate(given.slots):
                target = self.state.slots(sequence.view, group, given.cells)
                self.executor.reposition(group, source, target, given.shifts)
        billing.book_copies(sequence, len(given.cells), self._cost, self._total)

    def _observe(self, part: Part, output: StepOutput) -> None:
        """Tell a splice of the attention that it wanted to know."""
        if not len(part.scored) or part.sequence.splice is None:
            return
        places = slice(part.first_score, part.first_score + len(part.scored))
        layers = part.sequence.splice.layers
        part.sequence.splice.observe(part.scored, [output.scores[n][places] for n in layers])

    def _tell_likely(self, step: Step, parts: list[Part], output: StepOutput) -> None:
        """Tell drafters which tokens the rows of a step found likely, if they want to know."""
        if not output.candidates.size:
            return
        wanting = np.concatenate((step.wants_logits, step.wants_argmax))
        tokens, candidates = step.ids[wanting], output.candidates
        for part in parts:
            if part.samples:
                rows = part.sampling_rows(len(step.wants_logits))
                own, likely = tokens[rows], candidates[rows]
                if step.embedding_of is not None:  # what follows a mark follows no token
                    read = step.embedding_of[wanting[rows]] < 0
                    own, likely = own[read], np.ascontiguousarray(likely[read])
                self.speculation.tell(part.sequence, own, likely)

    def _tell_where(
        self, step: Step, parts: list[Part], reached: dict[Sequence, int], output: StepOutput
    ) -> None:
        """Tell drafters how the rows stand after which the sequences' latest tokens came: that of
        each part's own last token, or of what was `reached` of its draft."""
        hidden = output.hidden.get(self.own_model.layers - 1)
        candidates = output.candidates if self.speculation.marks is not None else None
        if hidden is None and (candidates is None or not candidates.size):
            return
        for part in parts:
            if not part.samples or not part.head_rows or part.sequence.status is Status.FINISHED:
                continue
            rows = part.sampling_rows(len(step.wants_logits))
            at = reached.get(part.sequence, ROOT)
            stands = None if hidden is None else hidden[rows.start + 1 + at]
            guessed = None
            if part.draft is not None and candidates is not None:
                guessed = candidates[[rows.start + 1 + n for n in part.draft.marks_after(at)]]
            self.speculation.tell_where(part.sequence, stands, guessed)

    def _sample(self, output: StepOutput, draws: list[Draw]) -> list[Drawn]:
        if not draws:
            return []
        with self._in_backend():
            return self.executor.sample(output.logits, draws)

    def _collect(self, step: Step, parts: list[Part], output: StepOutput) -> list[Delta]:
        """Sample where a sequence is due, and turn what the step gave into deltas."""
        deltas: list[Delta | None] = [
            self._guarded(part.sequence, self._score_prompt, part, output.logits) for part in parts
        ]
        sampled = [p for p in parts if p.samples and p.sequence.status is not Status.FINISHED]
        for part in sampled:
            if part.sequence.search is not None:
                try:
                    deltas += self._search_on(part.sequence, output.logits[part.logits[-1]])
                except Exception as error:
                    deltas.append(self._fault(part.sequence, error))
        due = [
            (choice, part, ROOT)
            for part in sampled
            if part.sequence.search is None
            for choice in self._choices(part.sequence)
        ]
        self._walks = {p.sequence: Walk(p, p.draft) for p in parts if p.draft is not None}
        ends: dict[Sequence, int] = {}
        while due:
            due, draws = self._draws(due, deltas)
            drawn = iter(self._sample(output, [draw for draw in draws if draw is not None]))
            reached: list[tuple[Sequence, Part, int]] = []
            for (sequence, part, at), draw in zip(due, draws, strict=True):
                one = None if draw is None else next(drawn)
                if sequence.status is Status.FINISHED:
                    continue  # with another choice of its request, which met a fault
                try:
                    token, entry = self._token(output, sequence, part, at, one)
                except Exception as error:
                    deltas.append(self._fault(sequence, error))
                    continue
                walk = self._walks.get(sequence)
                ends[sequence] = at
                if walk is None or token is None:
                    deltas.append(self._guarded(sequence, self._push, sequence, token, entry))
                    continue
                following = walk.follow(at, token)
                delta = self._guarded(sequence, self._push, sequence, token, entry)
                running = sequence.status is Status.RUNNING
                if following is not None and running and not sequence.ready:
                    walk.accepted.discard(following)  # its row is computed again, some steps later
                    following = None
                if delta is not None and delta.token_ids:
                    delta.drafted = [following is not None]
                if following is not None and running:
                    self.scheduler.accept(sequence, part.start + 1 + following)
                    reached.append((sequence, part, following))
                deltas.append(delta)
            due = reached
        for sequence in list(self._walks):
            self._end_walk(sequence)
        self._tell_where(step, parts, ends, output)
        return merged([delta for delta in deltas if delta is not None])

    def _draws(
        self, due: list[tuple[Sequence, Part, int]], deltas: list[Delta | None]
    ) -> tuple[list[tuple[Sequence, Part, int]], list[Draw | None]]:
        """What is due, and what the sampler needs for each: None where the token is known without
        it. What meets a fault here is not due any more."""
        still: list[tuple[Sequence, Part, int]] = []
        draws: list[Draw | None] = []
        for sequence, part, at in due:
            try:
                known = part.argmax is not None or sequence.forced is not None
                draws.append(None if known else sequence.draw(part.logits_row(at)))
            except Exception as error:
                if sequence.status is not Status.FINISHED:
                    deltas.append(self._fault(sequence, error))
            else:
                still.append((sequence, part, at))
        return still, draws

    def _search_on(self, sequence: Sequence, logits: Floats) -> list[Delta]:
        """One more token of each of a search's completions; all of them, when it is over."""
        assert sequence.search is not None, "only a search goes on"
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
        following = sequence.search.take(logits)
        if following and len(sequence.tokens) + 1 < sequence.most_tokens:
            tokens, weights = zip(*following, strict=True)
            sequence.push(tokens[0])
            embedded = self.own_model.embed(tokens)
            sequence.inputs.append(np.array(weights, np.float32) @ embedded)
            return []
        billing.book_search(sequence, self._cost, self._total)
        del sequence.tokens[sequence.prompt_tokens :]
        first, *others = sequence.search.drafts
        group = self._requests[sequence.request_id]
        for index in range(1, sequence.params.n):
            text = None if sequence.text is None else sequence.text.fresh()
            group.append(sequence.choice(index, text))
            group[-1].status = Status.APART
        every = zip(group, [first, *others], strict=True)
        return [delta for choice, said in every for delta in self._say(choice, said)]

    def _say(self, sequence: Sequence, tokens: list[int]) -> list[Delta]:
        """What comes of a choice that says these tokens, the last of which ends it."""
        deltas = []
        for token in tokens:
            deltas.append(self._push(sequence, token, None))
            if sequence.finish_reason is not None:
                break
        return deltas

    def _token(
        self,
        output: StepOutput,
        sequence: Sequence,
        part: Part,
        at: int,
        drawn: Drawn | None,
    ) -> tuple[int | None, PositionLogprobs | None]:
        """The token that follows at a place of a part, and its log probabilities if wanted. `drawn`
        is what the sampler gave, where it was asked."""
        argmax = part.argmax_row(at)
        if argmax is not None:
            return output.argmax[argmax], None
        if drawn is None:
            return sequence.forced, None
        token, row = drawn.token, part.logits_row(at)
        return token, self._logprobs(output.logits[row : row + 1], sequence, token)

    # -- faults --------------------------------------------------------------------------------

    def _guarded(
        self, sequence: Sequence, work: Callable[..., Delta | None], *args: Any
    ) -> Delta | None:
        """What some work on one sequence gives. A fault of it ends that request, and no other."""
        if sequence.status is Status.FINISHED:
            return None
        try:
            return work(*args)
        except Exception as error:
            return self._fault(sequence, error)

    def _fault(self, sequence: Sequence, error: Exception) -> Delta:
        """End a request over which something failed that concerns no other; its last delta."""
        traceback.print_exception(error)
        self._settle()
        bill = Ledger()
        for choice in self._requests.pop(sequence.request_id, [sequence]):
            bill.add(choice.ledger)
            self._drop(choice)
        return Delta(
            sequence.request_id,
            sequence.index,
            finish_reason="error",
            stop_reason=FAULT,
            finished=True,
            ledger=bill,
        )

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever was being done with it."""
        self._walks.pop(sequence, None)
        self.speculation.forget(sequence)
        self.scheduler.drop(sequence)
        sequence.finish_reason = "error"

    def _end_walk(self, sequence: Sequence) -> None:
        """Learn from what became of a sequence's draft, and book it."""
        walk = self._walks.pop(sequence, None)
        if walk is not None:
            self.speculation.learn(sequence, walk.tree, walk.followed)
            billing.book_draft(walk, self.speculation.names, self._cost, self._total)

    def _choices(self, sequence: Sequence) -> Iterator[Sequence]:
        """The sequence and, if its prompt has just been computed, its request's other choices."""
        yield sequence
        if not sequence.waits_for_fork:
            return
        group = self._requests[sequence.request_id]
        for index in range(1, sequence.params.n):
            text = sequence.text.fresh() if sequence.text is not None else None
            child = sequence.choice(index, text)
            self.scheduler.fork(sequence, child)
            billing.book_fork(child, self._cost, self._total)
            group.append(child)
            yield child

    # -- one sequence --------------------------------------------------------------------------

    def _push(self, sequence: Sequence, token: int | None, entry: PositionLogprobs | None) -> Delta:
        """Append a sampled token to its sequence and see whether that ends it."""
        if token is None:  # masks left nothing to choose
            delta = Delta(sequence.request_id, sequence.index)
            grammar = sequence.grammar
            error = None if grammar is None else grammar.error
            return self._end(sequence, delta, "error", error or "every token was masked")
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
        for book in (sequence.ledger, self._total):
            book.generated_tokens += 1
        if entry is not None:
            sequence.cumulative_logprob += entry[token].logprob
        return self._append(sequence, token, entry)

    def _append(
        self, sequence: Sequence, token: int, entry: PositionLogprobs | None = None
    ) -> Delta:
        """The delta of a token that is booked."""
        sequence.push(token)
        delta = Delta(sequence.request_id, sequence.index, [token])
        if entry is not None:
            delta.logprobs = [entry]
        stopped = token in sequence.stop_ids
        if sequence.text is not None and (
            not stopped or sequence.params.include_stop_str_in_output
        ):
            may_stop = sequence.generated >= sequence.params.min_tokens
            delta.text, stop = sequence.text.push(token, may_stop=may_stop)
            if stop is not None:
                return self._end(sequence, delta, "stop", stop)
        if stopped:
            by_user = token in (sequence.params.stop_token_ids or ())
            return self._end(sequence, delta, "stop", token if by_user else None)
        if sequence.grammar is not None:
            if sequence.grammar.slow:
                self._leave_unsettled(sequence)
                return delta
            if sequence.grammar.complete:
                return self._end(sequence, delta, "stop")
        if len(sequence.tokens) >= sequence.most_tokens:
            return self._end(sequence, delta, "length")
        return delta

    def _score_prompt(self, part: Part, logits: Floats) -> Delta | None:
        """Log probabilities of the prompt tokens that this chunk's rows predict."""
        sequence = part.sequence
        scored = sequence.prompt_logprobs
        if scored is not None and len(scored) < sequence.prompt_tokens:
            rows = part.logits[: len(part.logits) - part.samples]
            first = len(scored)
            targets = np.array(sequence.tokens[first : first + len(rows)], np.int32)
            top = sequence.params.prompt_logprobs or 0
            if self.on_scored is not None and len(rows):
                self.on_scored(sequence.request_id, logits[rows.start : rows.stop])
            scored.extend(self._entries(logits[rows.start : rows.stop], targets, top))
        if scored is not None and part.samples and not sequence.generated:
            # They come before the first token, also where there is nothing to say of any.
            return Delta(sequence.request_id, 0, prompt_logprobs=scored)
        if sequence.scores_only and sequence.remaining == 0:
            delta = Delta(sequence.request_id, 0, prompt_logprobs=scored)
            return self._end(sequence, delta, "length")
        return None

    def _end(
        self, sequence: Sequence, delta: Delta, reason: str, stop_reason: int | str | None = None
    ) -> Delta:
        """Finish a sequence, and its request with the last of its choices."""
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        if sequence.text is not None and not (reason == "stop" and isinstance(stop_reason, str)):
            rest, stop = sequence.text.finish()
            delta.text += rest
            if stop is not None and sequence.generated >= sequence.params.min_tokens:
                reason, sequence.stop_reason = "stop", stop
        delta.finish_reason, delta.stop_reason = reason, sequence.stop_reason
        self._end_walk(sequence)
        self.speculation.forget(sequence)
        self.scheduler.finish(sequence)
        group = self._requests[sequence.request_id]
        forked = len(group) == sequence.params.n
        if forked and all(s.status is Status.FINISHED for s in group):
            self._close(sequence.request_id, delta)
        return delta

    def _close(self, request_id: str, delta: Delta) -> None:
        """Put the request's bill on its last delta."""
        self._settle()
        group = self._requests.pop(request_id)
        bill = Ledger()
        for sequence in group:
            bill.add(sequence.ledger)
        first, now = group[0], time.monotonic()
        times = Ledger()
        start = first.start_s if first.start_s is not None else now
        token = first.first_token_s if first.first_token_s is not None else now
        times.queue_s = start - first.arrival_s
        times.prefill_s = max(0.0, token - start)
        times.decode_s = now - max(token, start)
        bill.add(times)
        self._total.add(times)
        delta.finished, delta.ledger = True, bill

    # -- log probabilities ---------------------------------------------------------------------

    def _logprobs(
        self, logits: Floats, sequence: Sequence, token: int | None
    ) -> PositionLogprobs | None:
        """The entry of a chosen token, of logits (1, vocabulary), if its sequence wants one."""
        if sequence.params.logprobs is None or token is None:
            return None
        targets = np.array([token], np.int32)
        return self._entries(logits, targets, sequence.params.logprobs)[0]

    def _entries(self, logits: Floats, targets: Ints, top: int) -> list[PositionLogprobs]:
        names = self.tokenizer.token_text if self.tokenizer is not None else lambda _: None
        with self._in_backend():
            found = self.executor.logprobs(logits, targets, top)
        return [
            {token: Logprob(value, rank, names(token)) for token, (value, rank) in entry.items()}
            for entry in found
        ]

    # -- checks --------------------------------------------------------------------------------

    @property
    def total(self) -> Ledger:
        """What all steps so far have cost."""
        self._settle()
        return self._total

    def stats(self) -> Stats:
        return Stats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
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

    def _check(self, request: Request) -> None:
        """Raise InvalidRequest unless it could be served."""
        if request.request_id in self._requests:
            raise InvalidRequest(f"a request {request.request_id!r} is already running.")
        self._limits.check(request)

    # -- small things --------------------------------------------------------------------------

    @contextmanager
    def _in_backend(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.backend_s += time.perf_counter() - begin

    def _vocabulary_digest(self) -> str:
        """Of what the tokens mean: of the tokenizer, or of the model where there is none."""
        if self.tokenizer is not None:
            return self.tokenizer.digest
        return self.model.numerics_id

    def _bad_words(self, words: list[str]) -> list[list[int]]:
        if self.tokenizer is None:
            return []
        return [ids for word in words for ids in self.tokenizer.word_ids(word)]

    def _text(self, request: Request) -> TextOutput | None:
        if self.tokenizer is None or not (request.detokenize or request.params.stop_strings):
            return None
        tokenizer, params = self.tokenizer, request.params
        return TextOutput(
            lambda: tokenizer.stream(params.skip_special_tokens),
            params.stop_strings,
            params.include_stop_str_in_output,
        )


def _close_all(pid: int, closes: list[Callable[[], None]]) -> None:
    """Close the parts of an engine, each of them though another fails. They are those of the
    process `pid`: one that was forked off it leaves them alone."""
    if os.getpid() != pid:
        return
    with ExitStack() as stack:
        for close in closes:
            stack.callback(close)
