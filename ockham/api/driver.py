"""`Driver`: the client of an engine in the caller's own process.

There is no thread of the engine's own: whoever waits for a request steps the engine, for all.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from ockham.api.prompts import named
from ockham.core.errors import FAULT, OckhamError, fault
from ockham.core.guarded import GuardStats
from ockham.core.outputs import RequestOutput
from ockham.engine.collect import Collector
from ockham.engine.engine import WAIT_S, Engine
from ockham.engine.idling import idle_of
from ockham.engine.intake import describe
from ockham.engine.messages import Delta, Pin, Request, Unpin
from ockham.engine.offline import OfflineBatch
from ockham.engine.preparing import NOTHING_PREPARED, Preparation

Listener = Callable[[Collector, Delta], None]


class Driver:
    """Hands requests to an engine and steps it until they are finished.

    Its methods may be called from several threads. A process that is forked off one with a driver
    may use it too, within the limits that `check_usable` states.
    """

    def __init__(self, engine: Engine) -> None:
        """Raises ConfigError for a file of pins that cannot be read."""
        self.engine = engine
        self._idle = idle_of(engine)
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[Collector, Listener | None]] = {}
        self._coming: dict[str, Preparation] = {}
        """What is made ready for requests that the engine has not taken yet."""
        self._batches: dict[str, OfflineBatch] = {}
        """Of each unfinished request, the batch that it is part of."""

    def run(self, collectors: Sequence[Collector], listener: Listener | None = None) -> None:
        """Run a batch of requests until all have finished. Raises InvalidRequest, which names the
        prompt's index, or what a request ended with; then none of the batch is left running."""
        self.check_usable()
        try:
            for index in self._plan(collectors):
                named(index, self.submit, collectors[index], listener)
            for collector in collectors:
                while not collector.finished:
                    self.step(collector)
                if collector.error is not None:
                    raise collector.error
        finally:  # refused, interrupted or failed: leave no work behind
            for collector in collectors:
                self.withdraw(collector)
                self._batches.pop(collector.request.request_id, None)

    def submit(self, collector: Collector, listener: Listener | None = None) -> None:
        """Hand a request to the engine; its deltas go to the collector, then to the listener."""
        with self._lock:
            request = collector.request = self._idle.admit(collector.request)
        try:
            preparation = self.engine.prepare(request)
            if preparation is not None and preparation.grammar is not None:
                preparation.grammar.result()  # beside other callers' steps
            self._hand_over(collector, preparation, listener)
        except BaseException:
            with self._lock:
                if request.request_id not in self._waiting:
                    self._idle.forget(request.request_id)
            raise

    def _hand_over(
        self, collector: Collector, preparation: Preparation | None, listener: Listener | None
    ) -> None:
        request = collector.request
        with self._lock, _Uninterrupted():
            self._idle.give_way()
            if preparation is None or preparation.done():
                self.engine.add(
                    request, NOTHING_PREPARED if preparation is None else preparation.result()
                )
            else:  # it may wait for other requests to end
                self._coming[request.request_id] = preparation
            self._waiting[request.request_id] = (collector, listener)

    def step(self, collector: Collector) -> None:
        """One step of the engine, for whoever waits: callers in several threads share its steps.
        Raises what ended the collector's request, if a fault did, be it met by another's step."""
        self.check_usable()
        with self._lock, _Uninterrupted():
            if collector.error is None and not collector.finished:
                try:
                    self._take_in()
                    waits = self._coming and not self.engine.has_work
                    deltas = [] if waits else self._idle.after(self.engine.step())
                except Exception as error:
                    self._give_up(error)
                    raise
                self._deliver(deltas)
        if collector.error is not None:
            raise collector.error

    def withdraw(self, collector: Collector) -> None:
        """Give up what has not finished of a request."""
        request_id = collector.request.request_id
        with self._lock:
            if self._coming.pop(request_id, None) is not None:
                self.engine.release(request_id)
                self._idle.forget(request_id)
            if request_id in self._waiting:
                self._deliver(self._idle.after(self.engine.abort(request_id)))
                self._waiting.pop(request_id, None)

    def pin(self, pin: Pin) -> None:
        """Keep a prefix whose state is held. Raises InvalidRequest."""
        with self._lock:
            self.engine.cache.pin(pin)

    def unpin(self, unpin: Unpin) -> None:
        """Let a pinned prefix go again. Raises InvalidRequest if there is no such pin."""
        self.check_usable()
        with self._lock:
            self.engine.cache.unpin(unpin)

    def sleep(self, most_s: float) -> int:
        """Do idle work, for so many seconds or until somebody asks for something: compute pins of
        an earlier engine anew, and score texts for the guard. How much is left."""
        self.check_usable()
        until_s = time.monotonic() + most_s
        while time.monotonic() < until_s:
            with self._lock, _Uninterrupted():
                if self._waiting or not (self._idle.running or self._idle.wake()):
                    return self._idle.left
                self._idle.after(self.engine.step())
        with self._lock:
            self._idle.give_way()
        return self._idle.left

    def guard(self) -> GuardStats | None:
        """What the quality guard has found; None where there is none."""
        self.check_usable()
        with self._lock:
            guard = self._idle.guard
            return None if guard is None else guard.stats()

    def close(self) -> None:
        """Give up what still runs, and close the engine, unless it is another process's. Closing
        it again does nothing."""
        theirs = self._pid != os.getpid()  # of the process that this one was forked off
        if self._closed or theirs:
            self._closed = True
            return
        self._closed = True
        for collector, _ in list(self._waiting.values()):
            self.withdraw(collector)
        with self._lock:
            self.engine.close()

    def check_usable(self) -> None:
        """Raise OckhamError if the LLM was closed, or belongs to another process in a way that a
        process forked off it cannot share."""
        if self._closed:
            raise OckhamError("this LLM was closed; make another one.")
        if self._pid == os.getpid():
            return
        reason = None
        if self._lock.locked():
            reason = "another thread was using it when the process was forked"
        elif self.engine.config.kv_store is not None:
            reason = f"its kv_store {self.engine.config.kv_store!r} is for one process at a time"
        if reason is not None:
            raise OckhamError(
                f"this LLM belongs to the process {self._pid}, from which this one was forked, and "
                f"cannot be used here: {reason}. Make the LLM after the fork."
            )
        self.engine.forked()
        self._pid = os.getpid()

    def _plan(self, collectors: Sequence[Collector]) -> list[int]:
        """The order in which the requests of a batch go to the engine."""
        if len(collectors) < 2 or self.engine.scheduler.whole:  # which share nothing
            return list(range(len(collectors)))
        batch = OfflineBatch(self.engine, [collector.request for collector in collectors])
        for collector in collectors:
            self._batches[collector.request.request_id] = batch
        return batch.order

    def _take_in(self) -> None:
        """Hand over the requests that need not wait any longer. With no other work, wait a moment
        for one."""
        if not self._coming:
            return
        if not self.engine.has_work:
            next(iter(self._coming.values())).wait(WAIT_S)
        for request_id in [name for name, coming in self._coming.items() if coming.done()]:
            preparation = self._coming.pop(request_id)
            collector, _ = self._waiting[request_id]
            try:
                self.engine.add(collector.request, preparation.result())
            except OckhamError as error:
                self.engine.release(request_id)
                self._idle.forget(request_id)
                collector.error = error
                del self._waiting[request_id]

    def _give_up(self, error: Exception) -> None:
        """A step failed, and left nothing to go on with: all requests end, whoever waits."""
        reason = OckhamError(f"The engine failed in a step ({describe(error)}); ask again.")
        for collector, _ in self._waiting.values():
            collector.error = reason
        for request_id in self._coming:
            self.engine.release(request_id)
        for request_id in self._waiting:
            self._idle.forget(request_id)
        self._coming.clear()
        self._waiting.clear()
        self._batches.clear()
        self.engine.drop_all()
        self._idle.give_way()

    def _deliver(self, deltas: list[Delta]) -> None:
        """Hand deltas to those who wait. What goes wrong with one is told to its own caller."""
        for delta in deltas:
            found = self._waiting.get(delta.request_id)
            if found is None:
                continue  # it ended with an earlier one
            collector, listener = found
            try:
                collector.add(delta)
                if delta.stop_reason == FAULT:
                    collector.error = fault()
                elif listener is not None:
                    listener(collector, delta)
            except Exception as error:
                traceback.print_exception(error)
                collector.error = fault()
                self.engine.abort(delta.request_id)
            if collector.finished or collector.error is not None:
                del self._waiting[delta.request_id]
                batch = self._batches.pop(delta.request_id, None)
                if batch is not None:
                    batch.ended(collector)


class Stream:
    """One prompt's completion as it comes: an iterator of `Delta`s. `output` is all of it so far.

    Closing it, or leaving its `with` block, gives up what has not come yet.
    """

    def __init__(self, driver: Driver, request: Request, prompt: str | None) -> None:
        self._driver = driver
        self._collector = Collector(request, prompt)
        self._news: deque[Delta] = deque()
        driver.submit(self._collector, lambda _, delta: self._news.append(delta))

    @property
    def output(self) -> RequestOutput:
        return self._collector.output()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        while not self._news:
            if self._collector.error is not None:
                raise self._collector.error
            if self._collector.finished:
                raise StopIteration
            self._driver.step(self._collector)
        return self._news.popleft()

    def close(self) -> None:
        self._driver.withdraw(self._collector)
        self._news.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Uninterrupted:
    """Holds Ctrl-C back while a step runs or a request is handed over, and lets it through when
    that is complete, so that an interrupted batch leaves an engine that can go on."""

    def __enter__(self) -> None:
        self._came = False
        in_main = threading.current_thread() is threading.main_thread()
        self._handler = signal.signal(signal.SIGINT, self._note) if in_main else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        if self._came and callable(self._handler):
            self._handler(signal.SIGINT, None)
