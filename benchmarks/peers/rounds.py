"""The run: rounds in which every engine does every workload once, in rotating order.

The unit is a cell: one workload, in one round, by all configurations of the same number of bits,
one right after the other, so that what is compared was measured within a minute. Workers stay
loaded within a round of one number of bits and sleep while another one works. Results are appended
to a file as they come; a cell that is whole there is not run again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import REPOSITORY, Folder, read_files, worker_environment
from benchmarks.peers.limits import Limits, Probe
from benchmarks.peers.others import Others
from benchmarks.peers.peers import BITS, Configuration, of_bits
from benchmarks.peers.process import Worker, WorkerError
from benchmarks.peers.workloads import Batch, FirstToken, Mixed, Workload, prompts, trace
from ockham.kernels.cores import allowed_cores

Record = dict[str, Any]

WARMUP_TOKENS = 32
"""Of a prompt and of its continuation, before a worker's first run that counts: engines allocate
late, and Ockham moves its weights into huge pages a second after loading."""
DISTURBED_SHARE = 0.05
"""A run beside which others used more of the machine than this does not count."""


class Results:
    """The file of results, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = read_records(path)
        self._repaired = False

    def add(self, **record: Any) -> None:
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if not self._repaired:  # a call that was killed may have left half a line
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                self._repaired = True
            file.write(json.dumps(record).encode() + b"\n")

    def has(self, round_: int, workload: str, configurations: list[Configuration]) -> bool:
        """Whether a cell is whole: a run of each that has not failed."""
        there = {
            each["configuration"]
            for each in self.records
            if each["kind"] == "run" and (each["round"], each["workload"]) == (round_, workload)
        }
        return there | self.failed >= {each.name for each in configurations}

    @property
    def failed(self) -> set[str]:
        """Configurations that failed at any time. They are not tried again in the same file."""
        return {each["configuration"] for each in self.records if each["kind"] == "failure"}


