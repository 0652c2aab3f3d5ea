"""The run: rounds in which every configuration reads the same prompt once, in rotating order.

A worker process for each engine stays loaded with the model of a workload, and sleeps while the
other one works.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.long.configurations import CONVERTED, Configuration, configurations
from benchmarks.long.workloads import Encode, Prompt, Workload, prompt
from benchmarks.peers.environments import REPOSITORY, Folder, read_files, worker_environment
from benchmarks.peers.others import Others
from benchmarks.peers.process import Worker, WorkerError
from benchmarks.peers.results import Record, Results
from benchmarks.peers.rounds import rotated
from ockham.kernels.cores import allowed_cores

CLOCKS = {"wall": 0, "processor": 1}
"""Where a moment has each (workers/serve.py)."""
Decode = Callable[[list[int]], str]


@dataclass
class Run:
    """Settings of a run. A configuration that fails is reported, and the run goes on without it."""

    folder: Folder
    names: set[str]
    workloads: list[Workload]
    rounds: range
    threads: int
    results: Results
    encode: Encode
    decode: Decode
    say: Callable[[str], None]
    deadline: float = float("inf")
    """On the clock of `time.perf_counter`: no round is begun that would end later, if it takes what
    the one before it took."""
    timeout_s: float = 600.0

    def execute(self) -> None:
        for workload in self.workloads:
            group = [each for each in configurations(workload) if each.name in self.names]
            with contextlib.ExitStack() as stack:
                workers: dict[str, Worker] = {}
                for engine in dict.fromkeys(each.engine for each in group):
                    with contextlib.suppress(WorkerError):
                        workers[engine] = self._loaded(stack, engine, workload)
                took_s = 0.0
                for round_ in self.rounds:
                    begun = time.perf_counter()
                    if begun + took_s > self.deadline:
                        self.say(f"no time is left for round {round_} of {workload.name}")
                        break
                    asked = prompt(workload, round_, self.encode)
                    for each in rotated(group, round_):
                        if each.engine in workers:
                            self._one(workers, each, workload, round_, asked)
                    took_s = time.perf_counter() - begun

    def _loaded(self, stack: contextlib.ExitStack, engine: str, workload: Workload) -> Worker:
        converted = CONVERTED[engine]
        path = self.folder.model(converted, workload.checkpoint)
        read_files(path)
        module = f"benchmarks.long.workers.{engine}"
        command = [self.folder.worker(converted)[0], "-m", module]
        worker = Worker(
            command,
            self.folder.log(f"long-{engine}"),
            worker_environment(self.threads),
            self.timeout_s,
            REPOSITORY,
        )
        stack.callback(worker.close)
        try:
            answer = worker.ask(
                do="load", path=str(path.resolve()), precision="int8", threads=self.threads
            )
        except WorkerError as error:
            self._fail(engine, workload, str(error))
            raise
        self.results.add(kind="version", configuration=engine, version=answer["version"])
        worker.sleep()
        return worker

    def _one(
        self,
        workers: dict[str, Worker],
        each: Configuration,
        workload: Workload,
        round_: int,
        asked: Prompt,
    ) -> None:
        worker = workers[each.engine]
        try:
            with worker.awake():
                worker.ask(do="prepare", settings=each.settings)
                with Others(allowed_cores()) as others:
                    answer = worker.ask(
                        do="read", prompt=asked.tokens, new_tokens=workload.new_tokens
                    )
            record = self._record(workload, asked, answer) | {"others_share": others.share}
        except WorkerError as error:
            # The worker is dead; its engine's other configurations go on in the next call.
            self._fail(each.name, workload, str(error))
            del workers[each.engine]
            return
        self.results.add(
            kind="run",
            round=round_,
            workload=workload.name,
            configuration=each.name,
            **record,
        )
        self.say(
            f"round {round_}, {workload.name:13} {each.name:24} "
            f"{record['wall']['first_s']:7.2f} s ({record['processor']['first_s']:.2f} of the "
            f"processor), then {record['wall']['token_s'] * 1e3:6.1f} ms a token "
            f"({record['processor']['token_s'] * 1e3:.1f}), others used {others.share:.0%}"
        )

    def _record(self, workload: Workload, asked: Prompt, answer: Record) -> Record:
        """What is kept of an answer. Raises WorkerError where it is none."""
        tokens, moments = answer["tokens"], answer["moments"]
        if len(tokens) != workload.new_tokens or len(moments) != len(tokens):
            raise WorkerError(
                f"{len(tokens)} tokens came in {len(moments)} moments, of "
                f"{workload.new_tokens} that were asked for."
            )
        record: Record = {
            "prompt_tokens": len(asked.tokens),
            "tokens": tokens,
            "told": answer["told"],
        }
        for clock, place in CLOCKS.items():
            start = answer["start"][place]
            at = [moment[place] for moment in moments]
            # What drops tokens does so before the second one.
            gaps = [later - moment for moment, later in pairwise(at[1:])]
            record[clock] = {
                "first_s": at[0] - start,
                "token_s": statistics.median(gaps),
                "whole_s": at[-1] - start,
            }
        if asked.question is not None:
            record["score"] = asked.question.score(self.decode(tokens))
        return record

    def _fail(self, name: str, workload: Workload, reason: str) -> None:
        self.results.add(kind="failure", configuration=name, workload=workload.name, reason=reason)
        self.say(f"{name} on {workload.name}: {reason}")
