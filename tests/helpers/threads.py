"""The threads of a process, as Linux sees them."""

from __future__ import annotations

from pathlib import Path


def threads_of(pid: int) -> set[str]:
    """Their ids."""
    return {task.name for task in Path(f"/proc/{pid}/task").iterdir()}


def asleep(pid: int, thread: str) -> bool:
    return "\nState:\tS" in Path(f"/proc/{pid}/task/{thread}/status").read_text()


def switches(pid: int, thread: str) -> list[str]:
    """How often a thread gave up its core, and how often it lost it. Neither changes while it
    sleeps."""
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
    return [line for line in lines if "ctxt_switches" in line]
