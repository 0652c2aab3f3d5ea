"""What drafting is worth is compared token by token, and what it did is counted as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from ockham.core.config import EngineConfig
from ockham.core.speculative import parse
from ockham.engine.engine import Engine
from ockham.lab.speculation import measure
from ockham.lab.streams import Stream
from tests.helpers.foretelling import foretelling
from tests.helpers.tiny import tiny_llama

VOCABULARY = 97


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    model: Path = tiny_llama(tmp_path_factory.mktemp("tiny"), vocab_size=VOCABULARY)
    settings = {"skip_tokenizer_init": True, "max_num_seqs": 6, "speculative_config": "none"}
    return Engine(EngineConfig(model=str(model), **settings))


def streams(count: int) -> list[Stream]:
    texts = [[(7 * i + 3 * number) % VOCABULARY for i in range(120)] for number in range(count)]
    return [Stream(text, prompt=20, answered=60) for text in texts]


@pytest.mark.parametrize("batch", [1, 2])
def test_several_ways_are_measured_in_one_run(engine: Engine, batch: int) -> None:
    texts = streams(4)
    right = foretelling(VOCABULARY, [s.tokens for s in texts], most=5, right=1.0, branches=1)
    wrong = foretelling(VOCABULARY, most=3, right=0.0, branches=1)
    none = engine.make_speculation(parse("none"))
    executor, controller = engine.executor, engine.speculation
    found = measure(engine, {"right": right, "wrong": wrong}, none, "counted", texts, batch)
    assert (engine.executor, engine.speculation) == (executor, controller)
    by_method = {one.method: one for one in found}
    assert list(by_method) == ["right", "wrong"]
    assert all(len(one.speeds) == 4 // batch for one in found)
    assert by_method["right"].accepted == 1.0
    assert by_method["right"].tokens_per_step > 4
    assert by_method["wrong"].accepted < 0.05  # by chance
    assert 1.0 <= by_method["wrong"].tokens_per_step < 1.1
