"""The run: rounds in which every engine embeds every workload once, in rotating order.

All engines are loaded and sleep while another one works. In a round they do a workload one right
after the other, so that what is compared was measured within seconds.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.embedding.documents import Count, Workload, documents, token_counts, words_of
from benchmarks.embedding.engines import REFERENCE, Configuration, model_path, worker_command
from benchmarks.peers.environments import REPOSITORY, Folder, worker_environment
from benchmarks.peers.others import Others
from benchmarks.peers.process import Worker, WorkerError
from benchmarks.peers.results import DISTURBED_SHARE, Record, Results
from benchmarks.peers.rounds import SETTLE_S, rotated
from ockham.core.arrays import Floats
from ockham.kernels.cores import allowed_cores

TRIES = 2
"""Of a run that others disturbed; the last one is recorded whatever it is."""


@dataclass
class Run:
    """Settings of a run. A configuration that fails is reported and left out from there on."""

    folder: Folder
    configurations: list[Configuration]
    workloads: list[Workload]
    rounds: int
    threads: int
    results: Results
    count: Count
    say: Callable[[str], None]
    timeout_s: float = 300.0

    def execute(self) -> None:
        words = words_of()
        with contextlib.ExitStack() as stack:
            workers = self._load(stack)
            out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for round_ in range(self.rounds):
                for number, workload in enumerate(self.workloads):
                    seed = f"{workload.name}-{round_}"
                    texts = documents(workload, words, self.count, seed)
                    tokens = sum(token_counts(workload, seed))
                    group = [each for each in self.configurations if each.name in workers]
                    found: dict[str, tuple[Record, Floats]] = {}
                    for each in rotated(group, round_ + number):
                        try:
                            found[each.name] = self._measure(
                                workers[each.name], workload, texts, out
                            )
                        except WorkerError as error:
                            self._fail(each, str(error))
                            del workers[each.name]
                        else:
                            self._tell(round_, workload, each, found[each.name][0])
                    self._record(round_, workload, tokens, found)

    def _load(self, stack: contextlib.ExitStack) -> dict[str, Worker]:
        """Start all workers, warm them up and put them to sleep."""
        workers = {}
        for each in self.configurations:
            worker = stack.enter_context(
                Worker(
                    worker_command(self.folder, each),
                    self.folder.log(f"worker-{each.name}"),
                    worker_environment(self.threads),
                    self.timeout_s,
                    REPOSITORY,
                )
            )
            path = str(model_path(self.folder, each).resolve())
            try:
                loaded = worker.ask(
                    do="load", path=path, precision=each.precision, threads=self.threads
                )
                with tempfile.NamedTemporaryFile(suffix=".npy") as out:
                    worker.ask(do="embed", texts=["Warm."] * 8, one_by_one=False, out=out.name)
            except WorkerError as error:
                self._fail(each, str(error))
                continue
            self.results.add(kind="version", configuration=each.name, version=loaded["version"])
            workers[each.name] = worker
            time.sleep(SETTLE_S)
            worker.sleep()
        return workers

    def _measure(
        self, worker: Worker, workload: Workload, texts: list[str], folder: Path
    ) -> tuple[Record, Floats]:
        """What is recorded of one run, and the embeddings."""
        out = folder / "found.npy"
        for _ in range(TRIES):
            with self._sampled() as record, worker.awake():
                answer = worker.ask(
                    do="embed", texts=texts, one_by_one=workload.one_by_one, out=str(out)
                )
            if record["others_share"] <= DISTURBED_SHARE:
                break
        record["seconds"] = answer["end"] - answer["start"]
        return record, np.load(out)

    @contextlib.contextmanager
    def _sampled(self) -> Iterator[Record]:
        """Adds what others used of the machine meanwhile."""
        record: Record = {}
        with Others(allowed_cores()) as others:
            yield record
        record["others_share"] = others.share

    def _record(
        self,
        round_: int,
        workload: Workload,
        tokens: int,
        found: dict[str, tuple[Record, Floats]],
    ) -> None:
        exact = found[REFERENCE][1] if REFERENCE in found else None
        for name, (record, vectors) in found.items():
            if exact is not None:
                record |= nearness(vectors, exact)
            self.results.add(
                kind="run",
                round=round_,
                workload=workload.name,
                configuration=name,
                documents=workload.documents,
                tokens=tokens,
                **record,
            )

    def _tell(self, round_: int, workload: Workload, each: Configuration, record: Record) -> None:
        rate = workload.documents / record["seconds"]
        self.say(
            f"round {round_}, {workload.name:10} {each.name:28} {rate:8.1f} documents/s, "
            f"others used {record['others_share']:.0%}"
        )

    def _fail(self, each: Configuration, reason: str) -> None:
        self.results.add(kind="failure", configuration=each.name, reason=reason)
        self.say(f"{each.title} is left out from here on: {reason}")


def nearness(vectors: Floats, exact: Floats) -> Record:
    """How near embeddings are to the reference's, both (texts, dimensions): the mean and the lowest
    cosine, and the largest difference of a value. Raises ValueError for other shapes."""
    if vectors.shape != exact.shape:
        raise ValueError(f"embeddings of the shape {vectors.shape} beside {exact.shape}.")
    # An engine that computes in 16 bits gives them a length that is not quite 1.
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(exact, axis=1)
    cosines = (vectors.astype(np.float64) * exact).sum(axis=1) / lengths
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "largest_difference": float(np.abs(vectors - exact).max()),
    }
