"""The user's file and the tasks' items become cases, and nothing is lost silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ockham.core.errors import ConfigError
from ockham.lab.cases import Case, data_cases, task_cases
from ockham.lab.tasks import TASKS
from ockham.text.tokenizer import Tokenizer
from tests.helpers.tiny import LAB

TEXT = "def mean(values):\n    return sum(values) / len(values)  # größer\n" * 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(LAB)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def test_lines_become_cases(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "1 + 1 =", "answer": "2"},
        {"messages": [{"role": "user", "content": "hello"}], "references": ["hi", "hello"]},
        {"prompt": "import os", "level": "imports"},
        {"text": TEXT},
    )
    found = data_cases(path, tokenizer, 4096, 32)
    right, chat, plain, text = found.cases
    assert right.tokens == tuple(tokenizer.encode("1 + 1 ="))
    assert right.score is not None
    assert (right.score(" 2\n"), right.score("22")) == (1.0, 0.0)
    assert chat.score is not None
    assert (chat.score("hello"), chat.score("hi hello")) == (1.0, 0.0)
    assert tokenizer.decode(chat.tokens, False).count("hello") == 1
    assert (plain.score, plain.scores_prompt, plain.level) == (None, True, "imports")
    assert (text.max_tokens, text.scores_prompt) == (0, True)
    assert found.left_out == []


def test_a_reference_may_stand_within_the_completion(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": "1 + 1 =", "answer": "two"})
    (case,) = data_cases(path, tokenizer, 4096, 32, contains=True).cases
    assert case.score is not None
    assert case.score("That is two.") == 1.0
    assert case.score("That is three.") == 0.0


@pytest.mark.parametrize("context", [16, 17, 64, 4096])
def test_a_long_text_is_cut_so_that_each_token_is_scored_once(
    tmp_path: Path, tokenizer: Tokenizer, context: int
) -> None:
    path = write(tmp_path / "data.jsonl", {"text": TEXT})
    windows = data_cases(path, tokenizer, context, 32).cases
    tokens = tokenizer.encode(TEXT)
    assert max(len(case.tokens) for case in windows) <= context
    assert [token for case in windows for token in case.tokens[1:]] == tokens[1:]
    first = len(tokenizer.decode(tokens[:1], False).encode())
    assert sum(case.scored_bytes for case in windows) == len(TEXT.encode()) - first
    assert len({case.key for case in windows}) == len(windows)


def test_what_does_not_fit_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": TEXT}, {"prompt": "a b c"})
    found = data_cases(path, tokenizer, 64, 100)
    assert [case.index for case in found.cases] == [1]
    assert found.cases[0].max_tokens + len(found.cases[0].tokens) == 64
    assert found.left_out[0].startswith("1 prompts of")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1: it is no JSON"),
        ("[]", "line 1: it must be an object with one of prompt, messages, text"),
        ('{"prompt": "a", "text": "b"}', "it must be an object with one of"),
        ('{"prompt": "a", "anwser": "b"}', "'anwser', which means nothing"),
        ('{"prompt": 3}', "prompt must be a string, got 3"),
        ('{"prompt": "a", "answer": 3}', "answer must be a string"),
        ('{"prompt": "a", "references": []}', "references a list of strings"),
        ('{"prompt": "a", "answer": "b", "references": ["c"]}', "either answer or references"),
        ('{"text": "a b", "answer": "c"}', "takes no references"),
        ('{"text": ""}', "nothing to score"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"messages": []}', "line 1: messages must not be empty"),
        ('{"messages": 3}', "line 1: messages must be a list"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(
    tmp_path: Path, tokenizer: Tokenizer, line: str, reason: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=reason):
        data_cases(path, tokenizer, 4096, 32)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        data_cases(tmp_path / "missing.jsonl", tokenizer, 4096, 32)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_gives_cases_of_all_its_levels(name: str, tokenizer: Tokenizer) -> None:
    levels = TASKS[name].levels
    found = task_cases([name], max(1, len(levels)), 3, [], tokenizer, 8192)
    assert {case.level for case in found.cases} >= set(levels)
    assert found.left_out == []
    again = task_cases([name], max(1, len(levels)), 3, [], tokenizer, 8192)
    assert [each.tokens for each in again.cases] == [each.tokens for each in found.cases]


BEGINNINGS = ("steps", "needles", "reading", "cloze")
"""Tasks that are scored by a part of the answer."""


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("code", "prose")])
def test_a_right_answer_is_scored_as_right(name: str, tokenizer: Tokenizer) -> None:
    task = TASKS[name]
    cases: list[Case] = task_cases([name], 8, 5, [], tokenizer, 8192).cases
    for case in cases:
        item = task.item(
            5, case.index, "test", case.level, lambda text: len(tokenizer.encode(text))
        )
        assert case.score is not None
        assert case.score(item.answer) == 1.0
        assert case.score(item.answer + " or not") == 0.0 or name in BEGINNINGS
        assert case.score("") == 0.0


def test_levels_are_chosen_and_mistyped_names_refused(tokenizer: Tokenizer) -> None:
    name = next(name for name in TASKS if len(TASKS[name].levels) > 1)
    level = TASKS[name].levels[1]
    found = task_cases([name], 3, 0, [level], tokenizer, 8192)
    assert [case.level for case in found.cases] == [level] * 3
    with pytest.raises(ConfigError, match="no task 'recal'"):
        task_cases(["recal"], 3, 0, [], tokenizer, 8192)
    with pytest.raises(ConfigError, match="has the level 'nothing'"):
        task_cases([name], 3, 0, ["nothing"], tokenizer, 8192)


def test_items_that_do_not_fit_are_named(tokenizer: Tokenizer) -> None:
    found = task_cases(["recall"], 2, 0, [], tokenizer, 16)
    assert found.cases == []
    assert "of recall at" in found.left_out[0]
    assert "16 tokens" in found.left_out[0]


def test_a_text_counts_once(tokenizer: Tokenizer) -> None:
    found = task_cases(["prose"], 5000, 0, [], tokenizer, 8192)
    whole = {case.index for case in found.cases}
    assert 0 < len(whole) < 5000
    assert f"{5000 - len(whole)} repetitions were left out" in found.left_out[0]
