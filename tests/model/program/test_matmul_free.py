"""MatMul-free LM: gated linear recurrences alone, ternary weights and inputs in 8 bits, against the
published formulas in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import Head, LinearGru
from ockham.model.loading import LoadedModel, load_model, plan_model
from tests.helpers.matmul_free import MatMulFree
from tests.helpers.oracle import assert_same_logits
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_matmul_free

CHUNKS = (1, 7, 64, 512)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(2, 97, n).tolist() for n in (70, 1, 17, 8)]


def load(directory: Path, **settings: Any) -> LoadedModel:
    own = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    return load_model(EngineConfig(model=str(directory), **{**own, **settings}))


def change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("bounded", [True, False])
def test_logits_are_those_of_the_published_formulas(tmp_path: Path, bounded: bool) -> None:
    """With inputs of the products as they are: ternary weights widened to fp32."""
    tiny_matmul_free(tmp_path, bounded=bounded)
    expected = MatMulFree(tmp_path, eight_bits=False).logits(prompts())
    model = load(tmp_path, quantization="fp32")
    for chunk in CHUNKS:
        assert_same_logits(prompt_logits(model, prompts(), chunk), expected)


def test_logits_are_those_of_training_but_where_an_input_lies_between_two_integers(
    tmp_path: Path,
) -> None:
    """The order of a sum decides such an input: it goes to one integer or to the other."""
    tiny_matmul_free(tmp_path)
    expected = MatMulFree(tmp_path).logits(prompts())
    spread = max(float(np.ptp(each)) for each in expected)
    model = load(tmp_path)
    for chunk in CHUNKS:
        found = prompt_logits(model, prompts(), chunk)
        off = np.concatenate(
            [np.abs(f - e).max(axis=1) for f, e in zip(found, expected, strict=True)]
        )
        assert np.mean(off < 1e-4 * spread) > 0.8
        assert off.max() < 0.02 * spread


def test_all_matrices_but_the_embeddings_are_ternary(tmp_path: Path) -> None:
    model = load(tiny_matmul_free(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    held = {"lm_head": next(op for op in model.program.ops if isinstance(op, Head)).out}
    for op in model.program.ops:
        if isinstance(op, LinearGru):
            prefix = f"model.layers.{op.layer}.attn."
            held |= {f"{prefix}{name[0]}_proj": m for name, m in op.matrices().items()}
    assert model.weight_format == "ternary+fp32"
    for name, matrix in held.items():
        weight = tensors[f"{name}.weight"]
        mean = np.abs(weight).mean(dtype=np.float64)
        rows = matrix.rows(np.arange(len(weight), dtype=np.int32))
        meant = np.clip(np.rint(weight / mean), -1, 1) * mean
        np.testing.assert_allclose(rows, meant, rtol=1e-6)


def test_a_sequence_keeps_one_vector_for_each_layer(tmp_path: Path) -> None:
    """And of the tokens of the page that is not full one each; no keys and values of any."""
    model = load(tiny_matmul_free(tmp_path))
    cells, ends = model.layouts
    assert not cells.spec.attends
    assert not ends.spec.attends
    assert ends.page_bytes == 3 * 64 * 4
    assert cells.cell_bytes == 3 * 64 * 4
    assert model.plan.token_bytes == 0
    assert "recurrent state of up to" in model.plan.describe()
    assert "KV cache" not in model.plan.describe()


def test_a_checkpoint_is_left_at_each_full_step_where_there_are_no_keys(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tiny_matmul_free(tmp_path)), max_num_batched_tokens=96)
    planned = plan_model(config)
    planned.source.close()
    assert planned.plan.checkpoint_tokens == 96
    assert planned.plan.checkpoints >= planned.plan.max_model_len // 96
    assert f"room for {planned.plan.checkpoints} checkpoints" in planned.plan.describe()


def test_the_width_of_feed_forwards_follows_from_a_ratio(tmp_path: Path) -> None:
    """Two thirds of the hidden size times the ratio, up to a multiple of 256."""
    tiny_matmul_free(tmp_path, intermediate_size=256)
    expected = MatMulFree(tmp_path, eight_bits=False).logits(prompts())
    change(tmp_path, intermediate_size=None, hidden_ratio=4)
    found = prompt_logits(load(tmp_path, quantization="fp32"), prompts(), 64)
    assert_same_logits(found, expected)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"use_short_conv": True},
            "use_short_conv of config.json is True; only False is supported",
        ),
        ({"expand_ratio": 2}, "expand_ratio of config.json is 2; only 1 is supported"),
        (
            {"tie_word_embeddings": True},
            "ties the head to the embeddings: HGRNBitForCausalLM needs",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    tiny_matmul_free(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(ModelError, match=told):
        load(tmp_path)
