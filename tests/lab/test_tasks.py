"""The tasks: items are pure functions of their arguments, splits are disjoint, scores are exact."""

from __future__ import annotations

import json
import re

import pytest

from ockham.core.errors import ConfigError
from ockham.lab.tasks import TASKS, Item, items
from ockham.lab.tasks.recall import TEMPLATE_TOKENS

ANSWERED = ("recall", "documents", "edit", "steps", "chat")
CASES = [(task, level) for task in ANSWERED for level in TASKS[task].levels]


def number(level: str) -> int:
    found = re.search(r"\d+", level)
    assert found
    return int(found[0])


@pytest.mark.parametrize(("task", "level"), CASES)
def test_an_answer_scores_1_and_any_other_0(task: str, level: str) -> None:
    asked = list(items(task, 1, 20, level=level))
    for item, other in zip(asked, asked[1:] + asked[:1], strict=True):
        score = TASKS[task].score
        assert score(item, item.answer) == score(item, f"\n{item.answer} ") == 1.0
        assert score(item, "") == score(item, item.answer + "1") == 0.0
        if item.answer != other.answer and item.fields.get("result") != other.fields.get("result"):
            assert score(item, other.answer) == 0.0


@pytest.mark.parametrize(("task", "level"), CASES)
def test_items_are_chats_of_their_level_that_end_with_the_user(task: str, level: str) -> None:
    for item in items(task, 2, 10, level=level):
        roles = [message["role"] for message in item.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert (item.task, item.level, item.text) == (task, level, None)
        assert item.answer.strip() == item.answer != ""
        assert len(item.answer) <= 3 * item.max_tokens
        json.dumps(dict(item.fields))


@pytest.mark.parametrize("task", ANSWERED)
def test_items_are_a_function_of_their_arguments(task: str) -> None:
    first = list(items(task, 3, 12))
    assert list(items(task, 3, 12)) == first
    assert [item.level for item in first[: len(TASKS[task].levels)]] == list(TASKS[task].levels)
    assert TASKS[task].item(3, 7, "test") == first[7]
    assert [item.messages for item in items(task, 4, 12)] != [item.messages for item in first]


def asked(item: Item) -> str:
    """What two items share where a memorised one would answer the other."""
    return json.dumps([item.messages[0], item.messages[-1], item.answer])


@pytest.mark.parametrize("task", ANSWERED)
def test_no_item_is_in_both_splits(task: str) -> None:
    easiest = TASKS[task].levels[0]  # the fewest different items, so the likeliest to meet
    trained = {asked(item) for item in items(task, 0, 1500, "train", easiest)}
    tested = {asked(item) for item in items(task, 0, 500, "test", easiest)}
    assert trained.isdisjoint(tested)


def test_recall_is_as_long_as_its_level_says_and_asks_at_any_depth() -> None:
    def count(text: str) -> int:
        return len(re.findall(r"\w+|\W", text))

    for level in ("tokens=128", "tokens=2000"):
        drawn = list(items("recall", 5, 60, level=level, count=count))
        for item in drawn:
            content = item.messages[0]["content"]
            assert 0.85 * number(level) - TEMPLATE_TOKENS < count(content) <= number(level)
            assert content.count(f"\n{item.fields['key']}: {item.answer}\n") == 1
        depths = [item.fields["depth"] for item in drawn]
        assert min(depths) < 0.2
        assert max(depths) > 0.8


def test_documents_of_two_hops_need_both() -> None:
    for item in items("documents", 6, 40, level="documents=8, hops=2"):
        documents = item.fields["documents"]
        assert len(documents) == 8
        asked_about = item.messages[0]["content"].splitlines()[-1]
        (first,) = (d for d in documents if f" of {d.split()[0]} " in asked_about + " ")
        assert any(item.answer in d for d in documents if d != first)
        relation = re.search(r"the (\w+) of (\w+)", asked_about)
        assert relation
        assert f"The {relation[1]} of {relation[2]} is " in first


def test_edits_change_what_they_say_and_nothing_else() -> None:
    for item in items("edit", 7, 200):
        before, after = item.fields["original"].splitlines(), item.answer.splitlines()
        assert item.answer != item.fields["original"]
        compile(item.answer, "<edit>", "exec")
        if item.level == "insert":
            (added,) = (i for i, line in enumerate(after) if line not in before)
            assert after[:added] + after[added + 1 :] == before
        elif item.level == "delete":
            (gone,) = (i for i, line in enumerate(before) if line not in after)
            assert before[:gone] + before[gone + 1 :] == after
        elif item.level == "constant":
            assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        else:
            old, new = item.messages[0]["content"].split(".")[0].split(" ")[1::2]
            assert re.sub(rf"\b{old}\b", new, item.fields["original"]) == item.answer


def compute(problem: str) -> str:
    kind, *words = problem.rstrip(".").split()
    numbers = [int(word) for word in words if word.isdigit()]
    if kind == "Multiply":
        return str(numbers[0] * numbers[1])
    if kind == "Count":
        return str(words[2:].count(words[0]))
    if kind == "Sort":
        return " ".join(map(str, sorted(numbers)))
    assert kind in ("Add", "Sum")
    return str(sum(numbers))


def test_the_results_of_steps_are_right() -> None:
    for item in items("steps", 8, 300):
        assert item.fields["result"] == compute(item.messages[0]["content"])


def test_steps_score_the_last_result_only() -> None:
    (item,) = items("steps", 9, 1, level="add, digits=2")
    result = item.fields["result"]
    score = TASKS["steps"].score
    assert score(item, f"1+1=3\nAnswer: {result}") == 1.0
    assert score(item, f"Answer: {result}\nAnswer: 7") == 0.0
    assert score(item, result) == 0.0


@pytest.mark.parametrize("task", ["code", "prose"])
def test_texts_are_measured_by_perplexity_and_not_scored(task: str) -> None:
    drawn = list(items(task, 0, 10))
    assert len({item.text for item in drawn}) == 10
    for item in drawn:
        assert item.text is not None
        assert 3000 <= len(item.text) < 6000
        assert (item.messages, item.answer) == ((), "")
    with pytest.raises(ConfigError, match="perplexity"):
        TASKS[task].score(drawn[0], "")
    with pytest.raises(ConfigError, match="for tests only"):
        TASKS[task].item(0, 0, "train")


def test_unknown_tasks_and_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="no task 'sing'"):
        list(items("sing", 0, 1))
    with pytest.raises(ConfigError, match="no level 'tokens=7'"):
        list(items("recall", 0, 1, level="tokens=7"))
