"""The protocol between the peers' benchmark and its workers, with a worker that has no engine."""

import time

import psutil
import pytest

from benchmarks.peers.process import WorkerError
from tests.helpers.fake_worker import PAUSES


def test_a_worker_answers_and_what_its_engine_prints_goes_to_the_log(start, tmp_path):
    worker = start("works")
    done = worker.generate([[1, 2], [3, 4]], 5)
    assert done.tokens == [[3] * 5, [7] * 5]
    assert not done.decode_read_rates
    assert "prints on stdout" in (tmp_path / "log").read_text()


def test_a_worker_that_slept_answers_after_it_is_woken(start):
    worker = start("works")
    process = psutil.Process(worker._process.pid)
    worker.sleep()
    with worker.awake():
        assert worker.generate([[1]], 2).tokens == [[1, 1]]
    assert process.status() == psutil.STATUS_STOPPED
    assert worker.peak_bytes() > 1 << 20


def test_pauses_of_a_worker_do_not_count_and_it_stands_still_in_them(start):
    worker = start("is slow")
    process = psutil.Process(worker._process.pid)
    pauses = []

    def sample():
        began = time.perf_counter()
        assert process.status() == psutil.STATUS_STOPPED
        time.sleep(0.1)
        pauses.append(time.perf_counter() - began)
        return len(pauses)

    began = time.perf_counter()
    done = worker.generate([[1]], 2, sample)
    whole_s = time.perf_counter() - began
    assert done.tokens == [[1, 1]]
    # The last of them: one may come before the first token, if the worker had to wait for a core.
    rates = done.decode_read_rates
    assert len(rates) >= PAUSES - 1
    assert rates == list(range(1, len(pauses) + 1))[-len(rates) :]
    assert done.first_s < done.total_s
    assert done.total_s <= whole_s - sum(pauses)


def test_requests_are_served_no_sooner_than_they_arrive(start):
    served = start("works").mixed([(0.0, [1], 2), (0.05, [2], 3)])
    assert [tokens for tokens, _, _ in served] == [2, 3]
    assert served[1][1] > 0.05


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("stops early", r"generated \[4\] tokens where 5 were asked"),
        ("fails", "RuntimeError: out of luck"),
        ("dies", "ended while it was asked to 'generate'"),
    ],
)
def test_an_engine_that_does_not_do_the_work_is_an_error(start, behaviour, complaint):
    with pytest.raises(WorkerError, match=complaint):
        start(behaviour).generate([[1]], 5)


def test_a_worker_that_does_not_answer_is_ended(start):
    worker = start("hangs", timeout_s=30.0)
    process = psutil.Process(worker._process.pid)
    worker._timeout_s = 0.2
    with pytest.raises(WorkerError, match="did not answer 'generate'"):
        worker.generate([[1]], 5)
    assert not process.is_running()


def test_mixed_traffic_that_is_cut_short_is_an_error(start):
    with pytest.raises(WorkerError, match=r"generated \[1\] tokens where \[2\] were asked for"):
        start("stops early").mixed([(0.0, [1], 2)])
