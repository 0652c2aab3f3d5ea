"""Runs steps over an engine's model, and keeps the step of a decoding that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ockham.core.arrays import Doubles
from ockham.core.step import Floats, Ints, Step, StepOutput
from ockham.engine import billing
from ockham.engine.assemble import Assembly
from ockham.engine.runner.decoding import Decoding
from ockham.kernels.sampling import Draw, Drawn

SCORED_TOP = 20
"""Over how many of the likeliest tokens a row's confidence is taken."""


class Runner:
    """All of an engine's calls into its backend, timed."""

    def __init__(self, engine: Assembly) -> None:
        self._engine = engine
        self.decoding: Decoding | None = None
        """The kept step of the sequences that do nothing but decode."""
        self._backend_s = 0.0

    @property
    def backend_s(self) -> float:
        """Seconds in the backend's operations; the rest of a step is scheduling and bookkeeping."""
        return self._backend_s + self._engine.transfers.backend_s

    def run(self, step: Step) -> StepOutput:
        """Run the whole program over a step, with what is attached."""
        engine = self._engine
        executor, begin = engine.executor, engine.clock()
        try:
            run = executor.begin(step)
            for start, stop, hook in engine.attachments.ranges():
                executor.run(run, start, stop)
                if hook is not None:
                    hook(run)
            return executor.finish(run)
        finally:
            self._backend_s += engine.clock() - begin

    def sample(self, output: StepOutput, draws: list[Draw]) -> list[Drawn]:
        if not draws:
            return []
        with self._in_backend():
            return self._engine.executor.sample(output.logits, draws)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        with self._in_backend():
            return self._engine.executor.logprobs(logits, targets, top, also)

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints) -> Doubles:
        with self._in_backend():
            return self._engine.executor.token_scores(logits, rows, tokens, SCORED_TOP)

    # -- the kept decoding ---------------------------------------------------------------------

    def go_on(self) -> Decoding | None:
        """The running sequences as a decoding ready for its next step, if that is all there is to
        do and nothing is attached."""
        engine, decoding = self._engine, self.decoding
        scheduler = engine.scheduler
        if engine.own_model.wrote:  # its pages may have changed
            self.forget_decoding()
            decoding = None
        observers = engine.speculation.observers
        possible = scheduler.decodes_only and not engine.attachments
        if engine.config.recall_every and any(s.pattern is not None for s in scheduler.running):
            possible = False  # which rows are looked at changes from step to step
        if decoding is not None and not (
            possible
            and decoding.sequences == scheduler.running
            and decoding.watched_by(observers)
            and decoding.reserve()
        ):
            self.settle()
            decoding = None
        if decoding is None and possible:
            decoding = Decoding.of(scheduler.running, engine.state, engine.sublayers, observers)
        self.decoding = decoding
        return decoding

    def forget_decoding(self) -> None:
        self.settle()
        self.decoding, self._engine.own_model.wrote = None, False

    def settle(self) -> None:
        """Put into the ledgers what is still to be billed."""
        if self.decoding is not None:
            engine = self._engine
            billing.book_decoding(self.decoding, engine.cost, engine.ledger, engine.passes)

    @contextmanager
    def _in_backend(self) -> Iterator[None]:
        clock = self._engine.clock
        begin = clock()
        try:
            yield
        finally:
            self._backend_s += clock() - begin
