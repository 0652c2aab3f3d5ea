"""A draft model: another model's guesses, verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from ockham.core.errors import ConfigError, DoesNotFit
from ockham.core.seams import Target
from ockham.draft.draft_model import DraftModel
from ockham.engine.engine import Engine
from ockham.engine.runner.small_model import SmallModel
from tests.helpers.drafting import VOCABULARY, answers, draft_model, make_engine
from tests.helpers.tiny import tiny_llama, tiny_mistral


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("target"), vocab_size=VOCABULARY)


@pytest.fixture(scope="module", params=["itself", "window"])
def draft(
    request: pytest.FixtureRequest, target: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model that is always right, and one that hardly ever is."""
    if request.param == "itself":
        return target
    return tiny_mistral(tmp_path_factory.mktemp("other"), vocab_size=VOCABULARY, window=16)


def pages_used(engine: Engine) -> int:
    """Of the draft model's state."""
    (drafter,) = engine.speculation.drafters
    assert isinstance(drafter, DraftModel)
    assert isinstance(drafter.model, SmallModel)
    return drafter.model.state.pages_used


@pytest.mark.parametrize("branches", [1, 4])
def test_whatever_it_guesses_no_token_changes(target: Path, draft: Path, branches: int) -> None:
    engine = make_engine(target, speculative_config=draft_model(draft, branches))
    assert answers(engine) == answers(make_engine(target))
    stats = engine.speculation.stats()
    assert stats.drafts > 0
    if (
        draft == target and branches == 1
    ):  # greedy or drawn with the same noise, it foretells every token
        # It is cut short at the end of each of the six answers only.
        assert stats.accepted_at[3] >= stats.drafts - 6
    assert pages_used(engine) == 0


def test_it_reads_on_where_preemption_took_a_sequence_back(target: Path, draft: Path) -> None:
    tight = {"kv_cache_memory_bytes": 160 * 2 * 2 * 2 * 8 * 4, "max_model_len": 150}
    engine = make_engine(target, speculative_config=draft_model(draft), **tight)
    expected = answers(make_engine(target, **tight), 4)
    assert answers(engine, 4) == expected
    assert engine.scheduler.preemptions > 0
    assert pages_used(engine) == 0


def test_a_model_with_another_vocabulary_is_refused(target: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path, vocab_size=VOCABULARY + 3)
    with pytest.raises(ConfigError, match="has 100 tokens, and the model has 97"):
        make_engine(target, speculative_config=draft_model(other))


def test_a_model_must_be_named(target: Path) -> None:
    with pytest.raises(ConfigError, match='needs a "model"'):
        make_engine(target, speculative_config="draft_model")


def test_a_model_that_does_not_fit_is_refused(target: Path) -> None:
    endless = Target(vocabulary=VOCABULARY, max_model_len=500, sequences=1, cells=10**12)
    with pytest.raises(DoesNotFit):
        SmallModel(str(target), endless)
