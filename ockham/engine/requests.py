"""Requests on their way into an engine, and between engines: checked, prepared, begun, moved."""

from __future__ import annotations

import itertools
import random
import time
from concurrent.futures import Future

import numpy as np

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.seams import Problem, Search, SearchState
from ockham.engine import moving
from ockham.engine.assemble import Assembly
from ockham.engine.gates import skips_of
from ockham.engine.group import Group
from ockham.engine.messages import Request
from ockham.engine.runner.runner import Runner
from ockham.engine.sequence import Sequence, Status
from ockham.engine.slow_grammars import SlowGrammars
from ockham.engine.structured.grammar import Grammar
from ockham.engine.techniques import Chosen
from ockham.engine.text import TextOutput


class Requests:
    """Takes requests. Each becomes the first of its choices, a sequence that waits."""

    def __init__(self, engine: Assembly, runner: Runner, slow_grammars: SlowGrammars) -> None:
        self._engine, self._runner, self._slow_grammars = engine, runner, slow_grammars
        self._arrivals = itertools.count()
        self._seeds = random.Random(engine.config.seed)

    def prepare(self, request: Request) -> Future[Grammar] | None:
        """Compile what a request needs compiled, for `add`; None if nothing is. Raises
        InvalidRequest, as the future does, if it can never be served."""
        asked = request.params.structured_outputs
        if asked is None:
            return None
        self._check(request)
        return self._engine.grammars.compile(asked, request.cache_salt)

    def add(self, request: Request, grammar: Grammar | None = None) -> None:
        """Take a request, with the grammar of its output if it asks for one (see `prepare`). Raises
        InvalidRequest, before any work, if it can never be served."""
        self._check(request)
        if grammar is None and request.params.structured_outputs is not None:
            raise ValueError("a request with structured outputs comes with what `prepare` gave")
        params = request.params
        seed = self.draw_seed() if params.seed is None else params.seed & (2**64 - 1)
        group = self._group(request, seed, grammar)
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
        if group is None:
            raise InvalidRequest(f"there is no running request {request_id!r} to export.")
        if group.search is not None:
            raise InvalidRequest(
                f"request {request_id!r} is answered by the search {group.name!r}, whose branches "
                "cannot be moved; let it end here, or abort it."
            )
        self._runner.settle()
        altering = engine.techniques.altering(group.first.request)
        data = moving.pack(group.sequences, engine.state, time.monotonic(), altering)
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
        request, now_s = moved.request, time.monotonic()
        self._check(request)
        engine.limits.check_moved(moved)
        here = [each.described for each in engine.techniques.altering(request)]
        if here != moved.altering:
            raise InvalidRequest(
                f"the request was computed under {shown(moved.altering)}, and this engine would "
                f"go on under {shown(here)}; give both engines the same settings."
            )
        compiling = self.prepare(request)
        grammar = None if compiling is None else compiling.result()
        group = self._group(request, moved.seed, grammar)
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

    def draw_seed(self) -> int:
        """The seed of the next request that brings none of its own."""
        return self._seeds.getrandbits(64)

    # -- inside --------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        """Raise InvalidRequest unless it could be served."""
        if request.request_id in self._engine.groups:
            raise InvalidRequest(f"a request {request.request_id!r} is already running.")
        self._engine.limits.check(request)
        self._engine.gates.open(request)
        self._engine.patterns.open(request)

    def _group(self, request: Request, seed: int, grammar: Grammar | None) -> Group:
        """A request with its first sequence, before anything is done."""
        params, tokens, engine = request.params, request.prompt_token_ids, self._engine
        longest = engine.max_model_len
        most = min(longest, len(tokens) + (params.max_tokens or longest))
        eos = frozenset() if params.ignore_eos else engine.eos
        stops = eos | frozenset(params.stop_token_ids or ())
        chosen = engine.techniques.of(request, "search")
        search = None if chosen is None else self._begin(chosen, request, stops)
        gate = engine.gates.open(request)
        first = Sequence(
            request,
            0,
            next(self._arrivals),
            seed=seed,
            most_tokens=len(tokens) if params.max_tokens == 0 else most,
            stop_ids=stops,
            bad_words=self._bad_words(params.bad_words or []),
            text=self._text(request),
            grammar=None if grammar is None else grammar.begin(eos),
            arrival_s=time.monotonic(),
            gate=gate,
            salt=engine.techniques.key(request),
            shares=all(each.shares for each in engine.techniques.altering(request)),
            seats=params.n if search is None else search.width,
            forks=(params.n if search is None else search.begins) > 1,
            chosen=search is not None and search.chooses,
            observer=None if search is None else search.observer(0),
            pattern=engine.patterns.open(request, skips_of(gate)),
            keeping=engine.techniques.keeping(request),
        )
        return Group(engine, first, search, chosen.name if chosen and search else "")

    def _begin(self, chosen: Chosen, request: Request, stops: frozenset[int]) -> SearchState | None:
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
        )
        state = search.begin(chosen.ask, problem)
        if state is not None and state.width > seats:
            raise InvalidRequest(
                f"{chosen.name} runs {state.width} sequences at once, but at most {seats} run "
                "here; ask for fewer, or raise max_num_seqs.",
                chosen.name,
            )
        return state

    def _bad_words(self, words: list[str]) -> list[list[int]]:
        tokenizer = self._engine.tokenizer
        if tokenizer is None:
            return []
        return [ids for word in words for ids in tokenizer.word_ids(word)]

    def _text(self, request: Request) -> TextOutput | None:
        tokenizer, params = self._engine.tokenizer, request.params
        if tokenizer is None or not (request.detokenize or params.stop_strings):
            return None
        return TextOutput(
            lambda: tokenizer.stream(params.skip_special_tokens),
            params.stop_strings,
            params.include_stop_str_in_output,
        )
