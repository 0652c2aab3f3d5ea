"""Checkers: how they are named, what they print, and what becomes of one that prints something
else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, TaskFailed, WorkerError
from ockham.engine.checkers import Checker, all_probes, checkers_of
from ockham.model.hub import BUILT_IN
from ockham.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = load_tokenizer(EngineConfig(), BUILT_IN["lab"])
    assert found is not None
    return found


def printing(tmp_path: Path, said: str) -> str:
    script = tmp_path / "check.py"
    script.write_text(f"import json, sys\nasked = json.load(sys.stdin)\n{said}\n")
    return f"{sys.executable} {script}"


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("print('0.25')", 0.25),
        ("print('looks fine')\nprint('True')\nprint()", 1.0),
        ("print(False)", 0.0),
        ("print(float(asked['text'] == 'Answer: 5'))", 1.0),
        ("print(int('Add 2' in asked['prompt']))", 1.0),
    ],
)
def test_the_last_line_is_the_score(
    tmp_path: Path, tokenizer: Tokenizer, said: str, score: float
) -> None:
    checker = Checker("c", printing(tmp_path, said), tokenizer)
    prompt = np.array(tokenizer.encode("Add 2 and 3."), np.int32)
    assert checker.submit(prompt, "Answer: 5").result(20) == score
    checker.close()


@pytest.mark.parametrize("said", ["print('good')", "print(1.5)", "print(-1)", "print('nan')", ""])
def test_what_is_no_score_is_none(tmp_path: Path, tokenizer: Tokenizer, said: str) -> None:
    checker = Checker("c", printing(tmp_path, said), tokenizer)
    with pytest.raises(TaskFailed, match="it printed no number from 0 to 1"):
        checker.submit(np.array([5], np.int32), "text").result(20)
    checker.close()


def test_who_waits_is_told_when_it_is_closed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    checker = Checker("c", printing(tmp_path, "import time; time.sleep(60)"), tokenizer)
    waiting = [checker.submit(np.array([5], np.int32), "text") for _ in range(4)]
    checker.close()
    for each in waiting:
        with pytest.raises(WorkerError):
            each.result(10)


def test_they_are_named_in_several_ways(tokenizer: Tokenizer) -> None:
    both = {"one": "true", "two": "cat -"}
    ways: list[str | Mapping[str, str]] = ["one=true", json.dumps(both), both]
    names = [list(checkers_of(given, tokenizer)) for given in ways]
    assert names == [["one"], ["one", "two"], ["one", "two"]]
    assert checkers_of(None, tokenizer) == checkers_of("", tokenizer) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("true", "has no program; write NAME=PROGRAM"),
        ("a=", "has no program"),
        ("a b=true", "names .letters"),
        ({"a": 3}, "to text, got"),
        ('{"a": 3}', "no JSON object of text"),
        ("a=no-such-program", "there is no program"),
        ("a='", "no command line"),
    ],
)
def test_what_is_no_checker_is_refused(tokenizer: Tokenizer, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checkers_of(given, tokenizer)


def test_without_text_there_is_nothing_to_check() -> None:
    with pytest.raises(ConfigError, match="need a tokenizer"):
        checkers_of("a=true", None)


def test_a_probe_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match=r"the probe .a.: .* cannot be read"):
        all_probes("a=/nowhere")
    with pytest.raises(ConfigError, match="has no directory; write NAME=DIRECTORY"):
        all_probes("a")
