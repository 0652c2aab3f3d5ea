"""Programs that are run with limits: what they may do, and what is left of them."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from ockham.core import confine, confined
from ockham.core.confined import Confined, ConfinedLimits
from ockham.core.errors import ConfigError, LimitExceeded, TaskFailed

LIMITS = ConfinedLimits(cpu_s=1, wall_s=3.0, memory_bytes=1 << 29, output_bytes=1000)


def ran(code: str, given: bytes = b"", limits: ConfinedLimits = LIMITS) -> bytes:
    program = Confined([sys.executable, "-c", code], limits)
    try:
        return program.submit(given).result()
    finally:
        program.close()


def test_a_program_reads_and_answers() -> None:
    code = "import sys; print(len(sys.stdin.read()))"
    assert ran(code, b"x" * 1_000_000) == b"1000000\n"
    assert ran("print(1)", b"x" * 1_000_000) == b"1\n"  # which nobody reads


def test_what_it_says_with_its_last_breath_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it ends between two looks at what it says."""
    monkeypatch.setattr(confined, "_LOOK_S", 0.0)
    codes = [f"import time; time.sleep({0.001 * n}); print({n})" for n in range(30)]
    assert [ran(code) for code in codes] == [b"%d\n" % n for n in range(30)]


def test_it_opens_no_socket() -> None:
    """Neither itself nor by another program; what listens on this machine is not reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        with pytest.raises(TaskFailed, match="Operation not permitted"):
            ran(reach)
        inside = (
            f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {reach!r}]))"
        )
        with pytest.raises(TaskFailed, match="status 1"):
            ran(inside)
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    with pytest.raises(TaskFailed, match="Operation not permitted"):
        ran("import socket; socket.socketpair()")


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("while True: pass", "CPU time"),
        ("import time; time.sleep(60)", "wall time"),
        ("while True: print('y' * 1000)", "output"),
        ("import sys\nwhile True: sys.stderr.write('y' * 1000)", "output"),
        ("import os; os.close(1); os.close(2); import time; time.sleep(60)", "wall time"),
    ],
)
def test_it_is_ended_at_its_limits(code: str, limit: str) -> None:
    began = time.monotonic()
    with pytest.raises(LimitExceeded) as error:
        ran(code)
    assert error.value.limit == limit
    assert time.monotonic() - began < 10


def test_it_has_no_more_memory() -> None:
    with pytest.raises(TaskFailed, match="MemoryError"):
        ran("x = bytearray(1 << 30)")


def test_it_writes_no_large_file(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed):
        ran(f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(64 << 20))")
    assert (tmp_path / "big").stat().st_size <= 16 << 20


def test_what_it_began_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "import subprocess, os\n"
        "try: os.setsid()\nexcept PermissionError: pass\n"
        f"child = subprocess.Popen(['sleep', '60'])\nopen({str(mark)!r}, 'w').write(str(child.pid))"
    )
    assert ran(code) == b""
    pid = int(mark.read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":  # killed; whoever adopted it has yet to look
            return
        time.sleep(0.05)
    raise AssertionError("a child outlives its program")


def test_it_is_given_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCKHAM_API_KEY", "secret")
    said = ran("import os; print(sorted(os.environ))").decode()
    assert "OCKHAM_API_KEY" not in said
    assert "PATH" in said


def test_what_fails_says_why() -> None:
    with pytest.raises(TaskFailed, match="status 3: no luck"):
        ran("import sys; sys.stderr.write('no luck'); sys.exit(3)")
    with pytest.raises(TaskFailed, match="signal 9"):
        ran("import os; os.kill(os.getpid(), 9)")


def test_closing_ends_what_runs() -> None:
    program = Confined([sys.executable, "-c", "import time; time.sleep(60)"], ConfinedLimits())
    found = program.submit(b"")
    waiting = threading.Event()
    found.add_done_callback(lambda _: waiting.set())
    time.sleep(0.5)
    program.close()
    assert waiting.wait(5)
    with pytest.raises(TaskFailed):
        found.result()


def test_what_cannot_be_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_text("no program")
    for name in ("no-such-program", str(tmp_path / "none"), str(tmp_path / "data")):
        with pytest.raises(ConfigError, match="there is no program"):
            Confined([name])
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match="confined on Linux"):
        Confined([sys.executable])
    with pytest.raises(OSError, match="no filter of system calls"):
        confine.restrict()


def test_a_program_that_is_gone_by_then_is_said(tmp_path: Path) -> None:
    script = tmp_path / "check"
    script.write_text("#!/bin/sh\necho 1\n")
    os.chmod(script, 0o755)
    program = Confined([str(script)])
    assert program.submit(b"").result() == b"1\n"
    script.unlink()
    with pytest.raises(TaskFailed, match="status 127: cannot be run"):
        program.submit(b"").result()
    program.close()
