"""Gemma 4: what is unlike other decoders, beside the logits (`test_architectures.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest, ModelError
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import Request, make_asks
from ockham.kernels.ops import Attend, AttentionInput
from ockham.model.loading import load_model
from ockham.model.program.costs import cost_of
from ockham.model.program.description import describe
from ockham.model.program.rope_scaling import rescale
from tests.helpers import isas
from tests.helpers.oracle import assert_same_logits, load
from tests.helpers.serving import make_engine
from tests.helpers.steps import Part, Stepper, prompt_logits
from tests.helpers.tiny import tiny_gemma4

SHARED: dict[str, Any] = {
    "kinds": ("sliding_attention", "full_attention") * 3,
    "sharing": 2,
    "inputs": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {"dense": {}, "mixture": {"experts": 4}, "shared": SHARED}
PROMPTS = [np.random.default_rng(7).integers(3, 97, count).tolist() for count in (40, 1, 19)]
E2B: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "layer_types": ([*["sliding_attention"] * 4, "full_attention"]) * 7,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
}


ALONE = {"num_kv_shared_layers": 0}


@pytest.mark.parametrize("isa", ["amx", "avx512", "avx2", "portable"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_twins_of_all_instruction_sets_agree(
    variant: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    path = tiny_gemma4(tmp_path, **VARIANTS[variant])
    plain = prompt_logits(load(path, backend="reference"), PROMPTS, 7)
    assert_same_logits(prompt_logits(load(path, backend="cpu"), PROMPTS, 7), plain)


def test_layers_that_read_others_keys_keep_none() -> None:
    """Of E2B's 35 layers 15 keep keys and values, in heads of two sizes."""
    description = describe(E2B)
    sliding, full = description.groups
    assert (len(sliding.layers), sliding.head_dim, sliding.window) == (12, 256, 512)
    assert (len(full.layers), full.head_dim, full.window) == (3, 512, None)
    assert description.read_by(33) == 13
    assert description.read_by(34) == 14
    assert description.widths == (6144,) * 15 + (12288,) * 20


def test_what_layers_share_is_written_once_and_read_by_each(tmp_path: Path) -> None:
    engine = make_engine(tiny_gemma4(tmp_path, **SHARED))
    cost = cost_of(engine.model.program, engine.model.layouts)
    kept = sum(layout.cell_bytes for layout in engine.model.layouts)
    assert cost.state_written_bytes(1) == kept
    assert cost.state_read_bytes(1, 1) == kept * 6 // 4


def test_an_adapter_on_keys_that_are_values_changes_both(tmp_path: Path) -> None:
    """The keys' rows are multiplied once."""
    model = load(tiny_gemma4(tmp_path))
    inputs = [op for op in model.program.ops if isinstance(op, AttentionInput)]
    assert [op.values_are_keys for op in inputs] == [False, True] * 2
    assert [op.qkv.out_features for op in inputs] == [(4 + 2 * 2) * 8, (4 + 1) * 16] * 2
    assert "model.layers.1.self_attn.k_proj" in model.program.parts
    assert "model.layers.1.self_attn.v_proj" not in model.program.parts


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_layers_hidden_state_is_what_it_leaves_at_its_end(backend: str, tmp_path: Path) -> None:
    """Scaled, with what the layer's inputs added: there is one of each layer."""
    path = tiny_gemma4(tmp_path, **SHARED)
    rows = np.arange(5, dtype=np.int32)

    def hidden(layer: int) -> np.ndarray:
        part = Part(0, PROMPTS[0][:5])
        found = Stepper(load(path, backend=backend)).step([part], wants_hidden={layer: rows})
        return found.hidden[layer]

    before, last = hidden(4), hidden(5)
    tensors = load_file(path / "model.safetensors")
    for layer in (4, 5):
        tensors[f"model.layers.{layer}.layer_scalar"] *= np.float32(2)
    save_file(tensors, path / "model.safetensors")
    assert np.array_equal(hidden(4), 2 * before)
    assert not np.allclose(hidden(5), 2 * last)


def test_a_gate_that_skips_keys_which_others_read_is_refused(tmp_path: Path) -> None:
    engine = make_engine(tiny_gemma4(tmp_path, **SHARED), speculative_config="none")
    reads = {op.reads for op in engine.model.program.ops if isinstance(op, Attend)}
    assert reads == {None, 2, 3}
    for layer, refused in ((1, False), (3, True)):
        request = Request(
            request_id=str(layer),
            prompt_token_ids=[3, 4, 5],
            params=SamplingParams(max_tokens=2),
            detokenize=False,
            asks=make_asks({"gate/skip_layers": {"layers": [layer]}}),
        )
        if refused:
            with pytest.raises(InvalidRequest, match="layer 3, whose keys and values other"):
                engine.take(request)
        else:
            engine.take(request)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "all share": ({"num_kv_shared_layers": 35}, "none is left whose keys and values layer 0"),
    "a short table": ({"vocab_size_per_layer_input": 99}, "fewer than the 262144 tokens"),
    "both ways": ({"use_bidirectional_attention": "all"}, "sets use_bidirectional_attention"),
    "heads": (
        {"attention_k_eq_v": True, "num_global_key_value_heads": 3},
        r"\(8\) is not a multiple of num_global_key_value_heads of config.json \(3\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_contradicts_itself_is_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        describe({**E2B, **change})


def test_attention_to_both_sides_of_images_alone_changes_nothing() -> None:
    described: Callable[[dict[str, Any]], object] = describe
    assert described({**E2B, "use_bidirectional_attention": "vision"}) == described(E2B)


def test_keys_of_layers_that_read_others_are_no_surprise(tmp_path: Path) -> None:
    path = tiny_gemma4(tmp_path, **SHARED)
    told: list[str] = []
    config = EngineConfig(model=str(path), max_num_seqs=2, max_model_len=64)
    load_model(config, told.append)
    assert told
    assert not any("not used" in line for line in told)


def test_longer_texts_rotate_no_pair_that_the_model_leaves() -> None:
    description = describe(E2B)
    full = description.ropes[4]
    assert full is not None
    assert np.count_nonzero(full.fix(100).inverse_frequencies) == 64
    assert len(full.fix(100).inverse_frequencies) == 256
    scaled = rescale(description, {"rope_type": "linear", "factor": 2.0}).ropes[4]
    assert scaled is not None
    frequencies = scaled.fix(100).inverse_frequencies
    assert np.array_equal(frequencies, full.fix(100).inverse_frequencies / 2)
    assert scaled.longest == 2 * full.longest
    with pytest.raises(ConfigError, match="yarn rotates every pair of a head"):
        rescale(description, {"rope_type": "yarn", "factor": 2.0})


def test_the_memory_plan_counts_what_layers_share_once() -> None:
    """Of each token of E2B 18 KiB in bfloat16, where all 35 layers would keep 42."""
    description = describe(E2B)
    specs = [group.spec("bfloat16", 16) for group in description.groups]
    counts = [len(group.layers) for group in description.groups]
    assert sum(n * each.nbytes for n, each in zip(counts, specs, strict=True)) == 18 << 10
    alone = [group.spec("bfloat16", 16) for group in describe({**E2B, **ALONE}).groups]
    assert 28 * alone[0].nbytes + 7 * alone[1].nbytes == 42 << 10
