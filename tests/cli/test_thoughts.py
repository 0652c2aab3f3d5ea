"""Thoughts on the command line: the answer alone goes to stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ockham.core.thoughts import CLOSING
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
OPENED = "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}"
FLAGS = ("-n", "60", "--temperature", "0", "--ignore-eos", "--thinking-budget", "8")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tiny_llama(tmp_path_factory.mktemp("thinker"), tokenizer=True)
    template = FAMILIES["hermes"].template + OPENED
    (directory / "chat_template.jinja").write_text(template)
    return str(directory)


def ockham(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ockham", *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )


def test_the_thought_goes_to_stderr_and_the_answer_to_stdout(thinker: str) -> None:
    done = ockham("run", thinker, "hi", *FLAGS)
    assert CLOSING.strip() in done.stderr
    assert done.stdout.strip()
    assert CLOSING.strip() not in done.stdout
    quiet = ockham("run", thinker, "hi", "--quiet", *FLAGS)
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")
    record = json.loads(ockham("run", thinker, "hi", "--json", *FLAGS).stdout)
    (choice,) = record["outputs"]
    assert choice["reply"]["content"].strip() == done.stdout.strip()
    assert choice["reply"]["reasoning"].endswith(CLOSING.strip())
    assert "</think>" in choice["text"]


def test_a_chat_over_a_pipe_gives_answers_only(thinker: str) -> None:
    done = ockham("chat", thinker, *FLAGS, stdin="hi\nhi again\n")
    assert done.stderr.count(CLOSING.strip()) == 2
    assert "think" not in done.stdout


def test_a_model_may_be_told_not_to_think(thinker: str) -> None:
    done = ockham("run", thinker, "hi", "--no-thinking", *FLAGS)
    assert CLOSING.strip() not in done.stderr
    shown = json.loads(ockham("run", thinker, "hi", "--no-thinking", "--json", *FLAGS).stdout)
    assert not shown["prompt"].endswith("<think>\n")
