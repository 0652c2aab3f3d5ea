"""Items are drawn from a seed, splits never meet, right answers score and wrong ones do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.lab.tasks import TASKS, Item, items
from ockham.lab.tasks.suites import ENGLISH, suite_of
from ockham.lab.tasks.suites import LAB as LAB_SUITE
from ockham.text.tokenizer import load_tokenizer

TAUGHT = ("recall", "documents", "edit", "steps", "long_steps", "parts", "word_problems", "chat")
ENGLISH_ONLY = ("needles", "reading", "cloze", "arithmetic", "extraction", "edits")
ANSWERED = (*TAUGHT, *ENGLISH_ONLY)
FIRST_WORDS = ("needles", "reading", "cloze")
"""Tasks that are scored by what an answer begins with, whatever follows."""
TEXTS = ("code", "prose")
LEVELS = [(task, level) for task in ANSWERED for level in TASKS[task].levels]


def test_every_task_of_the_laboratory_is_there() -> None:
    assert tuple(TASKS) == (*ANSWERED, *TEXTS)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize(("task", "level"), LEVELS)
def test_an_item_is_decided_by_its_seed_and_number(task: str, level: str) -> None:
    drawn = list(items(task, 1, 6, level=level))
    assert drawn == list(items(task, 1, 6, level=level))
    assert len({(str(item.messages), item.prompt) for item in drawn}) == 6
    assert drawn != list(items(task, 2, 6, level=level))
    assert {item.level for item in drawn} == {level}


@pytest.mark.parametrize("task", ANSWERED)
def test_the_levels_come_in_turn(task: str) -> None:
    levels = TASKS[task].levels
    assert [item.level for item in items(task, 0, len(levels))] == list(levels)


@pytest.mark.parametrize(("task", "level"), LEVELS)
def test_only_the_right_answer_scores(task: str, level: str) -> None:
    for item in items(task, 3, 20, level=level):
        score = TASKS[task].score
        assert score(item, item.answer) == 1.0
        assert score(item, f" {item.answer}\n") == 1.0
        asked = item.prompt or item.messages[-1]["content"]
        asked = asked.splitlines()[-1] if task in ("needles", "reading") else asked
        wrongs = ["", item.fields.get("word", item.answer)[:-1] + "~", asked]
        wrongs += [] if task in FIRST_WORDS else [item.answer + " 1"]
        assert [score(item, wrong) for wrong in wrongs] == [0.0] * len(wrongs)


def facts_of(item: Item) -> Iterator[object]:
    """What must not be asked in both splits."""
    if item.task == "recall":
        yield item.fields["key"], item.answer
    elif item.task in ("documents", "needles", "reading"):
        yield item.fields["question"], item.answer
    elif item.task == "cloze":
        yield item.prompt
    elif item.task in ENGLISH_ONLY:
        yield item.messages[-1]["content"]
    else:
        yield item.messages[0]["content"], item.messages[-1]["content"], item.answer


@pytest.mark.parametrize("task", ANSWERED)
def test_the_splits_share_no_item(task: str) -> None:
    asked = {
        split: {fact for item in items(task, 0, 400, split) for fact in facts_of(item)}
        for split in ("train", "test")
    }
    assert asked["train"]
    assert asked["test"]
    assert not asked["train"] & asked["test"]


@pytest.mark.parametrize("level", TASKS["long_steps"].levels)
def test_each_pass_of_a_long_calculation_is_right_and_comes_to_the_same(level: str) -> None:
    for item in items("long_steps", 0, 20, level=level):
        result = item.fields["result"]
        assert item.answer.count(f"Result: {result}\n") == item.answer.count("Result:") == 4
        assert item.answer.count("Check:\n") == 3
        for line in item.answer.splitlines():
            left, equals, right = line.partition("=")
            if equals:
                numbers = [int(each) for each in re.split("[+*]", left)]
                product = numbers[0] * numbers[-1] if "*" in left else sum(numbers)
                assert int(right) == product


@pytest.mark.parametrize("level", TASKS["recall"].levels)
def test_recall_is_as_long_as_its_level_says_and_asks_at_any_depth(level: str) -> None:
    tokenizer = load_tokenizer(EngineConfig(), Path("ockham/model/lab"))
    assert tokenizer is not None

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    wanted = int(level.partition("=")[2])
    drawn = [TASKS["recall"].item(0, index, "test", level, count) for index in range(12)]
    for item in drawn:
        content = item.messages[0]["content"]
        assert 0.75 * wanted < count(content) <= wanted
        assert item.answer.startswith(f"- {item.fields['key']}: ")
        assert f"\n{item.answer}\n" in content
        assert content.count(f"\n- {item.fields['key']}: ") == 1
    depths = [item.fields["depth"] for item in drawn]
    assert min(depths) < 0.4 < 0.6 < max(depths)


def test_a_second_hop_is_answered_by_the_other_document() -> None:
    for item in items("documents", 0, 20, level="documents=8, hops=2"):
        found = re.search(r"the (\w+) of (\w+)", item.fields["question"])
        assert found is not None
        relation, name = found.groups()
        one = next(text for text in item.fields["documents"] if text.startswith(f"{name} lives"))
        other = one.partition(f"The {relation} of {name} is ")[2].rstrip(".")
        two = next(text for text in item.fields["documents"] if text.startswith(f"{other} lives"))
        told = item.answer.removeprefix(f"Answer: The {relation} of {name} is {other}. ")
        assert told != item.answer
        assert told in two


@pytest.mark.parametrize("level", TASKS["edit"].levels)
def test_an_edit_changes_what_it_says_and_nothing_else(level: str) -> None:
    for item in items("edit", 0, 30, level=level):
        before, after = item.fields["original"].splitlines(), item.answer.splitlines()
        instruction = item.messages[0]["content"].splitlines()[0]
        assert before != after
        if level == "insert":
            (line,) = [line for line in after if line not in before]
            assert line.strip() in instruction
            after.remove(line)
            assert before == after
        elif level == "delete":
            (line,) = [line for line in before if line not in after]
            assert instruction == f"Delete {line.strip()}."
        else:
            assert len(before) == len(after)
            changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
            assert len(changed) == 1 or level == "rename"
            compile(item.answer, "answer", "exec")


def test_the_result_of_steps_is_right_whatever_stands_before_it() -> None:
    for item in items("steps", 0, 120):
        asked, result = item.messages[0]["content"], item.fields["result"]
        numbers = [int(number) for number in re.findall(r"\d+", asked)]
        if asked.startswith(("Add", "Sum")):
            assert int(result) == sum(numbers)
        elif asked.startswith("Multiply"):
            assert int(result) == numbers[0] * numbers[1]
        elif asked.startswith("Sort"):
            assert result == " ".join(map(str, sorted(numbers)))
        else:
            letter, _, row = asked.removeprefix("Count ").rstrip(".").partition(" in ")
            assert int(result) == row.split().count(letter)
        assert TASKS["steps"].score(item, f"nonsense\nAnswer: {result}") == 1.0
        assert TASKS["steps"].score(item, result) == 0.0
        for step in item.answer.splitlines():
            left, equals, right = step.partition("=")
            if equals:
                assert eval(left) == int(right)


def test_a_chat_is_answered_from_what_was_said() -> None:
    for item in items("chat", 0, 60):
        roles = [message["role"] for message in item.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert len(roles) == 2 * int(item.level.partition("=")[2]) - 1
        told = " ".join(message["content"] for message in item.messages)
        assert item.answer.rstrip(".") in told


@pytest.mark.parametrize("level", TASKS["needles"].levels)
def test_needles_stand_at_any_depth_of_prose_of_their_length(level: str) -> None:
    wanted = int(level.partition("=")[2])
    drawn = [TASKS["needles"].item(0, index, "test", level, len_in_words) for index in range(16)]
    for item in drawn:
        (message,) = item.messages
        assert message["content"].count(item.answer) == 1
        assert message["content"].endswith(item.fields["question"])
        assert item.fields["word"] in item.answer
        assert 0.4 * wanted < len_in_words(message["content"]) <= wanted
    depths = [item.fields["depth"] for item in drawn]
    assert min(depths) < 0.4 < 0.6 < max(depths)


def len_in_words(text: str) -> int:
    return len(text.split())


def test_a_reader_may_not_name_all_that_documents_tell() -> None:
    score = TASKS["reading"].score
    for item in items("reading", 0, 20):
        others = item.fields["others"]
        assert score(item, f"That is {item.answer}. And {others[0]}.") == 1.0
        assert score(item, f"That is {item.answer} or {others[0]}.") == 0.0
        names = set(item.fields["question"].strip("?").split()[1:])
        told = [text for text in item.fields["documents"] if names & set(text.split())]
        assert any(item.answer in text for text in told)


def test_a_gap_is_a_word_that_was_said_before() -> None:
    for item in items("cloze", 0, 60):
        assert item.prompt is not None
        assert re.search(rf"\b{item.answer.strip()}\b", item.prompt)
        assert TASKS["cloze"].score(item, f"{item.answer}, and so on") == 1.0
        assert TASKS["cloze"].score(item, f"{item.answer}s") == 0.0


def test_the_result_of_an_english_calculation_is_right() -> None:
    for item in items("arithmetic", 0, 40):
        turns = [message["content"] for message in item.messages]
        for asked, said in zip(turns[::2], [*turns[1::2], item.answer], strict=True):
            one, word, other = asked.removeprefix("What is ").rstrip("?").split()
            both = int(one), int(other)
            result = sum(both) if word == "plus" else both[0] * both[1]
            assert said == f"{one} {word} {other} is {result}."


def test_json_is_compared_by_what_it_means() -> None:
    for item in items("extraction", 0, 20):
        found = item.fields["object"]
        told = item.messages[-1]["content"]
        assert len(found) == int(item.level.partition("=")[2])
        assert all(str(value) in told for value in found.values())
        turned = dict(reversed(found.items()))
        assert TASKS["extraction"].score(item, json.dumps(turned, indent=2)) == 1.0
        assert TASKS["extraction"].score(item, json.dumps({**found, "more": 1})) == 0.0
        assert TASKS["extraction"].score(item, f"Here: {json.dumps(found)}") == 0.0


def test_an_english_edit_changes_what_it_says() -> None:
    for item in items("edits", 0, 60):
        asked, before = item.messages[-1]["content"], item.fields["original"]
        assert asked.endswith(before)
        assert item.answer != before
        if item.level in ("begin", "end", "quote"):
            assert before in item.answer
        else:
            old, new = re.findall(r"\w+", asked)[1:4:2]
            assert item.answer == re.sub(rf"\b{old}\b", new, before)


def test_models_are_judged_by_the_tasks_that_they_can_do(tmp_path: Path) -> None:
    assert suite_of("lab") is suite_of("lab-small") is LAB_SUITE
    assert suite_of("smollm2") is suite_of("owner/name") is ENGLISH
    (tmp_path / "tokenizer.json").write_bytes(Path("ockham/model/lab/tokenizer.json").read_bytes())
    assert suite_of(str(tmp_path)) is LAB_SUITE
    (tmp_path / "tokenizer.json").write_text("{}")
    assert suite_of(str(tmp_path)) is ENGLISH
    assert {*LAB_SUITE.tasks, *ENGLISH.tasks} == set(TASKS)
    for suite in (LAB_SUITE, ENGLISH):
        assert set(suite.needle_levels) < set(TASKS[suite.needles].levels)


@pytest.mark.parametrize("task", TEXTS)
def test_texts_are_held_out_passages(task: str) -> None:
    texts = [item.text for item in items(task, 0, 8)]
    assert len(set(texts)) == 8
    assert all(text and len(text) > 200 for text in texts)
    with pytest.raises(ConfigError, match="for tests only"):
        TASKS[task].item(0, 0, "train")
    with pytest.raises(ConfigError, match="by perplexity"):
        TASKS[task].score(TASKS[task].item(0, 0, "test"), "x")


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="no task 'recal'; there are recall, documents"):
        list(items("recal", 0, 1))
    with pytest.raises(ConfigError, match="no level 'tokens=7'; it has tokens=128"):
        list(items("recall", 0, 1, level="tokens=7"))
