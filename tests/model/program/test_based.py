"""Based: linear attention, attention in a window and short convolutions, against the published
formulas in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.based import Based
from tests.helpers.oracle import assert_same_logits
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_based

CHUNKS = (1, 7, 64, 512)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(2, 97, n).tolist() for n in (70, 1, 17, 8)]


def load(directory: Path, **settings: Any) -> LoadedModel:
    own = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128, "kv_cache_dtype": "float32"}
    return load_model(EngineConfig(model=str(directory), **{**own, **settings}))


@pytest.mark.parametrize("values", [{}, {"n_embd": 36, "n_head": 3, "pad_vocab_size_multiple": 8}])
def test_logits_are_those_of_the_published_formulas(tmp_path: Path, values: dict[str, Any]) -> None:
    tiny_based(tmp_path, **values)
    expected = Based(tmp_path).logits(prompts())
    model = load(tmp_path)
    for chunk in CHUNKS:
        assert_same_logits(prompt_logits(model, prompts(), chunk), expected)


def test_what_a_sequence_keeps_does_not_grow_with_its_text(tmp_path: Path) -> None:
    """The rows of a window and of a convolution, and one state of each head."""
    model = load(tiny_based(tmp_path))
    rows = [layout for layout in model.layouts if not layout.spec.attends]
    assert rows[-1].page_bytes == 4 * (1 + 4 + 16) * (16 + 1) * 4
    assert [layout.window for layout in model.layouts if layout.spec.attends] == [12]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"n_embd": None}, "n_embd of config.json must be a positive integer, not None"),
        ({"n_layer": "x"}, "n_layer of config.json must be a positive integer, not 'x'"),
        (
            {"pad_vocab_size_multiple": 0},
            "pad_vocab_size_multiple of config.json must be a positive",
        ),
        (
            {"alt_mixer_layers": 5},
            "must be a list of layers, of 0 to 2, not 5",
        ),
        ({"rms_norm": False}, "config.json sets rms_norm: its norms are LayerNorms"),
        ({"n_positions": 2048}, "learned positions are not supported"),
        ({"mlp_fc1_bias": True}, "mlp_fc1_bias of config.json must be false"),
        ({"n_layer": 10**9}, "n_layer of config.json is 1000000000; models of up to 10000"),
        ({"alt_mixer_layers": [9]}, "must be a list of layers, of 0 to 2, not"),
        ({"rotary_emb_fraction": 1.5}, "rotary_emb_fraction of config.json is 1.5; only 0 and 1"),
        ({"mixer": None}, "mixer of config.json is None; its _target_ must end in one of BaseConv"),
        (
            {"alt_mixer": {"_target_": "LinearAttention", "feature_map": None}},
            "feature map of alt_mixer of config.json is None; only TaylorExp is supported",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    tiny_based(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelError, match=told):
        load(tmp_path)
