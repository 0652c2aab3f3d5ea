"""What the model card of the lab model says is measured again on a small sample."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from ockham.lab.cases import task_cases
from ockham.lab.evaluate import Result, evaluate, summarise

CARD = Path(__file__).parents[2] / "ockham/model/lab/README.md"
SAMPLED = (
    ("recall", "tokens=256"),
    ("recall", "tokens=512"),
    ("chat", "turns=4"),
    ("edit", "insert"),
)
ITEMS = 24
SEED = 7
"""Not that of the card: other items."""


def stated(task: str, level: str) -> tuple[float, float]:
    """The interval that the card gives."""
    row = re.search(
        rf"^\| {task} \| {re.escape(level)} \| \d+ \| [\d.]+% \| ([\d.]+)% to ([\d.]+)% \|$",
        CARD.read_text(),
        re.MULTILINE,
    )
    assert row is not None, f"the card has no score of {task}, {level}"
    return float(row[1]) / 100, float(row[2]) / 100


@pytest.mark.skipif(core is None, reason="the reference backend is too slow")
@pytest.mark.parametrize(("task", "level"), SAMPLED)
def test_a_sample_of_other_items_agrees_with_the_card(task: str, level: str) -> None:
    engine = Engine(EngineConfig(kv_cache_memory_bytes=256 << 20))
    assert engine.tokenizer is not None
    cases = task_cases([task], ITEMS, SEED, [level], engine.tokenizer, engine.max_model_len).cases
    assert len(cases) > ITEMS // 2
    results: list[Result] = []
    evaluate(engine, cases, results.append)
    score = summarise(results, SEED)[0]  # of all levels, which is the one
    assert score.score_interval is not None
    low, high = stated(task, level)
    assert score.score_interval[0] <= high
    assert low <= score.score_interval[1]
