"""The run: rounds in which every engine does every workload once, in rotating order.

The unit is a cell: one workload, in one round, by all configurations of the same number of bits,
one right after the other, so that what is compared was measured within a minute or two. Workers
stay loaded within a round of one number of bits and sleep while another one works. Results are
appended to a file as they come; a cell that is whole and undisturbed there is not run again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from benchmarks.peers.drafts import foretold
from benchmarks.peers.environments import REPOSITORY, Folder, read_files, worker_environment
from benchmarks.peers.limits import Limits, Probe
from benchmarks.peers.others import Others
from benchmarks.peers.peers import BITS, PEERS, Configuration
from benchmarks.peers.process import Worker, WorkerError
from benchmarks.peers.results import DISTURBED_SHARE, Record, Results, beside_bytes_per_s
from benchmarks.peers.shared import requests, warm_requests
from benchmarks.peers.workloads import (
    Batch,
    Drafts,
    FirstToken,
    Mixed,
    Returning,
    Warm,
    Workload,
    prompts,
    takes_part,
    trace,
)
from ockham.kernels.cores import allowed_cores

T = TypeVar("T")

WARMUP_TOKENS = 32
"""Of a prompt and of its continuation, before a worker's first run that counts: engines allocate
late, and Ockham moves its weights into huge pages a second after loading."""
SETTLE_S = 2.0
"""What workers then have for what they do in the background, before they are put to sleep."""


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
    """On the clock of `time.perf_counter`: no cell is begun that is expected to end later."""
    timeout_s: float = 300.0

    def execute(self) -> bool:
        """Run what is not there yet; whether all of it is there now."""
        probe = Probe(self.threads)
        whole = True
        for round_ in range(self.rounds):
            for bits in BITS:
                missing = self._missing(round_, bits)
                if any(self._fits(each, bits) for each in missing):
                    self._round(probe, round_, bits, missing)
                if self._missing(round_, bits):
                    whole = False
        return whole

    def _missing(self, round_: int, bits: int) -> list[Workload]:
        return [
            each
            for each in self.workloads
            if not self.results.has(round_, each.name, self._group(each, bits))
        ]

    def _group(self, workload: Workload, bits: int) -> list[Configuration]:
        return [
            each for each in self.configurations if each.bits == bits and takes_part(each, workload)
        ]

    def _fits(self, workload: Workload, bits: int) -> bool:
        expected_s = self.results.expected_s(workload.name, bits)
        return time.perf_counter() + expected_s < self.deadline

    def _round(self, probe: Probe, round_: int, bits: int, workloads: list[Workload]) -> None:
        """All workloads of one round and number of bits for which there is time."""
        done: list[str] = []
        peaks: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for workload in workloads:
                if not self._fits(workload, bits):
                    self.say(f"no time is left for round {round_}, {workload.name}, {bits} bits")
                    continue
                begun, cell = time.perf_counter(), time.time()
                group = self._group(workload, bits)
                if not isinstance(workload, FirstToken):
                    self._load_missing(round_, group, workload, workers, stack)
                which = "answering " if isinstance(workload, Drafts) else ""
                for each in rotated(group, round_ + self.workloads.index(workload)):
                    if each.name in self.results.failed:
                        continue
                    try:
                        record = self._measure(probe, round_, each, workload, workers)
                        if record["others_share"] > DISTURBED_SHARE:
                            self.say(f"{each.name} was disturbed and does it once more")
                            record = self._measure(
                                probe, round_, each, workload, workers, again=True
                            )
                    except WorkerError as error:
                        self._fail(round_, each, workload, str(error))
                        workers.pop(which + each.name, None)
                        continue
                    self.results.add(
                        kind="run",
                        round=round_,
                        workload=workload.name,
                        configuration=each.name,
                        cell=cell,
                        **record,
                    )
                    self.say(f"round {round_}, {workload.name:12} {each.name:20} {told(record)}")
                self.results.add(
                    kind="cell",
                    round=round_,
                    workload=workload.name,
                    bits=bits,
                    seconds=time.perf_counter() - begun,
                )
                if isinstance(workload, (Returning, Warm, Drafts)):
                    continue  # engines are loaded once more, which says nothing about their memory
                done.append(workload.name)
                peaks = {name: worker.peak_bytes() for name, worker in workers.items()}
            for name, peak in peaks.items():
                self.results.add(
                    kind="memory",
                    round=round_,
                    configuration=name,
                    peak_bytes=peak,
                    workloads=done,
                )

    def _fail(self, round_: int, each: Configuration, workload: Workload, reason: str) -> None:
        self.results.add(
            kind="failure",
            round=round_,
            workload=workload.name,
            configuration=each.name,
            reason=reason,
        )
        self.say(f"{each.title} is left out from here on: {reason}")

    def _load_missing(
        self,
        round_: int,
        group: list[Configuration],
        workload: Workload,
        workers: dict[str, Worker],
        stack: contextlib.ExitStack,
    ) -> None:
        """Start the workers that are not there yet, warm them up and put them to sleep."""
        fresh = []
        answering = isinstance(workload, Drafts)
        for each in group:
            name = f"{'answering ' * answering}{each.name}"
            if name in workers or each.name in self.results.failed:
                continue
            try:
                worker = stack.enter_context(self._worker(each))
                version = self._load(worker, each, answering)
                worker.generate(prompts(1, WARMUP_TOKENS, f"warmup-{round_}"), WARMUP_TOKENS)
            except WorkerError as error:
                self._fail(round_, each, workload, str(error))
                continue
            self.results.add(kind="version", configuration=each.name, version=version)
            workers[name] = worker
            fresh.append(worker)
        if fresh:
            time.sleep(SETTLE_S)
        for worker in fresh:
            worker.sleep()

    def _measure(
        self,
        probe: Probe,
        round_: int,
        each: Configuration,
        workload: Workload,
        workers: dict[str, Worker],
        again: bool = False,
    ) -> Record:
        if isinstance(workload, FirstToken):
            read_files(self.folder.model(each))
            with self._sampled(probe) as record, self._worker(each) as fresh:
                self._load(fresh, each)
                (prompt,) = prompts(1, workload.prompt_tokens, f"first-{round_}")
                fresh.generate([prompt], 1)
                record["seconds"] = time.perf_counter() - fresh.started
            return record
        if isinstance(workload, Drafts):
            worker = workers[f"answering {each.name}"]
            with self._sampled(probe) as record, worker.awake():
                record |= serve_drafts(worker, workload, round_, PEERS[each.peer].drafts)
            return record
        worker = workers[each.name]
        with self._sampled(probe) as record, worker.awake():
            if isinstance(workload, (Returning, Warm)):
                record |= serve_returning(worker, workload, 2 * round_ + again)
            else:
                record |= work(worker, workload, round_, probe.read_rate)
        return record

    def _worker(self, each: Configuration) -> Worker:
        return Worker(
            self.folder.worker(each),
            self.folder.log(f"worker-{each.name}"),
            worker_environment(self.threads),
            self.timeout_s,
            REPOSITORY,
        )

    def _load(self, worker: Worker, each: Configuration, answering: bool = False) -> str:
        path = str(self.folder.model(each, "answering" if answering else "").resolve())
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


def work(
    worker: Worker, workload: Batch | Mixed, round_: int, read_rate: Callable[[], float]
) -> Record:
    """Have a worker do a workload; what is recorded of it. `read_rate` samples the bandwidth, which
    bounds decoding and drifts from one second to the next: in pauses of the run itself."""
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
    done = worker.generate(batch, workload.new_tokens, read_rate if workload.decodes else None)
    record: Record = {"first_tokens": [tokens[0] for tokens in done.tokens]}
    if not workload.decodes:
        return record | {"tokens": workload.prompt_tokens, "seconds": done.total_s}
    return record | {
        "tokens": workload.prompts * (workload.new_tokens - 1),
        "seconds": done.total_s - done.first_s,
        "read_rates": done.decode_read_rates,
    }


def serve_returning(worker: Worker, workload: Returning | Warm, seed: int) -> Record:
    """Have a worker serve prompts that share text; what is recorded of it. Each call needs a seed
    of its own, because engines remember prompts."""
    if isinstance(workload, Warm):
        asked, at_once, reuse = warm_requests(workload, seed), 1, True
    else:
        asked, at_once, reuse = requests(workload, seed), workload.at_once, workload.reuse
    served = worker.returning(asked, at_once, reuse)
    return {
        "tokens": sum(new_tokens for _, new_tokens in asked),
        "prompt_tokens": sum(len(prompt) for prompt, _ in asked),
        "seconds": max(end_s for *_, end_s in served),
        "first_token_s": [first_s - begun_s for _, begun_s, first_s, _ in served],
    }


def serve_drafts(worker: Worker, workload: Drafts, round_: int, settings: Sequence[int]) -> Record:
    """Have a worker continue each prompt without drafts and with each of its settings, in turn;
    what is recorded of it: the tokens after the first ones, their seconds, and the seconds with
    drafts by setting. `differ` counts the answers that drafts have changed."""
    seconds = dict.fromkeys((0, *settings), 0.0)
    count = differ = 0
    for number, (prompt, new_tokens) in enumerate(foretold(workload, round_)):
        answers = {}
        for drafted in rotated(list(seconds), number):
            answers[drafted], decode_s = worker.drafts(prompt, new_tokens, drafted)
            seconds[drafted] += decode_s
        differ += sum(answer != answers[0] for answer in answers.values())
        count += new_tokens - 1
    plain_s = seconds.pop(0)
    return {"tokens": count, "seconds": plain_s, "drafted_s": seconds, "differ": differ}


def rotated(group: list[T], by: int) -> list[T]:
    """The same order, begun elsewhere."""
    start = by % len(group)
    return group[start:] + group[:start]


def told(record: Record) -> str:
    """A run in words."""
    if "tokens" not in record:
        return f"{record['seconds']:.2f} s"
    rate = record["tokens"] / record["seconds"]
    beside = f"{beside_bytes_per_s(record) / 1e9:.1f} GB/s beside it"
    return f"{rate:8.1f} tokens/s, {beside}, others used {record['others_share']:.0%}"
