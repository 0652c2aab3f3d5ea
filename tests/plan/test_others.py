"""How much of the processors' time others take."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ockham.plan.others import Others

SPIN = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"


def test_what_others_and_the_host_take_is_counted_and_waiting_is_not(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 0 50 1000 70 0 0 0 9 9\ncpu0 1 1 1 1 1 1 1 1\n")
    others = Others(stat)
    stat.write_text("cpu 300 100 150 1900 170 0 0 100 99 99\n")
    # 200 + 100 + 100 and 100 stolen of 1500 ticks: what this process took is nothing beside it.
    assert others.share() == pytest.approx(500 / 1500, abs=0.02)


@pytest.mark.parametrize("text", ["", "cpu 1 2 3", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8"])
def test_a_system_that_does_not_say_it_gives_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    assert Others(tmp_path / "stat").share() is None
    assert Others(tmp_path / "none").share() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system has no /proc/stat")
def test_ended_children_are_this_programs_own() -> None:
    others, ticks = Others(), _busy()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    time.sleep(0.05)
    share = others.share()
    assert share is not None
    spun, every = (late - early for late, early in zip(_busy(), ticks, strict=True))
    assert spun > 100
    assert share <= (spun - 100) / every + 0.1


def _busy() -> tuple[int, int]:
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
