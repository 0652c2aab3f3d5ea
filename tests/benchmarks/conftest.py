"""Workers of the peers' benchmark without an engine."""

import sys

import pytest

from benchmarks.peers.environments import REPOSITORY
from benchmarks.peers.process import Worker

COMMAND = [sys.executable, "-m", "tests.helpers.fake_worker"]


@pytest.fixture
def start(tmp_path):
    workers = []

    def started(behaviour, timeout_s=30.0):
        worker = Worker(COMMAND, tmp_path / "log", {}, timeout_s, REPOSITORY)
        workers.append(worker)
        worker.ask(do="load", path="nowhere", precision=behaviour, threads=1)
        return worker

    yield started
    for worker in workers:
        worker.close()
