"""Compiles grammars beside the engine's loop, with limits, once for each content.

A grammar is first tried in a worker process: one that takes too long, needs too much memory or
takes the library down is refused, and nothing else notices. What passed there is compiled here, in
a thread. A request holds its own compiled grammar; what is kept here is only for those to come.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from ockham.core.errors import InvalidRequest, LimitExceeded, OckhamError, WorkerDied
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.worker import Worker, WorkerLimits
from ockham.engine.structured.background import Background
from ockham.engine.structured.grammar import Grammar, is_suspect
from ockham.engine.structured.vocabulary import GrammarVocabulary
from ockham.engine.structured.worker import Outcome, Vocabulary

COMPILE_S = 5.0
"""CPU time that a grammar may take to compile."""
WALL_S = 30.0
"""Wall time for the same, on a machine that does much else."""
MOST_BYTES = 512 << 20
"""Memory for the same, beside what the vocabulary takes."""
MOST_KEPT = 64
"""Grammars of which the compiled form is kept when no request uses them."""
MOST_REFUSED = 1024
"""Grammars of which it is remembered that they are refused."""
REFUSED_S = 300.0
"""How long a refusal holds that another time might not be."""
_PROCESSES = 2
_MOST_REASON = 400
"""Characters of the library's reason that are shown."""
_SERVICE = "ockham.engine.structured.worker:SERVICE"


class Grammars:
    """The compiled grammars of an engine. Safe to use from several threads; nothing here waits."""

    def __init__(
        self, describe: Callable[[], str], size: int, *, compile_s: float = COMPILE_S
    ) -> None:
        """`describe` gives the tokenizer as JSON of the `tokenizers` library, when it is needed;
        there are logits for `size` ids."""
        self._describe = describe
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Grammar] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[InvalidRequest, float]] = OrderedDict()
        self._compiling: dict[bytes, Future[Grammar]] = {}
        self._vocabulary_lock = threading.Lock()
        self._known: GrammarVocabulary | None = None
        self._background = Background()
        self._worker = Worker(
            _SERVICE,
            Outcome,
            setup=self._setup(),
            limits=WorkerLimits(cpu_s=compile_s, wall_s=WALL_S, memory_bytes=MOST_BYTES),
            processes=_PROCESSES,
        )
        self.close = weakref.finalize(self, _close, self._worker, self._background)

    def compile(self, asked: StructuredOutputsParams, owner: str = "") -> Future[Grammar]:
        """The grammar, now or later. The future fails with InvalidRequest, or with WorkerError
        where no process could be had. Owners take turns."""
        key = asked.key
        with self._lock:
            grammar = self._kept.get(key)
            if grammar is not None:
                self._kept.move_to_end(key)
                return _done(grammar)
            refusal = self._refused.get(key)
            if refusal is not None and time.monotonic() < refusal[1]:
                self._refused.move_to_end(key)
                return _failed(refusal[0])
            found = self._compiling.get(key)
            if found is not None:
                return found
            found = self._compiling[key] = Future()
            found.set_running_or_notify_cancel()  # others may wait for it: nobody cancels it
        tried = self._worker.submit(asked, owner=owner)
        tried.add_done_callback(lambda tried: self._go_on(key, asked, tried, found))
        return found

    def refuse(self, asked: StructuredOutputsParams, reason: str) -> None:
        """A grammar turned out to be of no use: do not take it again for a while."""
        key = asked.key
        with self._lock:
            self._kept.pop(key, None)
            self._remember(key, refusal(reason), time.monotonic() + REFUSED_S)

    # -- in a thread of the worker -------------------------------------------------------------

    def _go_on(
        self,
        key: bytes,
        asked: StructuredOutputsParams,
        tried: Future[Outcome],
        found: Future[Grammar],
    ) -> None:
        """It was tried out: compile it here, or refuse it."""
        try:
            grammar = self._compile(asked, tried.result())
        except BaseException as error:
            self._fail(key, found, error)
            return
        with self._lock:
            self._kept[key] = grammar
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            del self._compiling[key]
        found.set_result(grammar)

    def _fail(self, key: bytes, found: Future[Grammar], error: BaseException) -> None:
        until_s = time.monotonic() + REFUSED_S
        if isinstance(error, LimitExceeded):
            what = f"{str(error).removesuffix('.')}; make it simpler"
            error = refusal(what)
        elif isinstance(error, WorkerDied):
            error = refusal("it needs more memory or depth than it may have")
        elif isinstance(error, InvalidRequest):
            until_s = math.inf
        elif not isinstance(error, OckhamError):
            error = refusal(f"{type(error).__name__}: {error}")
        with self._lock:
            if isinstance(error, InvalidRequest):
                self._remember(key, error, until_s)
            del self._compiling[key]
        found.set_exception(error)

    def _remember(self, key: bytes, error: InvalidRequest, until_s: float) -> None:
        self._refused[key] = error, until_s
        self._refused.move_to_end(key)
        while len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)

    def _compile(self, asked: StructuredOutputsParams, outcome: Outcome) -> Grammar:
        if outcome.wrong:
            raise refusal(outcome.wrong)
        with self._vocabulary_lock:
            if self._known is None:
                self._known = GrammarVocabulary(self._describe(), self._size)
        try:
            return Grammar(self._known, outcome.text, self._background, watched=is_suspect(asked))
        except ValueError as error:
            raise refusal(str(error)) from None

    def _setup(self) -> Callable[[], Vocabulary]:
        # The worker is held by what closes it, so it must not hold this, nor the engine by it.
        this = weakref.ref(self)

        def make() -> Vocabulary:
            grammars = this()
            if grammars is None:
                raise RuntimeError("nobody wants grammars any more")
            return Vocabulary(grammars._describe(), grammars._size)

        return make


def refusal(reason: str) -> InvalidRequest:
    """What to say of a grammar for which the library gave such a reason."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    reason = " ".join(lines)
    if len(reason) > _MOST_REASON:
        reason = reason[: _MOST_REASON - 3] + "..."
    return InvalidRequest(
        f"the grammar of the output cannot be compiled: {reason.rstrip('.')}.", "structured_outputs"
    )


def _done(grammar: Grammar) -> Future[Grammar]:
    found: Future[Grammar] = Future()
    found.set_result(grammar)
    return found


def _failed(error: InvalidRequest) -> Future[Grammar]:
    found: Future[Grammar] = Future()
    found.set_exception(InvalidRequest(str(error), error.param))
    return found


def _close(worker: Worker[Outcome], background: Background) -> None:
    worker.close()
    background.close()
