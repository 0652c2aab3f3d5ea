"""The share of the processor that others used."""

import subprocess
import sys
import time

from benchmarks.peers.others import Others, own_s

SPIN = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


def test_what_a_child_used_is_ours_while_it_runs_and_after():
    before_s = own_s()
    with subprocess.Popen(
        [sys.executable, "-c", SPIN.format(0.3) + "\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        assert own_s() - before_s >= 0.28
        child.communicate(b"\n")
    assert own_s() - before_s >= 0.28


def test_what_a_process_of_somebody_else_uses_is_that_of_others():
    # Started twice removed, so that it is not below this process when the time is taken.
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SPIN.format(2)!r}])"
    subprocess.run([sys.executable, "-c", start], check=True)
    with Others(cores=1) as others:
        time.sleep(0.5)
    assert 0.05 < others.share <= 1.0
