"""The quality guard: what approximate techniques cost in quality, watched while they serve.

A share of the requests that use approximate techniques is chosen when they come. When such a text
has been given, a short run of its tokens is scored again by the exact configuration of the same
engine, in idle time and in steps of at most `ROWS` rows, which give way to whoever asks. Noise is a
function of seed, stream, position and token: so the token that the exact model gives at a position
is known at any temperature. One text in four is then decoded once more under its techniques, and
the divergence of both distributions is taken.

Nothing stays of a text but counts (`ockham.engine.watching`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import OckhamError
from ockham.core.floors import parse_floors
from ockham.core.guarded import GuardStats
from ockham.core.registry import SEAMS
from ockham.core.sequential import MOST
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.engine.preparing import NOTHING_PREPARED
from ockham.engine.rescoring import Given, Recital, without_approximation
from ockham.engine.sleeping import ROWS
from ockham.engine.structured.grammar import GrammarState
from ockham.engine.techniques import LEFT_OUT
from ockham.engine.watching import Use, Watch, Watchlist

log = logging.getLogger("ockham.engine")

MOST_QUEUED = 64
MOST_QUEUED_BYTES = 16 << 20
"""Of the texts that wait to be scored. What is too much is dropped."""
MOST_TRIES = 8
"""How often a text may give way to requests before it is dropped."""
KL_SHARE = 0.25
"""Of the texts that are scored, those whose divergence is taken too, which costs as much again. All
of them where the floor names no agreement."""
GRAMMAR_TOKENS = 256
"""Of a text that follows a grammar, only so many leading tokens may be scored: the grammar must be
led over what comes before them, between two steps."""
MOST_SETTINGS = 400
"""Characters of the settings of what is watched: requests may ask for anything."""
LENGTHS = ((1024, "short"), (8192, "medium"))
"""Prompts of fewer tokens than this, and what they are called; others are "long"."""

_REPORT = "guard"
"""Under this name a choice tells what was left out."""
_TENANT = "\nguard"
"""Whose turn the work is: nobody's credit is spent on it. No caller's name has a line end."""


class _Technique(NamedTuple):
    """An approximate technique that applies to a request: the key by which a request asks for it,
    and all that decides what it computes."""

    key: str
    described: str


class _Open(msgspec.Struct):
    """A request that runs and whose text is to be scored: the tokens of each choice so far, and how
    each ended."""

    request: Request
    watch: Watch
    episode: int
    keys: tuple[str, ...]
    comparable: bool
    tokens: list[list[int]]
    ended: int = 0
    spoiled: bool = False


class _Shadow(msgspec.Struct):
    """A text that waits to be scored. `comparable`: its divergence can be taken too, against the
    logits of the exact model once these are there, `exact`."""

    given: Given
    watch: Watch
    episode: int
    comparable: bool
    nbytes: int
    tries: int = 0
    exact: list[Floats] = []


class Guard:
    """The guard of one engine. Whoever steps the engine has requests admitted (`admit`), tells what
    was said of them (`after`) or that they are gone (`forget`), and lets it work in idle time
    (`wake`, `give_way`), as a `Sleeper`.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        config = engine.config
        self._engine, self._share = engine, config.guard
        self._floors = parse_floors(config.guard_floor)
        self.watches = Watchlist(self._floors, config.guard, config.guard_rest_s, clock)
        self._random = Random(config.seed)
        self._open: dict[str, _Open] = {}
        self._notes: dict[str, dict[str, list[str]]] = {}
        """What a request is told with the end of each of its choices."""
        self._queue: deque[_Shadow] = deque()
        self._running: _Shadow | None = None
        self._recital: Recital | None = None
        self._begun = 0
        self._most_rows = engine.scheduler.most_rows
        self._shadowed = self._dropped = self._apart = self._rows = 0

    # -- requests ------------------------------------------------------------------------------

    def admit(self, request: Request) -> Request:
        """The request as it is to be served: without techniques that are switched off, and with a
        seed if its text is to be scored."""
        if request.request_id in self._open or request.request_id in self._notes:
            return request  # the engine refuses a second one of its id
        try:
            techniques = self._techniques(request)
            searched = self._is_searched(request)
        except OckhamError:
            return request  # the engine refuses it, and says why
        if not techniques or request.pooling is not None:
            return request
        watch = self.watches.of(_use(request, techniques))
        if watch is None:
            self._apart += 1
            return request
        admitted = watch.admit(self._random)
        if not admitted.served:
            return self._leave_out(request, [each.key for each in techniques])
        params = request.params
        if searched or params.thinking_token_budget is not None or params.max_tokens == 0:
            self._apart += 1
            return request
        if not admitted.scored:
            return request
        if params.seed is None:
            params = msgspec.structs.replace(params, seed=self._engine.draw_seed())
            request = msgspec.structs.replace(request, params=params)
        seams = {each.key.partition("/")[0] for each in techniques}
        self._open[request.request_id] = _Open(
            request=request,
            watch=watch,
            episode=admitted.episode,
            keys=tuple(each.key for each in techniques),
            comparable=all(SEAMS[seam].alters_state for seam in seams) and self._compares(),
            tokens=[[] for _ in range(params.n)],
        )
        return request

    def forget(self, request_id: str) -> None:
        """A request was refused or given up, or something was said in the model's place."""
        self._open.pop(request_id, None)
        self._notes.pop(request_id, None)

    def after(self, deltas: list[Delta]) -> list[Delta]:
        """What a step said that is not of the guard's own work; it says what was left out."""
        own = self._name if self._running is not None else None
        told: list[Delta] = []
        for delta in deltas:
            if delta.request_id == own:
                self._take_own(delta)
                continue
            told.append(delta)
            if self._open and delta.request_id in self._open:
                self._take(delta)
            if self._notes and delta.request_id in self._notes:
                self._mark(delta)
        return told

    # -- idle work -----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether such work is in the engine."""
        return self._running is not None

    @property
    def left(self) -> int:
        """Texts that are still to be scored."""
        return len(self._queue) + self.running

    def wake(self) -> bool:
        """Begin with the next work, if there is any and the share of rows allows it. Call it only
        when the engine has none."""
        while self._queue:
            shadow = self._queue[0]
            if shadow.given.rows > self._allowed_rows:
                return False
            self._queue.popleft()
            if self._begin(shadow):
                return True
        return False

    def give_way(self) -> None:
        """Somebody asks for something: stop at once, and go on when there is nothing to do."""
        shadow = self._running
        if shadow is None:
            return
        for delta in self._engine.abort(self._name):
            self._book(delta)
        shadow.tries += 1
        if self._recital is None:
            shadow.exact = []
        self._end()
        if shadow.tries < MOST_TRIES:
            self._queue.appendleft(shadow)
        elif not shadow.exact:
            self._dropped += 1

    def stats(self) -> GuardStats:
        """The figures so far."""
        return GuardStats(
            share=self._share,
            floor=self._floors.text,
            shadowed=self._shadowed,
            queued=self.left,
            dropped=self._dropped,
            apart=self._apart,
            rows=self._rows,
            traffic_rows=self._engine.total.rows - self._rows,
            uses=self.watches.found(),
            events=list(self.watches.events),
        )

    # -- inside --------------------------------------------------------------------------------

    def _techniques(self, request: Request) -> list[_Technique]:
        """The approximate techniques that apply to a request and could be left out. Raises
        OckhamError for what cannot be asked."""
        engine = self._engine
        found: list[_Technique] = []
        for seam in LEFT_OUT:
            asked = request.asked(seam) if seam == "reuse" else None
            if asked is not None and asked.name in engine.approximate:
                settings = {name: getattr(asked.ask, name) for name in asked.ask.settings()}
                said = msgspec.json.encode(settings).decode()
                found.append(_Technique(f"{seam}/{asked.name}", f"{seam}/{asked.name}:{said}"))
            if seam == "reuse":
                continue
            chosen = engine.techniques.of(request, seam)
            if chosen is not None and not chosen.exact:
                found.append(_Technique(f"{seam}/{chosen.name}", chosen.described))
        return found

    def _leave_out(self, request: Request, keys: list[str]) -> Request:
        """The request as the exact model serves it. Where its whole state would not fit into the
        pool, it gets what it asks for, and is told that this is under its floor."""
        exact = without_approximation(request, keys)
        engine = self._engine
        try:
            engine.limits.check_pool(exact, engine.techniques.keeping(exact))
        except OckhamError:
            self._notes[request.request_id] = {"under_floor": keys}
            return request
        self._notes[request.request_id] = {"left_out": keys}
        return exact

    def _is_searched(self, request: Request) -> bool:
        """Whether a search says what becomes of a request's texts."""
        chosen = self._engine.techniques.of(request, "search")
        return chosen is not None and not chosen.exact

    def _compares(self) -> bool:
        """Whether the divergence of a text is to be taken, if it can be."""
        floors = self._floors
        if floors.kl is None or floors.agreement is None:
            return floors.kl is not None
        return self._random.random() < KL_SHARE

    def _take(self, delta: Delta) -> None:
        """Take in what was said of a request whose text is to be scored."""
        open_ = self._open[delta.request_id]
        open_.tokens[delta.index] += delta.token_ids
        if delta.finish_reason in ("abort", "error"):
            open_.spoiled = True
        if delta.finished:
            del self._open[delta.request_id]
            if not open_.spoiled:
                self._enqueue(open_)

    def _enqueue(self, of: _Open) -> None:
        """Let the text of a request wait to be scored: a run of one of its choices."""
        choices = [number for number, tokens in enumerate(of.tokens) if tokens]
        if not choices:
            return
        stream = self._random.choice(choices)
        tokens, request = of.tokens[stream], of.request
        length = len(tokens)
        if request.params.structured_outputs is not None:
            length = min(length, GRAMMAR_TOKENS)
        first = self._random.randrange(max(1, length - MOST + 1))
        assert request.params.seed is not None, "it was given one"
        given = Given(
            request=msgspec.structs.replace(
                request,
                prompt_token_ids=[],
                detokenize=False,
                score_from=1,
                cache_hint="discard",
                patient=False,
                orderly=False,
                progress=False,
                messages=None,
                tenant=_TENANT,
            ),
            keys=of.keys,
            prompt=np.array(request.prompt_token_ids, np.int32),
            given=np.array(tokens[: min(length, first + MOST)], np.int32),
            first=first,
            seed=request.params.seed & (2**64 - 1),
            stream=stream,
        )
        nbytes = given.nbytes + len(msgspec.msgpack.encode(request.params))
        held = sum(each.nbytes for each in self._queue)
        if len(self._queue) >= MOST_QUEUED or held + nbytes > MOST_QUEUED_BYTES:
            self._dropped += 1
            return
        self._queue.append(_Shadow(given, of.watch, of.episode, of.comparable, nbytes))

    def _mark(self, delta: Delta) -> None:
        """Let the end of a choice tell what was left out."""
        if delta.finish_reason is not None:
            told = {_REPORT: self._notes[delta.request_id]}
            delta.report = {**(delta.report or {}), **told}
        if delta.finished:
            del self._notes[delta.request_id]

    @property
    def _allowed_rows(self) -> float:
        """Rows that may still be computed: the share of what the engine computed for others."""
        return self._share * (self._engine.total.rows - self._rows) - self._rows

    def _begin(self, shadow: _Shadow) -> bool:
        """Begin to score a text; whether the engine has taken it. If not, it is dropped."""
        engine, given = self._engine, shadow.given
        self._begun += 1
        recital = Recital(given.given, np.concatenate(shadow.exact)) if shadow.exact else None
        request = given.exact(self._name) if recital is None else given.approximate(self._name)
        try:
            preparation = engine.prepare(request)
            prepared = NOTHING_PREPARED
            if preparation is not None:
                if not preparation.done():
                    raise OckhamError("what it needs is not in memory any more")
                prepared = preparation.result()
            engine.add(request, msgspec.structs.replace(prepared, search=recital))
        except OckhamError:
            engine.release(request.request_id)
            self._dropped += recital is None
            return False
        self._running, self._recital = shadow, recital
        if recital is None:
            engine.on_scored = self._scored
        engine.scheduler.most_rows = min(self._most_rows, ROWS)
        return True

    def _scored(self, request_id: str, logits: Floats) -> None:
        """Rows of logits were found of a prompt that is scored."""
        if self._running is not None and request_id == self._name:
            self._running.exact.append(logits.copy())

    def _take_own(self, delta: Delta) -> None:
        """Take in what was said of the text that is being scored."""
        self._book(delta)
        shadow, recital = self._running, self._recital
        if not delta.finished or shadow is None:
            return
        self._end()
        failed = delta.finish_reason in ("abort", "error")
        if recital is not None:
            if not failed:
                watch = shadow.watch
                reason = watch.add_kl(recital.nats, shadow.episode)
                self.watches.tell(watch, watch.state, reason)
            return
        if failed or not self._compare(shadow):
            self._dropped += 1
        elif shadow.comparable:
            self._queue.appendleft(shadow)

    def _compare(self, shadow: _Shadow) -> bool:
        """Find out where the exact model gives the same tokens; False if that cannot be known."""
        engine, given = self._engine, shadow.given
        logits = np.concatenate(shadow.exact)
        params = given.request.params
        try:
            grammar = self._grammar(given.request)
            words = engine.requests.bad_words(params.bad_words or [])
            drawn = engine.executor.sample(logits, given.draws(words, engine.eos, grammar))
        except OckhamError:
            return False
        same = [
            one.token == token
            for one, token in zip(drawn, given.given[given.first :].tolist(), strict=True)
        ]
        self._shadowed += 1
        watch = shadow.watch
        reason = watch.add_agreement(sum(same), len(same), shadow.episode)
        self.watches.tell(watch, watch.state, reason)
        return True

    def _grammar(self, request: Request) -> GrammarState | None:
        """The grammar that a text followed, at its beginning. Raises OckhamError where it is not
        there any more, or slow."""
        asked = request.params.structured_outputs
        if asked is None:
            return None
        engine = self._engine
        coming = engine.grammars.compile(asked, request.cache_salt)
        if not coming.done() or coming.result().slow:
            raise OckhamError("the grammar cannot be followed in time")
        return coming.result().begin(frozenset() if request.params.ignore_eos else engine.eos)

    def _book(self, delta: Delta) -> None:
        if delta.ledger is not None:
            self._rows += delta.ledger.rows

    @property
    def _name(self) -> str:
        """No caller's id: those have no line end."""
        return f"\nguard {self._begun}"

    def _end(self) -> None:
        self._running = self._recital = None
        self._engine.on_scored = None
        self._engine.scheduler.most_rows = self._most_rows


def _use(request: Request, techniques: Sequence[_Technique]) -> Use:
    """What is watched together with a request."""
    tokens = len(request.prompt_token_ids)
    length = next((name for most, name in LENGTHS if tokens < most), "long")
    return Use(
        tuple(each.key for each in techniques),
        _short(" ".join(each.described for each in techniques)),
        f"{request.workload}, {length}",
    )


def _short(text: str) -> str:
    """A text of any length as one of at most `MOST_SETTINGS` characters that stands for it."""
    if len(text) <= MOST_SETTINGS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: MOST_SETTINGS - 20]}... {digest}"


def guard_of(engine: Engine) -> Guard | None:
    """The guard of an engine, if its config asks for one and its model generates text. (A server's
    settings are those of all its models, of embeddings too.)"""
    if not engine.config.guard:
        return None
    if engine.pooler is not None:
        log.warning(
            "The guard watches texts that are generated, and %s generates none: nothing is "
            "guarded.",
            engine.config.model,
        )
        return None
    return Guard(engine)
