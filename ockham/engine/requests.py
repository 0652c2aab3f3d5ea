"""Requests on their way into an engine, and between engines: checked, prepared, begun, moved."""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np

from ockham.core.asks import AdapterAsk
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Keeping, Leniency, Problem, Search, SearchState, TokenScores, Verifier
from ockham.engine import billing, moving, search_billing
from ockham.engine.adapters import HeldAdapter
from ockham.engine.assemble import Assembly
from ockham.engine.gates import OpenGate, skips_of
from ockham.engine.group import Group
from ockham.engine.known import key_of
from ockham.engine.messages import Delta, Request
from ockham.engine.patterns import OpenPattern
from ockham.engine.pooling import Pool, encoded
from ockham.engine.preparing import NOTHING_PREPARED, Preparation, Prepared
from ockham.engine.runner.runner import Runner
from ockham.engine.sequence import Sequence, Status
from ockham.engine.slow_grammars import SlowGrammars
from ockham.engine.techniques import Chosen
from ockham.engine.text import TextOutput
from ockham.engine.texts import Texts
from ockham.engine.thinking import Thinking

LONGEST_LOAD_S = 30.0
"""What a caller that cannot step meanwhile waits for an adapter."""


class _Opened(NamedTuple):
    """What the first sequence of a request begins with."""

    gate: OpenGate | None
    pattern: OpenPattern | None
    keeping: Keeping | None


