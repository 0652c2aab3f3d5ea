"""Programs that models write: what they give, and that they can do nothing but compute."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ockham.core.confined import ConfinedLimits
from ockham.core.errors import WorkerError
from ockham.engine.programs import Programs


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    found = Programs(ConfinedLimits(cpu_s=1, wall_s=10.0, memory_bytes=1 << 29))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("program", "calls", "outputs"),
    [
        ("def f(x): return x + 1", ["f(1)", "f('a')"], ("2", "raises TypeError")),
        ("f = lambda x: {'b': x / 2, 'a': 0.1 + 0.2}", ["f(4)"], ("{'a': 0.3, 'b': 2}",)),
        ("f = lambda x: {'c', 'a', 'b'}", ["f(0)"], ("{'a', 'b', 'c'}",)),
        ("class A: pass\ndef f(): return A", ["f()"], ("<class '__main__.A'>",)),
        ("class A: pass\nf = lambda: [A()]", ["f()"], ("[<__main__.A object>]",)),
        ("def f(x): print('so', x)", ["f(1)"], ("so 1",)),
        ("def f(x):\n  print('debug')\n  return x", ["f(1)"], ("1",)),
        ("print(sum(range(4)))", [], ("6",)),
        ("import math\nfrom collections import Counter", ["math.pi", "Counter('aa')"], None),
        ("import random\nf = lambda: random.random()", ["f()"], None),
        ("f = lambda: 'x' * 9000", ["f()"], None),
    ],
)
def test_a_program_gives_the_same_whenever_it_is_run(
    programs: Programs, program: str, calls: list[str], outputs: tuple[str, ...] | None
) -> None:
    first, second = (programs.submit(program, calls).result(30) for _ in range(2))
    assert first == second
    assert outputs is None or first == outputs
    assert all(len(each) < 600 for each in first)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def f(x) return x", "SyntaxError"),
        ("def g(x): return x", "NameError"),
        ("import numpy\ndef f(x): return x", "ModuleNotFoundError"),
        ("while True: pass", "1 s of processor time"),
        ("print('x' * 10**9)", "MemoryError"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "printed more than 65536 bytes"),
        ("f = lambda x: [0] * 10**10", "MemoryError"),
        ("def f(x): return f(x)", "RecursionError"),
        ("import os\nos._exit(0)", "it ended by itself"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import ctypes\nctypes.string_at(0)", "signal 11"),
        ("x = []\nfor _ in range(10**5): x = [x]\nf = lambda y: x", "ValueError"),
    ],
)
def test_a_program_that_fails_gives_a_reason(programs: Programs, program: str, said: str) -> None:
    with pytest.raises(WorkerError, match=said):
        programs.submit(program, ["f(1)"]).result(30)


@pytest.mark.parametrize(
    "program",
    [
        "def f(): return open('/etc/passwd').read()",
        "import os\ndef f(): return os.listdir('/')",
        "import os\ndef f(): return os.fork()",
        "import os\ndef f(): return os.kill(os.getpid(), 9)",
        "import os\ndef f(): return os.kill(os.getppid(), 0)",
        "import os\ndef f(): return os.execv('/bin/true', ['true'])",
        "import os\ndef f(): return os.open('/tmp/left', os.O_CREAT)",
        "import _socket\ndef f(): return _socket.socket()",
        "import subprocess\ndef f(): return subprocess.run(['true'])",
        "import _thread\ndef f(): return _thread.start_new_thread(print, ())",
    ],
)
def test_a_program_can_do_nothing_but_compute(programs: Programs, program: str) -> None:
    with pytest.raises(
        WorkerError, match=r"\((PermissionError|ModuleNotFoundError|RuntimeError|error)\)"
    ):
        programs.submit(program, ["f()"]).result(30)


def test_what_nobody_waits_for_is_not_run(programs: Programs) -> None:
    waiting = [programs.submit(f"while {number + 1}: pass", ["f()"]) for number in range(20)]
    for each in waiting:
        each.cancel()
    began = time.monotonic()
    assert programs.submit("", ["1"]).result(30) == ("1",)
    assert time.monotonic() - began < 5


def test_who_waits_is_told_when_they_are_closed() -> None:
    programs = Programs()
    waiting = [programs.submit("while True: pass", []) for _ in range(4)]
    programs.close()
    for each in waiting:
        with pytest.raises(WorkerError, match=r"stopped|no output"):
            each.result(10)
