"""Heads get the rules and shares that recall most for a budget; other models' files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.attention.head_recalls import (
    SHARES,
    HeadRecall,
    HeadRecalls,
    assigned,
    check_heads,
    cost_of,
    foretold,
    read_recalls,
)
from ockham.core.choices import LATEST, LINES, MEANS, RULES
from ockham.core.errors import InvalidRequest, ModelError
from ockham.core.seams import AttentionGroup


def recalls_of(heads: dict[tuple[int, int], dict[str, Any]]) -> HeadRecalls:
    found = tuple(HeadRecall(layer, head, recall) for (layer, head), recall in heads.items())
    return HeadRecalls("minference", 1, 16, SHARES, found)


def powers(latest: float, lines: float, means: float) -> dict[str, Any]:
    """Recalls that rise with the share as its powers do."""
    exponents = {"latest": latest, "lines": lines, "means": means}
    return {name: tuple(float(s**e) for s in SHARES) for name, e in exponents.items()}


def drawn(seed: int, heads: int) -> HeadRecalls:
    rng = np.random.default_rng(seed)
    return recalls_of({(h // 2, h % 2): powers(*rng.uniform(0.02, 1, 3)) for h in range(heads)})


@pytest.mark.parametrize("budget", [0.07, 0.2, 0.5, 0.9, 1.0])
def test_the_budget_is_spent_and_not_exceeded(budget: float) -> None:
    recalls = drawn(1, 8)
    rules = assigned(recalls, budget)
    assert len(rules) == 8
    cost = np.mean([cost_of(rule, share, recalls.stride) for rule, share in rules.values()])
    assert cost == pytest.approx(budget)


def test_no_other_rules_and_shares_recall_more_for_the_same() -> None:
    """Among all that two heads may get of the file's shares."""
    for seed in range(10):
        recalls = drawn(seed, 2)
        best = assigned(recalls, 0.5)
        options = [
            (cost_of(rule, share, 16), (rule, share)) for rule in range(3) for share in SHARES
        ]
        most = max(
            foretold(recalls, {(0, 0): one, (0, 1): other})
            for cost, one in options
            for more, other in options
            if cost + more <= 1.0
        )
        # What is spent in part is on a line below a curve, or at a rule's price.
        assert foretold(recalls, best) >= most - 0.03


def test_each_head_gets_the_rule_that_serves_it() -> None:
    recalls = recalls_of(
        {
            (0, 0): powers(0.01, 0.4, 0.5),
            (0, 1): powers(0.9, 0.05, 0.6),
            (1, 0): powers(0.9, 0.8, 0.05),
            (1, 1): powers(0.9, 0.9, 0.9),
        }
    )
    rules = assigned(recalls, 0.3)
    assert [rules[place][0] for place in ((0, 0), (0, 1), (1, 0))] == [LATEST, LINES, MEANS]
    assert rules[0, 0][1] < rules[1, 1][1], "where little is lost, little is spent"
    alike = dict.fromkeys(rules, (LINES, 0.3 - 1 / 32))
    assert foretold(recalls, rules) > foretold(recalls, alike)
    assert set(assigned(recalls, 0.3, frozenset({0}))) == {(1, 0), (1, 1)}


def test_a_budget_below_the_least_is_everyones_latest_blocks() -> None:
    assert set(assigned(drawn(3, 4), 0.01).values()) == {(LATEST, 0.01)}


def test_a_full_budget_leaves_nothing_out() -> None:
    assert {share for _, share in assigned(drawn(4, 6), 1.0).values()} == {1.0}


def written(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "technique": "minference",
        "version": 1,
        "stride": 16,
        "shares": [0.5, 1.0],
        "heads": [{"layer": 0, "head": 0, "recall": {name: [0.7, 1.0] for name in RULES}}],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def test_a_file_is_read_and_told_from_another(tmp_path: Path) -> None:
    found, digest = read_recalls(written(tmp_path / "a.json"), "minference")
    assert found.heads[0].recall["lines"] == (0.7, 1.0)
    other = {"layer": 0, "head": 0, "recall": {name: [0.6, 1.0] for name in RULES}}
    assert read_recalls(written(tmp_path / "b.json", heads=[other]), "minference")[1] != digest


HEAD = {"layer": 0, "head": 0, "recall": {name: [0.7, 1.0] for name in RULES}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "of version 2, and this Ockham reads version 1"),
        ({"technique": "other"}, "is of 'other', not of minference"),
        ({"shares": [0.5, 0.4]}, "do not ascend to 1"),
        ({"heads": [HEAD, HEAD]}, "names a head twice"),
        ({"heads": [{**HEAD, "recall": {"lines": [0.7, 1.0]}}]}, "no recall of each rule"),
        ({"heads": [{**HEAD, "recall": {n: [2.0, 1.0] for n in RULES}}]}, "no recall of each rule"),
        ({"heads": 3}, "Expected"),
        ({"more": 3}, "unknown field"),
    ],
)
def test_what_was_not_written_by_it_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        read_recalls(written(tmp_path / "a.json", **changes), "minference")
    assert "ockham calibrate minference MODEL FILE" in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_recalls(tmp_path / "none.json", "minference")


def test_heads_of_another_model_are_refused() -> None:
    recalls = drawn(1, 8)  # 4 layers of 2 heads
    check_heads(recalls, [AttentionGroup((0, 1, 2, 3), 2, None)], "minference", "a.json")
    windowed = [AttentionGroup((0, 1, 2, 3), 2, None), AttentionGroup((4, 5), 2, 100)]
    check_heads(recalls, windowed, "minference", "a.json")
    for group in (AttentionGroup((0, 1, 2), 2, None), AttentionGroup((0, 1, 2, 3), 4, None)):
        with pytest.raises(InvalidRequest, match="with 4 layers and 8 key-value heads in all"):
            check_heads(recalls, [group], "minference", "a.json")
