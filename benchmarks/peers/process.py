"""The controller's side of the protocol: a worker process, with what it says checked."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PAUSE_EVERY_S = 0.25
"""Between two looks at the machine while an engine works."""


class WorkerError(Exception):
    """An engine failed, stopped early or did not answer in time."""


@dataclass(frozen=True)
class Done:
    """What a batch gave, and the seconds that it took, pauses taken away.

    `decode_read_rates`: what was sampled in the pauses after `first_s`, when all sequences had
    their first token.
    """

    tokens: list[list[int]]
    first_s: float
    total_s: float
    decode_read_rates: list[float]


@dataclass(frozen=True)
class Pause:
    """A time in which the worker was stopped, and what was sampled in it."""

    start: float
    end: float
    sampled: float

    def within(self, start: float, end: float) -> float:
        """Its seconds between two moments."""
        return max(0.0, min(self.end, end) - max(self.start, start))


class Worker:
    """A worker process. Raises WorkerError for everything that it does wrong, and is dead then.

    Between requests it can be put to sleep (SIGSTOP), so that threads that spin disturb nobody.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: dict[str, str],
        timeout_s: float,
        folder: Path,
    ) -> None:
        """Starts in `folder`. `log` takes what the engine prints; an answer must come within
        `timeout_s`."""
        self._timeout_s = timeout_s
        self._log = log
        self.started = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env={**os.environ, **environment},
            )
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._stdout, selectors.EVENT_READ)
        self._buffer = b""

    @property
    def _stdout(self) -> Any:
        assert self._process.stdout is not None, "stdout is a pipe"
        return self._process.stdout

    def ask(
        self,
        *,
        pauses: list[Pause] | None = None,
        sample: Callable[[], float] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Send a request and wait for its answer.

        With `sample` the worker is stopped again and again meanwhile, and `pauses` are told what
        that gave.
        """
        assert self._process.stdin is not None, "stdin is a pipe"
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended before it was asked") from None
        answer: dict[str, Any] = json.loads(self._line(request["do"], pauses, sample))
        if "error" in answer:
            raise self._failed(f"answered {request['do']!r} with {answer['error']!r}")
        return answer

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        sample: Callable[[], float] | None = None,
    ) -> Done:
        """Have prompts continued; what comes holds exactly the tokens that were asked for.

        `sample` measures the machine, in pauses of the engine that do not count.
        """
        pauses: list[Pause] = []
        request = {"do": "generate", "prompts": prompts, "new_tokens": new_tokens}
        answer = self.ask(pauses=pauses, sample=sample, **request)
        counts = [len(tokens) for tokens in answer["tokens"]]
        if counts != [new_tokens] * len(prompts):
            raise self._failed(
                f"generated {counts} tokens where {new_tokens} were asked for each of "
                f"{len(prompts)} prompts"
            )
        start, first, end = (answer[name] for name in ("start", "first", "end"))
        if not start < first <= end:
            raise self._failed(f"told moments that are out of order: {start}, {first}, {end}")
        return Done(
            answer["tokens"],
            first - start - sum(each.within(start, first) for each in pauses),
            end - start - sum(each.within(start, end) for each in pauses),
            [each.sampled for each in pauses if first <= each.start < end],
        )

    def mixed(self, trace: list[tuple[float, list[int], int]]) -> list[list[float]]:
        """Have a trace served: tokens, seconds of the first token and of the end of each."""
        served: list[list[float]] = self.ask(do="mixed", trace=trace)["served"]
        wanted = [new_tokens for _, _, new_tokens in trace]
        counts = [tokens for tokens, _, _ in served]
        if counts != wanted:
            raise self._failed(f"generated {counts} tokens where {wanted} were asked for")
        for (arrival_s, _, _), (_, first_s, end_s) in zip(trace, served, strict=True):
            if not arrival_s < first_s <= end_s:
                raise self._failed(f"served at {first_s} s what arrived at {arrival_s} s")
        return served

    def returning(
        self, requests: list[tuple[list[int], int]], at_once: int, reuse: bool
    ) -> list[list[float]]:
        """Have requests served, so many at once: tokens, seconds of the beginning, of the first
        token and of the end of each."""
        answer = self.ask(do="returning", requests=requests, at_once=at_once, reuse=reuse)
        served: list[list[float]] = answer["served"]
        wanted, counts = [tokens for _, tokens in requests], [tokens for tokens, *_ in served]
        if counts != wanted:
            raise self._failed(f"generated {counts} tokens where {wanted} were asked for")
        for _, begun_s, first_s, end_s in served:
            if not 0 <= begun_s < first_s <= end_s:
                raise self._failed(f"told moments that are out of order: {begun_s}, {first_s}")
        return served

    def drafts(self, prompt: list[int], new_tokens: int, drafted: int) -> tuple[list[int], float]:
        """Have a prompt continued with up to `drafted` drafted tokens a step: the tokens, and the
        seconds of those after the first."""
        answer = self.ask(do="drafts", prompt=prompt, new_tokens=new_tokens, drafted=drafted)
        tokens: list[int] = answer["tokens"]
        if len(tokens) != new_tokens:
            raise self._failed(f"generated {len(tokens)} tokens where {new_tokens} were asked for")
        start, first, end = (answer[name] for name in ("start", "first", "end"))
        if not start < first < end:
            raise self._failed(f"told moments that are out of order: {start}, {first}, {end}")
        return tokens, end - first

    def peak_bytes(self) -> int:
        """The most memory that the process and its children had resident, pages of mapped files
        included."""
        processes = [psutil.Process(self._process.pid)]
        processes += processes[0].children(recursive=True)
        return sum(_high_water_bytes(each.pid) for each in processes)

    def sleep(self) -> None:
        """Stop all threads of the worker; returns when they have stopped (or it has ended)."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Wake a worker that sleeps, for a while."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.sleep()

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._answers.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):  # a request that was never read
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(
        self, what: str, pauses: list[Pause] | None, sample: Callable[[], float] | None
    ) -> bytes:
        deadline = time.perf_counter() + self._timeout_s
        while b"\n" not in self._buffer:
            left_s = max(0.0, deadline - time.perf_counter())
            if not self._answers.select(left_s if sample is None else min(left_s, PAUSE_EVERY_S)):
                if time.perf_counter() >= deadline:
                    raise self._failed(f"did not answer {what!r} in {self._timeout_s:.0f} s")
                if sample is not None and pauses is not None:
                    pauses.append(self._pause(sample))
                continue
            chunk = os.read(self._stdout.fileno(), 1 << 20)
            if not chunk:
                raise self._failed(f"ended while it was asked to {what!r}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _pause(self, sample: Callable[[], float]) -> Pause:
        start = time.perf_counter()
        self.sleep()
        sampled = sample()
        self._process.send_signal(signal.SIGCONT)
        return Pause(start, time.perf_counter(), sampled)

    def _failed(self, what: str) -> WorkerError:
        self.close()
        return WorkerError(f"the worker {what}; {self._log} holds what it printed.")


def _high_water_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
