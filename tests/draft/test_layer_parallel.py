"""Layers that take the same input: a draft of another shape, and the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.core.seams import Rows, Target
from ockham.draft.draft_model import DraftModelOptions
from ockham.draft.modelled.drafting import LIKELY
from ockham.draft.modelled.stream import ROOT, ModelStream
from ockham.engine.runner.small_model import SmallModel
from ockham.kernels.native import core
from tests.helpers.drafting import VOCABULARY, answers, draft_model, make_engine
from tests.helpers.tiny import tiny_llama

PROMPT = [(7 * i) % VOCABULARY for i in range(30)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deep")
    return tiny_llama(directory, vocab_size=VOCABULARY, num_hidden_layers=5)


@pytest.fixture
def small(checkpoint: Path) -> SmallModel:
    target = Target(vocabulary=VOCABULARY, max_model_len=200, sequences=4, cells=800)
    return SmallModel(str(checkpoint), target)


def read(small: SmallModel, tokens: list[int], recompute: bool = False) -> ModelStream:
    stream = ModelStream(small, recompute)
    stream.extend(np.array(tokens, np.int32))
    stream.settle()
    assert stream.reserve(len(tokens))
    small.run([Rows(stream.view, stream.take(len(tokens)))], LIKELY)
    return stream


def test_groups_add_what_each_layer_makes_of_their_input(small: SmallModel) -> None:
    """Against one run for each layer, and the sum written out."""
    stream = read(small, PROMPT)
    assert stream.reserve(2)
    rows = [Rows(stream.view, [5, 6], len(PROMPT), [[], [len(PROMPT)]])]
    step = small._step(rows)
    at, executor = small._breakpoints, small.executor

    def changed(layer: int, x: np.ndarray) -> np.ndarray:
        run = executor.begin(step)
        executor.run(run, 0, at["layer.0.before"])
        run.x = x.copy()
        executor.run(run, at[f"layer.{layer}.before"], at[f"layer.{layer}.after"])
        return np.array(run.x) - x

    run = executor.begin(step)
    executor.run(run, 0, at["layer.0.before"])
    x = np.array(run.x)
    for group in ([0], [1, 2], [3, 4]):
        x = x + sum(changed(layer, x) for layer in group)
    small.layer_parallel = 2
    found = small.run(rows, LIKELY, hidden=True)
    assert found.hidden is not None
    np.testing.assert_allclose(found.hidden, x, rtol=1e-5, atol=1e-5)
    run = executor.begin(step)
    executor.run(run, 0, at["layer.0.before"])
    run.x = x
    executor.run(run, at["head"], small._operations)
    np.testing.assert_allclose(found.logits, executor.finish(run).logits, rtol=1e-4, atol=1e-4)
    stream.close()


@pytest.mark.skipif(core is None, reason="the reference backend promises no bits")
@pytest.mark.parametrize("recompute", [False, True], ids=["left", "calibrated"])
def test_what_was_said_is_computed_again_as_it_should_be(
    small: SmallModel, recompute: bool
) -> None:
    exact = read(small, [*PROMPT, 5, 6, 7])
    stream = read(small, PROMPT, recompute)
    small.layer_parallel = 2
    first = len(PROMPT)
    assert stream.reserve(2)
    small.run([Rows(stream.view, [5, 6], first, [[], [first]])], LIKELY)
    stream.grow(ROOT, 5, first)
    stream.grow(first, 6, first + 1)
    stream.extend(np.array([5, 6, 7], np.int32))
    stream.settle()
    assert stream.unread == ([5, 6, 7] if recompute else [7])
    assert stream.reserve(len(stream.unread))
    small.run([Rows(stream.view, stream.take(3))], LIKELY)
    same = small.state.export(stream.view).data == small.state.export(exact.view).data
    assert same == recompute
    stream.close()
    exact.close()


def test_however_it_drafts_no_token_changes(checkpoint: Path) -> None:
    drafting = {**draft_model(checkpoint), "layer_parallel": 2}
    engine = make_engine(checkpoint, speculative_config=drafting)
    assert answers(engine) == answers(make_engine(checkpoint))
    assert engine.speculation.stats().accepted > 0


def test_a_group_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_parallel must lie in \[1, 16\], got 0"):
        DraftModelOptions(layer_parallel=0)
