"""Processes are killed in the middle of their work, and what they leave on disk, and sent to each
other, changes no bit of what the next ones answer."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import msgspec
import pytest

from ockham.engine.messages import Request
from ockham.engine.moving import MovedRequest
from ockham.kernels.native import core
from tests.exact.lives import MODELS, Last, Line, alone
from tests.exact.machine import EXAMPLES, Answer, Stream, run_alone

pytestmark = pytest.mark.skipif(core is None, reason="the reference backend promises no bits")

ROOT = Path(__file__).parents[2]
KILLED = max(2, EXAMPLES // 2)
"""Processes, before one that lives on."""
TURNS = 90
"""Of that one."""


class Heard:
    """What was said of the requests of all models, in any process."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, str], Request] = {}
        self.answers: dict[tuple[str, str], Answer] = {}
        self.moving: list[tuple[str, bytes]] = []
        """Requests that have left a process, for the next one."""
        self.moved: set[tuple[str, str]] = set()

    def add(self, line: Line) -> None:
        if line.taken is not None:
            self.asked[line.kind, line.taken.request_id] = line.taken
        elif line.said is not None:
            answer = self.answers.setdefault((line.kind, line.said.request_id), {})
            answer.setdefault(line.said.index, Stream()).add(line.said)
        else:
            self.moving.append((line.kind, line.moved))
            name = msgspec.msgpack.decode(line.moved, type=MovedRequest).request.request_id
            self.moved.add((line.kind, name))


def live(directory: Path, name: str, heard: Heard, lines: int | None) -> Last | None:
    """A process that is killed after so many lines, or lives on to its end."""
    turns = TURNS if lines is None else 0
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.exact.lives", str(directory), name, str(turns)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(heard.moving))
    process.stdin.close()
    heard.moving = []
    latest = b""
    for number, line in enumerate(process.stdout):
        if number == lines:
            process.kill()
        if latest:
            heard.add(msgspec.json.decode(latest, type=Line))
        latest = line
    killed = process.wait() != 0
    assert killed == (lines is not None)
    return None if killed else msgspec.json.decode(latest, type=Last)


def test_no_death_changes_a_bit(tmp_path: Path) -> None:
    for kind, make in MODELS.items():
        make(tmp_path / kind)
    heard, rng = Heard(), Random(7)
    for number in range(KILLED):
        live(tmp_path, str(number), heard, rng.randint(150, 400))
    last = live(tmp_path, "last", heard, None)
    assert last is not None
    compared: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    engines = {kind: alone(tmp_path, kind) for kind in MODELS}
    for (kind, name), answer in heard.answers.items():
        expected = None
        for index, stream in answer.items():
            if stream.finish_reason is not None:
                expected = expected or run_alone(engines[kind], heard.asked[kind, name])
                assert stream == expected[index], f"{kind}: request {name}, choice {index}"
                compared[kind] += 1
                moved[kind] += (kind, name) in heard.moved
    print(f"{compared} sequences compared, {moved} of them moved; {last}")
    assert min(compared[kind] for kind in MODELS) >= 5
    assert moved.total() >= 5
    assert sum(fetched > 0 for fetched in last.fetched.values()) > len(MODELS) // 2