class Requests:
    """Takes requests. Each becomes the first of its choices, a sequence that waits."""

    def __init__(
        self, engine: Assembly, runner: Runner, slow_grammars: SlowGrammars, texts: Texts
    ) -> None:
        self._engine, self._runner, self._slow_grammars = engine, runner, slow_grammars
        self._texts = texts
        self._arrivals = itertools.count()
        self._seeds = random.Random(engine.config.seed)

    def prepare(self, request: Request) -> Preparation | None:
        """Make ready what a request needs, for `add`; None if it needs nothing. Raises
        InvalidRequest, as the result does, if it can never be served."""
        outputs, adapter = request.params.structured_outputs, request.asked("adapter")
        if outputs is None and adapter is None:
            return None
        self._check(request)
        engine = self._engine
        grammar = None
        if outputs is not None:
            grammar = engine.grammars.compile(outputs, request.cache_salt)
        if adapter is None:
            return Preparation(grammar)
        assert engine.adapters is not None, "checked with the request"
        assert isinstance(adapter.ask, AdapterAsk), "and so is this"
        return Preparation(grammar, engine.adapters.want(request.request_id, adapter.ask))

    def add(self, request: Request, prepared: Prepared) -> None:
        """Take a request, with what was made ready for it (see `prepare`). Raises InvalidRequest,
        before any work, if it can never be served."""
        try:
            self._add(request, prepared)
        except BaseException:
            if request.request_id not in self._engine.groups:
                self._engine.release(request.request_id)
            raise

    def _add(self, request: Request, prepared: Prepared) -> None:
        if self._texts.take(request):
            self._check_new(request)
            self._engine.limits.check_text(request)
            if not self._answered(request):
                self._texts.add(request, next(self._arrivals))
            return
        opened = self._check(request)
        params = request.params
        if prepared.grammar is None and params.structured_outputs is not None:
            raise ValueError("a request with structured outputs comes with what `prepare` gave")
        if prepared.adapter is None and request.asked("adapter") is not None:
            raise ValueError("a request for an adapter comes with what `prepare` gave")
        if self._answered(request):
            return
        seed = self.draw_seed() if params.seed is None else params.seed & (2**64 - 1)
        group = self._group(request, seed, prepared, opened)
        sequence = group.first
        if sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs *= request.score_from
        engine = self._engine
        engine.scheduler.add(sequence)  # the last that may fail: whatever counts comes after it
        engine.add_group(group)
        for book in (sequence.ledger, engine.ledger):
            book.prompt_tokens += sequence.prompt_tokens

    def export(self, request_id: str) -> bytes:
        """Take a request out, between two steps, for `import_` of another engine. Its choices go on
        there as if they had never moved; what was said of them stays said.

        Raises InvalidRequest if there is none, or it cannot be moved.
        """
        engine = self._engine
        group = engine.groups.get(request_id)
        if group is None and request_id not in self._texts.waiting:
            raise InvalidRequest(f"there is no running request {request_id!r} to export.")
        if group is None or group.first.pool is not None:
            raise InvalidRequest(
                f"request {request_id!r} wants what is made of hidden states, which are not moved; "
                "let it end here, or abort it."
            )
        if group.search is not None:
            raise InvalidRequest(
                f"request {request_id!r} is answered by the search {group.name!r}, whose branches "
                "cannot be moved; let it end here, or abort it."
            )
        self._runner.settle()
        altering = engine.techniques.altering(group.first.request)
        data = moving.pack(group.sequences, engine.state, engine.clock(), altering)
        for sequence in group.sequences:
            if sequence.status is not Status.FINISHED:
                engine.speculation.forget(sequence)
                engine.scheduler.finish(sequence)
        engine.remove_group(request_id)
        return data

    def import_(self, data: bytes) -> str:
        """Go on with a request that another engine of the same numerics id exported; its id. Waits
        until the grammar of its output is compiled, if it has one.

        What finds no room in the pool is computed again. Raises InvalidRequest, and changes
        nothing, if it cannot go on here to the same bits.
        """
        engine = self._engine
        moved = moving.unpack(data, engine.state.numerics_id)
        request, now_s = moved.request, engine.clock()
        opened = self._check(request)
        engine.limits.check_moved(moved)
        here = [each.described for each in engine.techniques.altering(request)]
        if here != moved.altering:
            raise InvalidRequest(
                f"the request was computed under {shown(moved.altering)}, and this engine would "
                f"go on under {shown(here)}; give both engines the same settings."
            )
        prepared = self.prepare_now(request)
        try:
            return self._go_on(moved, prepared, opened, now_s)
        except BaseException:
            engine.release(request.request_id)
            raise

    def prepare_now(self, request: Request) -> Prepared:
        """What `prepare` gives, for a caller that cannot step meanwhile."""
        preparation = self.prepare(request)
        if preparation is None:
            return NOTHING_PREPARED
        if preparation.grammar is not None:
            preparation.grammar.result()
        preparation.wait(LONGEST_LOAD_S)
        if not preparation.done():
            self._engine.release(request.request_id)
            raise InvalidRequest(
                "there is no room for the adapter of the request while others run with theirs; ask "
                "again later.",
                "model",
            )
        return preparation.result()

    def _go_on(
        self, moved: moving.MovedRequest, prepared: Prepared, opened: _Opened, now_s: float
    ) -> str:
        """Take in a request that was checked; its id."""
        engine, request = self._engine, moved.request
        group = self._group(request, moved.seed, prepared, opened)
        first = group.first
        first.most_tokens, first.stop_ids = moved.most_tokens, frozenset(moved.stop_ids)
        for other in moved.choices[1:]:
            group.adopt(first.choice(other.index, self._text(request)))
        views = moving.import_states(moved, engine.state)
        engine.add_group(group)
        for sequence, choice, view in zip(group.sequences, moved.choices, views, strict=True):
            moving.restore(sequence, choice, moved.age_s, now_s)
            if sequence.grammar is not None and sequence.grammar.slow:
                self._slow_grammars.leave(sequence)
            if not choice.finished:
                engine.scheduler.take_in(sequence, view)
        return request.request_id

    def end_thought(self, request_id: str) -> None:
        """Let the thoughts of a request's choices end with their next tokens. Raises
        InvalidRequest if there is no such request, or none of its choices thinks now."""
        group = self._engine.groups.get(request_id)
        if group is None:
            raise InvalidRequest(
                f"request {shown(request_id)} is not running: it is over, waits to begin, or never "
                "came.",
                "id",
            )
        ended = [s.end_thought() for s in group.sequences if s.finish_reason is None]
        if not any(ended):
            raise InvalidRequest(
                f"request {shown(request_id)} is not thinking now; only a thought that has begun, "
                "of a model whose marks are known, can be ended.",
                "id",
            )
        self._runner.forget_decoding()  # which goes on with what is drawn

    def draw_seed(self) -> int:
        """The seed of the next request that brings none of its own."""
        return self._seeds.getrandbits(64)

    def bad_words(self, words: list[str]) -> list[list[int]]:
        """The ids of each way to write words that must not come."""
        tokenizer = self._engine.tokenizer
        if tokenizer is None:
            return []
        return [ids for word in words for ids in tokenizer.word_ids(word)]

    # -- inside --------------------------------------------------------------------------------

    def _check(self, request: Request) -> _Opened:
        """What its first sequence begins with. Raises InvalidRequest unless it could be served."""
        engine = self._engine
        self._check_new(request)
        engine.limits.check(request)
        gate = engine.gates.open(request)
        pattern = engine.patterns.open(request, skips_of(gate))
        engine.patterns.check(request, pattern)
        if gate is not None and gate.narrows and pattern is not None:
            raise InvalidRequest(
                f"{gate.name} leaves out the attention of more layers as the text gets longer, and "
                f"{pattern.name} says what rows of all layers visit; leave one of the two out.",
                gate.name,
            )
        reordering = None if pattern is None else pattern.reordering
        keeping = reordering or engine.techniques.keeping(request)
        engine.limits.check_pool(request, keeping)
        return _Opened(gate, pattern, keeping)

    def _check_new(self, request: Request) -> None:
        """Raise InvalidRequest if another of its id is served."""
        if request.request_id in self._engine.groups or request.request_id in self._texts.waiting:
            raise InvalidRequest(f"a request {request.request_id!r} is already running.")

    def _group(self, request: Request, seed: int, prepared: Prepared, opened: _Opened) -> Group:
        """A request with its first sequence, before anything is done."""
        params, tokens, engine = request.params, request.prompt_token_ids, self._engine
        if prepared.adapter is not None:
            self._check_current(request, prepared.adapter)
        longest = engine.max_model_len
        generated = request.most_generated(longest)
        eos = frozenset() if params.ignore_eos else engine.eos
        stops = eos | frozenset(params.stop_token_ids or ())
        thinking = self._thinking(params)
        chosen = engine.techniques.of(request, "search")
        search, name = prepared.search, search_billing.CALLERS_SEARCH
        if search is None and chosen is not None:
            search, name = self._begin(chosen, request, stops, seed), chosen.name
        if search is not None and search.width > engine.config.max_num_seqs:
            raise InvalidRequest(
                f"{name} runs {search.width} sequences at once, but at most "
                f"{engine.config.max_num_seqs} run here; ask for fewer, or raise max_num_seqs.",
                name,
            )
        if search is not None and search.chooses and params.thinking_token_budget is not None:
            raise InvalidRequest(
                f"{name} says itself what comes next, so that no "
                "thought can be ended; leave out thinking_token_budget, or the search.",
                "thinking_token_budget",
            )
        first = Sequence(
            request,
            0,
            next(self._arrivals),
            seed=seed,
            most_tokens=min(longest, len(tokens) + generated),
            stop_ids=stops,
            eos=engine.eos,
            bad_words=self.bad_words(params.bad_words or []),
            text=self._text(request),
            grammar=None if prepared.grammar is None else prepared.grammar.begin(eos),
            thinking=thinking,
            arrival_s=engine.clock(),
            gate=opened.gate,
            salt=engine.techniques.key(request),
            shares=all(each.shares for each in engine.techniques.altering(request)),
            adapter=prepared.adapter,
            seats=params.n if search is None else search.width,
            forks=(params.n if search is None else search.begins) > 1,
            chosen=search is not None and search.chooses,
            observer=None if search is None else search.observer(0),
            pattern=opened.pattern,
            keeping=opened.keeping,
            pool=self._pool(request),
            leniency=self._leniency(request),
        )
        if search is not None and search.watches:
            first.ends = []
        if search is not None and search.scores:
            first.score_tokens(TokenScores())
        first.held = search is not None and search.holds
        return Group(engine, first, search, name if search is not None else "")

    def _leniency(self, request: Request) -> Leniency | None:
        """How drafted tokens of a request stay that were not drawn; None: none does."""
        chosen = self._engine.techniques.of(request, "verifier")
        if chosen is None:
            return None
        verifier: Verifier = chosen.technique
        least = verifier.least_logprob(chosen.ask)
        return None if least is None else Leniency(chosen.name, least)

    def _answered(self, request: Request) -> bool:
        """Whether a request is for what was made of the same text before, and is answered with
        that by the next step."""
        engine, params = self._engine, request.pooling
        known, pooler = engine.known, engine.pooler
        if known is None or pooler is None or params is None or params.task == "token_embed":
            return False
        if any(not each.shares for each in engine.techniques.altering(request)):
            return False
        found = known.get(key_of(request, engine.techniques.key(request)))
        if found is None:
            return False
        pooled = encoded(pooler.answer(found, params))
        bill = billing.book_known(len(request.prompt_token_ids), engine.cost, engine.ledger)
        engine.answered.append(
            Delta(
                request.request_id,
                0,
                finish_reason="stop",
                finished=True,
                ledger=bill,
                pooled=pooled,
            )
        )
        engine.release(request.request_id)
        return True

    def _pool(self, request: Request) -> Pool | None:
        """What gathers the hidden states of a request that wants what is made of them."""
        pooler, params = self._engine.pooler, request.pooling
        if pooler is None or params is None:
            return None
        return pooler.open(params, request.prompt_skip)

    def _check_current(self, request: Request, adapter: HeldAdapter) -> None:
        """Raise InvalidRequest if an adapter's files hold something else by now: the key of the
        request's state would not be that of what was read."""
        chosen = self._engine.techniques.of(request, "adapter")
        if chosen is None or chosen.technique.identity(chosen.ask) != adapter.digest:
            raise InvalidRequest(
                f"the files of the adapter {adapter.name!r} were changed just now; ask again.",
                "model",
            )

    def _begin(
        self, chosen: Chosen, request: Request, stops: frozenset[int], seed: int
    ) -> SearchState | None:
        """Begin the search for the answer to a request; None if it is left to the sampler."""
        search: Search = chosen.technique
        seats, tokenizer = self._engine.config.max_num_seqs, self._engine.tokenizer
        problem = Problem(
            np.array(request.prompt_token_ids, np.int32),
            request.params,
            request.cache_salt,
            stops,
            seats,
            tokenizer is not None and request.detokenize,
            request.asked("search") is not None,
            companions=self._engine.companions.of(request, seed),
            cost=self._engine.cost,
        )
        if tokenizer is not None:
            encode = partial(tokenizer.encode, add_special_tokens=False)
            problem = msgspec.structs.replace(
                problem,
                encode=encode,
                judges=self._engine.checkers,
                probes=self._engine.probes,
                programs=self._engine.programs,
                rewards={
                    name: model.judging(request.messages)
                    for name, model in self._engine.rewards.items()
                },
                turns=tokenizer.turns,
            )
        return search.begin(chosen.ask, problem)

    def _thinking(self, params: SamplingParams) -> Thinking | None:
        """What follows the thought of a request that may have one."""
        tokenizer, marks = self._engine.tokenizer, params.thought
        if tokenizer is None or marks is None:
            return None
        closing = marks.closing(params.thinking_closing_text)
        return Thinking(
            marks,
            params.thinking_token_budget,
            tokenizer.encode(closing, add_special_tokens=False),
            tokenizer.token_bytes,
            watched=bool(params.stop_strings or params.stop_token_ids),
        )

    def _text(self, request: Request) -> TextOutput | None:
        tokenizer, params = self._engine.tokenizer, request.params
        if tokenizer is None or not (request.detokenize or params.stop_strings):
            return None
        return TextOutput(
            lambda: tokenizer.stream(params.skip_special_tokens),
            params.stop_strings,
            params.include_stop_str_in_output,
        )