def read_records(path: Path) -> list[Record]:
    """What a file of results holds; a last line that was cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@dataclass
class Run:
    """Settings of a run. A configuration that fails is reported and left out from there on."""

    folder: Folder
    configurations: list[Configuration]
    workloads: list[Workload]
    rounds: int
    threads: int
    results: Results
    say: Callable[[str], None]
    deadline: float = float("inf")
    """On the clock of `time.perf_counter`: no cell is begun that would, judged by the longest so
    far, end later."""
    timeout_s: float = 300.0
    _longest_s: float = 0.0

    def execute(self) -> bool:
        """Run what is not there yet; whether all of it is there now."""
        probe = Probe(self.threads)
        for round_ in range(self.rounds):
            for bits in BITS:
                group = of_bits(self.configurations, bits)
                missing = [
                    each
                    for each in self.workloads
                    if not self.results.has(round_, each.name, group)
                ]
                if missing and not self._round(probe, round_, group, missing):
                    return False
        return True

    def _round(
        self, probe: Probe, round_: int, group: list[Configuration], workloads: list[Workload]
    ) -> bool:
        """All missing workloads of one round and number of bits; False if time has run out."""
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for number, workload in enumerate(workloads):
                begun = time.perf_counter()
                if begun + self._longest_s > self.deadline:
                    self.say("time has run out; the same command goes on where this one stopped")
                    return False
                for each in rotated(group, round_ + number):
                    if each.name in self.results.failed:
                        continue
                    try:
                        record = self._measure(probe, round_, each, workload, workers, stack)
                        if record["others_share"] > DISTURBED_SHARE:
                            self.say(f"{each.name} was disturbed and does it once more")
                            record = self._measure(probe, round_, each, workload, workers, stack)
                    except WorkerError as error:
                        self._fail(round_, each, workload, str(error))
                        workers.pop(each.name, None)
                        continue
                    self.results.add(
                        kind="run",
                        round=round_,
                        workload=workload.name,
                        configuration=each.name,
                        unix_s=time.time(),
                        **record,
                    )
                    self.say(f"round {round_}, {workload.name:12} {each.name:20} {told(record)}")
                self._longest_s = max(self._longest_s, time.perf_counter() - begun)
            for name, worker in workers.items():
                self.results.add(
                    kind="memory",
                    round=round_,
                    configuration=name,
                    peak_bytes=worker.peak_bytes(),
                    workloads=[each.name for each in workloads],
                )
        return True

    def _fail(self, round_: int, each: Configuration, workload: Workload, reason: str) -> None:
        self.results.add(
            kind="failure",
            round=round_,
            workload=workload.name,
            configuration=each.name,
            reason=reason,
        )
        self.say(f"{each.title} is left out from here on: {reason}")

    def _measure(
        self,
        probe: Probe,
        round_: int,
        each: Configuration,
        workload: Workload,
        workers: dict[str, Worker],
        stack: contextlib.ExitStack,
    ) -> Record:
        if isinstance(workload, FirstToken):
            read_files(self.folder.model(each))
            with self._sampled(probe) as record, self._worker(each) as fresh:
                self._load(fresh, each)
                (prompt,) = prompts(1, workload.prompt_tokens, f"first-{round_}")
                fresh.generate([prompt], 1)
                record["seconds"] = time.perf_counter() - fresh.started
            return record
        if each.name not in workers:
            worker = stack.enter_context(self._worker(each))
            version = self._load(worker, each)
            self.results.add(kind="version", configuration=each.name, version=version)
            worker.generate(prompts(1, WARMUP_TOKENS, f"warmup-{round_}"), WARMUP_TOKENS)
            worker.sleep()
            workers[each.name] = worker
        worker = workers[each.name]
        with self._sampled(probe) as record, worker.awake():
            record |= work(worker, workload, round_)
        return record

    def _worker(self, each: Configuration) -> Worker:
        return Worker(
            self.folder.worker(each),
            self.folder.log(f"worker-{each.name}"),
            worker_environment(self.threads),
            self.timeout_s,
            REPOSITORY,
        )

    def _load(self, worker: Worker, each: Configuration) -> str:
        path = str(self.folder.model(each).resolve())
        answer = worker.ask(do="load", path=path, precision=each.precision, threads=self.threads)
        return str(answer["version"])

    @contextlib.contextmanager
    def _sampled(self, probe: Probe) -> Iterator[Record]:
        """Adds the machine's limits, of before and after, and what others used of it meanwhile."""
        before = probe.sample()
        record: Record = {}
        with Others(allowed_cores()) as others:
            yield record
        record["limits"] = asdict(Limits.beside(before, probe.sample()))
        record["others_share"] = others.share


def work(worker: Worker, workload: Batch | Mixed, round_: int) -> Record:
    """Have a worker do a workload; what is recorded of it."""
    seed = f"{workload.name}-{round_}"
    if isinstance(workload, Mixed):
        arrivals = trace(workload, seed)
        served = worker.mixed(arrivals)
        waits = [first_s - sent[0] for sent, (_, first_s, _) in zip(arrivals, served, strict=True)]
        return {
            "tokens": sum(new_tokens for _, _, new_tokens in arrivals),
            "prompt_tokens": sum(len(prompt) for _, prompt, _ in arrivals),
            "seconds": max(end_s for _, _, end_s in served),
            "first_token_s": waits,
        }
    batch = prompts(workload.prompts, workload.prompt_tokens, seed)
    answer = worker.generate(batch, workload.new_tokens)
    record = {"first_tokens": [tokens[0] for tokens in answer["tokens"]]}
    if workload.decodes:
        generated = workload.prompts * (workload.new_tokens - 1)
        return record | {"tokens": generated, "seconds": answer["total_s"] - answer["first_s"]}
    return record | {"tokens": workload.prompt_tokens, "seconds": answer["total_s"]}


def rotated(group: list[Configuration], by: int) -> list[Configuration]:
    """The same order, begun elsewhere."""
    start = by % len(group)
    return group[start:] + group[:start]


def told(record: Record) -> str:
    """A run in words."""
    if "tokens" not in record:
        return f"{record['seconds']:.2f} s"
    rate = record["tokens"] / record["seconds"]
    beside = f"{record['limits']['read_bytes_per_s'] / 1e9:.1f} GB/s beside it"
    return f"{rate:8.1f} tokens/s, {beside}, others used {record['others_share']:.0%}"
