"""How many samples a problem should get, and what searches cost: learned, predicted, measured."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.price import total_cost
from ockham.lab.allocation import Sample, agreed, learn, majority, way
from ockham.lab.prices import measured, works
from tests.helpers.serving import make_engine
from tests.helpers.tiny import tiny_llama


def drawn(*answers: str | None) -> list[Sample]:
    """Samples of 10 tokens; "a" is right."""
    return [Sample(answer, 10, float(answer == "a")) for answer in answers]


def test_the_majority_of_the_first_samples_is_the_answer() -> None:
    samples = drawn("b", None, "a", "a", "b", "a")
    assert [majority(samples, count) for count in (1, 2, 4, 5, 6)] == [0, 0, 1, 0, 1]
    assert [agreed(samples, count) for count in (1, 2, 4, 5)] == [1, 1, 2, 2]
    assert majority(drawn(None, None), 2) == 0.0


def test_a_way_counts_samples_tokens_and_right_answers() -> None:
    items = [drawn("a", "a", "b"), drawn("b", "a", "a")]
    found = way(items, lambda each: 1 if each[0].answer == "a" else 3)
    assert (found.samples, found.tokens, found.right) == (2, 20, 1.0)


def test_a_table_spends_samples_where_they_help() -> None:
    """Calculations of the lab model: those of one mind need no more samples."""
    found = learn(
        EngineConfig(model="lab", speculative_config="none", max_num_seqs=32),
        "steps",
        extract="Answer: (.+)",
        items=36,
        samples=8,
        first=3,
        loss=0.0,
        temperature=1.0,
        seed=0,
    )
    assert len(found.table) == 3
    assert all(3 <= entry <= 8 for entry in found.table)
    assert sum(found.groups) == pytest.approx(18, abs=1)
    assert found.one.samples == 1
    assert found.every.samples == 8
    assert 3 <= found.allocated.samples <= 8
    assert found.allocated.tokens < found.every.tokens


def test_what_cannot_be_learned_is_refused() -> None:
    config, rest = EngineConfig(model="lab"), {"items": 8, "loss": 0.0, "temperature": 1.0}
    with pytest.raises(ConfigError, match=r"first must lie in \[2, 4\]"):
        learn(config, "steps", extract="text", samples=4, first=5, seed=0, **rest)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be used"):
        learn(config, "steps", extract="(", samples=4, first=2, seed=0, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec", ["choices", "vote:samples=5:parallel=2", "allocate:parallel=4", "best:samples=3"]
)
def test_a_search_takes_what_was_predicted(tmp_path: Path, spec: str) -> None:
    """Where its branches run as long as they may."""
    checkpoint = tiny_llama(tmp_path, tokenizer=True)
    engine = make_engine(checkpoint, skip_tokenizer_init=False, speculative_config="none")
    prompt, tokens = Random(1).randrange(30, 60), 12
    price = total_cost(engine.cost, works(spec, prompt, tokens, engine.scheduler.most_rows))
    bill = measured(engine, spec, prompt, tokens).cost
    assert bill.weight_bytes == pytest.approx(price.weight_bytes, rel=0.05)
    assert bill.flops == pytest.approx(price.flops, rel=0.05)


def test_a_search_whose_work_depends_on_what_is_said_has_no_price() -> None:
    with pytest.raises(ConfigError, match="interim takes depends on what is said"):
        works("interim", 10, 10, 512)
