"""Compiles grammars beside the engine's loop, with limits, once for each content.

A grammar is first tried in a process of its own, which may be killed: one that takes too long,
needs too much memory or takes the library down is refused, and nothing else notices. What passed
there is compiled here, in a thread.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured.grammar import Grammar
from ockham.engine.structured.vocabulary import GrammarVocabulary
from ockham.engine.structured.worker import LENGTH, Outcome, Vocabulary

COMPILE_S = 5.0
"""What a grammar may take to compile."""
START_S = 60.0
"""What a worker may take to read its vocabulary."""
MOST_KEPT = 64
"""Grammars of which the compiled form is kept."""
_THREADS = 2
_MOST_REASON = 400
"""Characters of the library's reason that are shown."""


class TooSlow(InvalidRequest):
    """A grammar that was given up, which says nothing of what it would do another time."""


class Grammars:
    """The compiled grammars of an engine. Safe to use from several threads."""

    def __init__(
        self, describe: Callable[[], str], size: int, *, compile_s: float = COMPILE_S
    ) -> None:
        """`describe` gives the tokenizer as JSON of the `tokenizers` library, when it is needed;
        there are logits for `size` ids."""
        self._describe = describe
        self._size = size
        self._compile_s = compile_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ockham-grammar")
        self._local = threading.local()
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._described: str | None = None
        self._known: GrammarVocabulary | None = None
        self._found: OrderedDict[bytes, Future[Grammar]] = OrderedDict()
        self.close = weakref.finalize(self, _close, self._threads, self._workers)

    def compile(self, asked: StructuredOutputsParams) -> Future[Grammar]:
        """The grammar, now or later. The future fails with InvalidRequest."""
        key = asked.key
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
                return found
            found = self._found[key] = self._threads.submit(self._compile, asked)
            while len(self._found) > MOST_KEPT:
                self._found.popitem(last=False)
        found.add_done_callback(lambda done: self._forget_failure(key, done))
        return found

    # -- in a thread ---------------------------------------------------------------------------

    def _forget_failure(self, key: bytes, done: Future[Grammar]) -> None:
        """Only what would fail again in the same way is remembered."""
        if done.cancelled() or isinstance(done.exception(), TooSlow):
            with self._lock:
                if self._found.get(key) is done:
                    del self._found[key]

    def _compile(self, asked: StructuredOutputsParams) -> Grammar:
        with self._lock:
            if self._known is None:
                self._described = self._describe()
                self._known = GrammarVocabulary(self._described, self._size)
        outcome = self._worker().try_out(asked, self._compile_s)
        try:
            return Grammar(self._known, outcome.text)
        except ValueError as error:
            raise refusal(str(error)) from None

    def _worker(self) -> Worker:
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is None:
            assert self._described is not None, "the vocabulary is there"
            worker = Worker(Vocabulary(self._described, self._size))
            self._local.worker = worker
            self._workers.append(worker)
        return worker


class Worker:
    """A process in which grammars are tried out; started when needed, and again when it is gone."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def try_out(self, asked: StructuredOutputsParams, most_s: float) -> Outcome:
        """The grammar as llguidance reads it. Raises InvalidRequest with what is wrong."""
        for _ in range(2):  # a process that ended may have done so for another reason
            if self._process is None:
                self._start()
            try:
                outcome = self._ask(asked, most_s)
            except TimeoutError:
                self.kill()
                raise TooSlow(
                    f"the grammar of the output takes longer than {most_s:g} s to compile; make it "
                    "simpler.",
                    "structured_outputs",
                ) from None
            except (OSError, EOFError):
                self.kill()
                continue
            if outcome.wrong:
                raise refusal(outcome.wrong)
            return outcome
        raise refusal("it needs more memory or depth than it may have")

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> None:
        self.kill()
        root = str(Path(__file__).parents[3])
        path = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ockham.engine.structured.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root},
        )
        try:
            outcome = self._ask(self._vocabulary, START_S)
        except (OSError, EOFError, TimeoutError):
            self.kill()
            raise TooSlow(
                "the process that tries grammars out cannot be started; try again later.",
                "structured_outputs",
            ) from None
        if outcome.wrong:
            self.kill()
            raise InvalidRequest(outcome.wrong, "structured_outputs")

    def _ask(self, question: msgspec.Struct, most_s: float) -> Outcome:
        """Raises TimeoutError, or OSError or EOFError if the process is gone."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        body = msgspec.msgpack.encode(question)
        rest = memoryview(LENGTH.pack(len(body)) + body)
        while rest:  # a process that has not read its last question is dead, and this fails
            rest = rest[process.stdin.write(rest) :]
        until_s = time.monotonic() + most_s
        (length,) = LENGTH.unpack(_read(process.stdout, LENGTH.size, until_s))
        return msgspec.msgpack.decode(_read(process.stdout, length, until_s), type=Outcome)


def refusal(reason: str) -> InvalidRequest:
    """What to say of a grammar for which the library gave such a reason."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    reason = " ".join(lines)
    if len(reason) > _MOST_REASON:
        reason = reason[: _MOST_REASON - 3] + "..."
    return InvalidRequest(
        f"the grammar of the output cannot be compiled: {reason.rstrip('.')}.", "structured_outputs"
    )


def _read(pipe: IO[bytes], count: int, until_s: float) -> bytes:
    found = b""
    number = pipe.fileno()
    while len(found) < count:
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([number], [], [], left_s)[0]:
            raise TimeoutError
        new = os.read(number, count - len(found))
        if not new:
            raise EOFError
        found += new
    return found


def _close(threads: ThreadPoolExecutor, workers: list[Worker]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.kill()
