"""A process that is forked while an `LLM` lives ends as it should, and may use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOAD = """
import os, sys
from ockham import LLM, SamplingParams
params = SamplingParams(temperature=0.0, max_tokens=12)
llm = LLM(kv_cache_memory_bytes=8 << 20{settings})
"""
WAIT = """
_, status = os.waitpid(child, 0)
print("parent", llm.generate("def add(", params)[0].outputs[0].token_ids, flush=True)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(code: str, settings: str = "") -> list[str]:
    """The lines on stdout of a process that loads an LLM, forks, and ends with the child's status.
    Fails if that is not 0, or if anything hangs."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(settings=settings) + code + WAIT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "forked" not in done.stderr  # no library complains of the fork
    return done.stdout.splitlines()


@pytest.mark.parametrize("used", [False, True])
def test_a_forked_process_that_exits_ends_at_once(used: bool) -> None:
    first = 'llm.generate("x", params)\n' if used else ""
    (parent,) = run(f"{first}child = os.fork()\nif not child: sys.exit(0)")
    assert parent.startswith("parent [")


@pytest.mark.parametrize("settings", ["", ", threads=4", ", threads=1"])
def test_a_forked_process_generates_the_same_tokens(settings: str) -> None:
    child, parent = run(
        'child = os.fork()\nif not child:\n    print("child", llm.generate("def add(", params)'
        "[0].outputs[0].token_ids, flush=True)\n    sys.exit(0)",
        settings,
    )
    assert child.split(" ", 1)[1] == parent.split(" ", 1)[1]


def test_a_forked_process_compiles_grammars_with_threads_of_its_own() -> None:
    code = """
from ockham import StructuredOutputsParams
def answer():
    asked = StructuredOutputsParams(choice=["yes", "no"])
    return llm.generate("x", SamplingParams(max_tokens=8, structured_outputs=asked))[0]
answer()
child = os.fork()
if not child:
    assert answer().outputs[0].text in ("yes", "no")
    sys.exit(0)
"""
    run(code)


def test_a_forked_process_leaves_the_store_on_disk_to_its_parent(tmp_path: Path) -> None:
    code = """
from ockham import OckhamError
child = os.fork()
if not child:
    try:
        llm.generate("x", params)
    except OckhamError as error:
        assert "is for one process at a time" in str(error), error
        sys.exit(0)
    sys.exit(1)
"""
    run(code, f", kv_store={str(tmp_path)!r}")


def test_a_forked_process_may_leave_the_block_of_an_llm() -> None:
    run("child = os.fork()\nif not child:\n    with llm: sys.exit(0)")


def test_the_workers_of_a_process_that_loaded_before_it_forked_answer_and_end() -> None:
    """As gunicorn --preload does it: several children at once, each used and ended in its turn."""
    code = """
def answer():
    tokens = llm.generate("x", params)[0].outputs[0].token_ids
    os.write(1, f"{tokens}\\n".encode())  # in one piece: all write into the same pipe
    sys.exit(0)
children = [os.fork() or answer() for _ in range(3)]
assert [os.waitpid(each, 0)[1] for each in children[:2]] == [0, 0]
child = children[2]
"""
    *children, _ = run(code)
    assert len(children) == 3
    assert len(set(children)) == 1
