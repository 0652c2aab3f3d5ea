"""A head that foretells acceptance ends drafts, and changes no token."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Draft, Rows, Target, Wish
from ockham.draft.draft_model import DraftModel, DraftModelOptions
from ockham.draft.modelled.growing import EDGES
from ockham.draft.modelled.stream import ModelStream
from ockham.engine.runner.small_model import SmallModel
from ockham.model.checkpoint.draft_files import ACCEPTANCE_FILE, read_acceptance
from tests.helpers.drafting import answers, draft_model, make_engine
from tests.helpers.tiny import tiny_llama

VOCABULARY, HIDDEN, INNER = 97, 32, 5
PROMPT = [(7 * i) % VOCABULARY for i in range(40)]
BY_SHARE = [0.0, *EDGES] + [0.0] * 6
"""What is accepted of each kind: as much as the lower edge of its shares; nothing of others."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("draft"), vocab_size=VOCABULARY)


def with_head(checkpoint: Path, directory: Path, out_bias: float = 0.0, scale: float = 0.0) -> Path:
    """A copy with a head beside it, which says sigmoid(out_bias) if `scale` is 0."""
    shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
    rng = np.random.default_rng(1)
    tensors = {
        "weight": rng.standard_normal((INNER, HIDDEN)) / 8,
        "bias": rng.standard_normal(INNER),
        "out.weight": scale * rng.standard_normal((1, INNER)),
        "out.bias": np.array([out_bias]),
    }
    found = {name: value.astype(np.float32) for name, value in tensors.items()}
    save_file(found, directory / ACCEPTANCE_FILE)
    return directory


def drafted(
    model: Path, config: DraftModelOptions, worth: float, accepted: list[float]
) -> Draft | None:
    target = Target(vocabulary=VOCABULARY, max_model_len=200, sequences=4, cells=800)
    drafter = DraftModel(config)
    drafter.attach(lambda _: SmallModel(str(model), target))
    stream = ModelStream(drafter.model)
    stream.extend(np.array(PROMPT, np.int32))
    (draft,) = drafter.propose_all([stream], [Wish(8, accepted, None)], worth, math.inf)
    return draft


def test_a_draft_ends_where_the_head_says(checkpoint: Path, tmp_path: Path) -> None:
    config = DraftModelOptions(model="x", branches=1)
    sure = with_head(checkpoint, tmp_path / "sure", out_bias=20.0)
    unsure = with_head(checkpoint, tmp_path / "unsure", out_bias=-20.0)
    nine_in_ten = with_head(checkpoint, tmp_path / "90%", out_bias=math.log(0.91 / 0.09))
    assert drafted(unsure, config, 0.5, BY_SHARE) is None
    draft = drafted(sure, config, 0.5, BY_SHARE)
    assert draft is not None
    assert len(draft.tokens) == 8
    draft = drafted(nine_in_ten, config, 0.5, BY_SHARE)  # 0.9 ** 6 is more than half
    assert draft is not None
    assert len(draft.tokens) == 6


def test_no_token_is_drafted_beyond_the_threshold(checkpoint: Path, tmp_path: Path) -> None:
    model = with_head(checkpoint, tmp_path / "90%", out_bias=math.log(0.91 / 0.09))
    config = DraftModelOptions(model="x", branches=1, rejection_threshold=0.3)
    draft = drafted(model, config, 0.0, BY_SHARE)
    assert draft is not None
    assert len(draft.tokens) == 3  # of a fourth one the chance of a rejection is 0.34


def test_what_the_likeliest_does_not_get_is_the_others(checkpoint: Path, tmp_path: Path) -> None:
    """With several branches: shares still sum to one."""
    model = with_head(checkpoint, tmp_path / "half", out_bias=0.0)
    target = Target(vocabulary=VOCABULARY, max_model_len=200, sequences=4, cells=800)
    drafter = DraftModel(DraftModelOptions(model="x"))
    drafter.attach(lambda _: SmallModel(str(model), target))
    stream = ModelStream(drafter.model)
    stream.extend(np.array(PROMPT, np.int32))
    stream.settle()
    assert stream.reserve(len(PROMPT))
    foreseen = drafter._run([Rows(stream.view, stream.take(len(PROMPT)))])
    shares = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(drafter._judged(shares, foreseen, 0), [0.5, 1 / 3, 1 / 6], rtol=1e-6)


def test_the_head_is_what_its_formula_says(checkpoint: Path, tmp_path: Path) -> None:
    directory = with_head(checkpoint, tmp_path / "head", out_bias=0.3, scale=1.0)
    head = read_acceptance(directory, HIDDEN)
    assert head is not None
    state = np.random.default_rng(2).standard_normal(HIDDEN).astype(np.float32)
    inner = [
        sum(float(w) * float(h) for w, h in zip(row, state, strict=True)) + float(bias)
        for row, bias in zip(head.weight, head.bias, strict=True)
    ]
    score = sum(
        float(w) * x / (1 + math.exp(-x)) for w, x in zip(head.out_weight, inner, strict=True)
    )
    assert head.chance(state) == pytest.approx(1 / (1 + math.exp(-score - 0.3)), rel=1e-5)


def test_whatever_it_says_no_token_changes(checkpoint: Path, tmp_path: Path) -> None:
    draft = with_head(checkpoint, tmp_path / "random", scale=3.0)
    engine = make_engine(checkpoint, speculative_config=draft_model(draft))
    assert answers(engine) == answers(make_engine(checkpoint))
    assert engine.speculation.stats().accepted > 0


def test_a_head_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "wide", vocab_size=VOCABULARY, hidden_size=48)
    shutil.copy(with_head(checkpoint, tmp_path / "own") / ACCEPTANCE_FILE, other / ACCEPTANCE_FILE)
    with pytest.raises(ModelError, match="where"):
        make_engine(checkpoint, speculative_config=draft_model(other))


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rejection_threshold must lie in \(0, 1\], got 0"):
        DraftModelOptions(rejection_threshold=0.0)
