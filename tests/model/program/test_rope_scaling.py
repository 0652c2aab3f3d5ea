"""Rotary embeddings beyond the length that a checkpoint was trained for: YaRN and dual chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ockham import LLM, ConfigError, InvalidRequest, SamplingParams
from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import DualChunk
from ockham.model.loading import LoadedModel, load_model
from ockham.model.program.description import describe
from ockham.model.program.rope_scaling import rescale
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama, tiny_mistral

DUAL = {"rope_type": "dual_chunk", "chunk_size": 96, "local_size": 32}
SHARP = {**DUAL, "original_max_position_embeddings": 70}
TINY = {"max_position_embeddings": 96}


def loaded(directory: Path, backend: str = "reference", **settings: Any) -> LoadedModel:
    return load_model(
        EngineConfig(
            model=str(directory),
            backend=backend,
            dtype="float32",
            max_num_batched_tokens=512,
            block_size=4,
            **settings,
        )
    )


def distances(length: int, chunk_size: int, local_size: int) -> np.ndarray:
    """How far apart each query and key before it are taken to be: (length, length), by the three
    cases of the paper, one pair after another."""
    chunk = chunk_size - local_size
    found = np.zeros((length, length), np.int64)
    for i in range(length):
        for j in range(i + 1):
            if i // chunk == j // chunk:
                query = i % chunk
            elif i // chunk == j // chunk + 1:
                query = min(i % chunk + chunk, chunk_size)
            else:
                query = min(2 * chunk - 1, chunk_size)
            found[i, j] = query - j % chunk
    return found


def oracle(directory: Path, tokens: list[int], apart: np.ndarray, sharpen: np.ndarray) -> Any:
    """The logits of a Llama model in fp64, whose queries are rotated by the distance to each key
    and whose rows' scores are multiplied by `sharpen`."""
    config = json.loads((directory / "config.json").read_text())
    w = {k: v.astype(np.float64) for k, v in load_file(directory / "model.safetensors").items()}
    heads, kv, dim = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    frequencies = config["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    angles = apart[..., None] * frequencies  # (T, T, dim / 2)
    cos, sin = np.cos(angles), np.sin(angles)
    hidden = np.tril(np.ones(apart.shape, bool))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        out: np.ndarray = x / scale * w[name]
        return out

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{at}self_attn.{name}_proj.weight"].T).reshape(len(tokens), -1, dim)
            for name in "qkv"
        )
        out = np.zeros((len(tokens), heads, dim))
        for head in range(heads):
            one, other = q[:, head], k[:, head * kv // heads]
            a, b = one[:, None, : dim // 2], one[:, None, dim // 2 :]
            turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)  # (T, T, dim)
            scores = np.einsum("ijd,jd->ij", turned, other) / np.sqrt(dim) * sharpen[:, None]
            weights = np.exp(np.where(hidden, scores - scores.max(), -np.inf))
            weights /= weights.sum(-1, keepdims=True)
            out[:, head] = weights @ v[:, head * kv // heads]
        x = x + out.reshape(len(tokens), -1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("setting", [DUAL, SHARP], ids=["dual", "sharp"])
def test_dual_chunk_attention_is_its_definition(
    backend: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    """Against a model whose queries and keys are rotated by nothing but their distance."""
    directory = tiny_llama(tmp_path / "tiny", **TINY)
    tokens = np.random.default_rng(1).integers(2, 97, 300).tolist()
    model = loaded(directory, backend, rope_scaling=setting)
    assert model.description.max_position_embeddings == 4 * 96
    found = prompt_logits(model, [tokens], 512)[0]
    sharpen = np.ones(300)
    if setting is SHARP:
        sharpen = (0.1 * np.log(np.maximum(1, np.arange(1, 301) / 70)) + 1) ** 2
    expected = oracle(directory, tokens, distances(300, 96, 32), sharpen)
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)
    plain = oracle(directory, tokens, np.subtract.outer(*[np.arange(300)] * 2), np.ones(300))
    assert np.abs(plain[64:] - expected[64:]).max() > 0.01 * np.ptp(expected), "it does something"


def test_the_distances_of_neighbours_are_true_and_none_is_longer_than_a_chunk() -> None:
    apart, true = distances(700, 96, 32), np.subtract.outer(*[np.arange(700)] * 2)
    near = (true >= 0) & (true <= 32)
    assert (apart[near] == true[near]).all()
    assert apart.max() == 96


def test_texts_within_the_first_chunk_have_the_same_bits(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tiny", **TINY)
    tokens = np.random.default_rng(2).integers(2, 97, 64).tolist()
    plain, dual = (
        prompt_logits(loaded(directory, "cpu", rope_scaling=setting), [tokens], 512)[0]
        for setting in (None, SHARP)
    )
    assert plain.tobytes() == dual.tobytes()


def test_a_checkpoint_says_it_under_qwens_key(tmp_path: Path) -> None:
    """The key of Qwen2.5-1M is the setting, and the two have one numerics id; plain has another."""
    chunks = {"chunk_size": 96, "local_size": 32, "sparse_attention_threshold": 32768}
    plain = tiny_llama(tmp_path / "plain", **TINY)
    said = tiny_llama(
        tmp_path / "said",
        max_position_embeddings=384,
        dual_chunk_attention_config=chunks,
    )
    asked = {**DUAL, "factor": 1}
    wide = tiny_llama(tmp_path / "wide", max_position_embeddings=384)
    ids = [loaded(path).numerics_id for path in (plain, said, wide)]
    assert len(set(ids)) == 3
    assert loaded(wide, rope_scaling=asked).numerics_id == ids[1]
    [rope] = {op.dual_chunk for op in loaded(said).description.ropes if op is not None}
    assert rope == DualChunk(64, 96)


def test_defaults_are_the_trained_length_and_a_quarter_of_it(tmp_path: Path) -> None:
    description = loaded(tiny_llama(tmp_path / "tiny", max_position_embeddings=512)).description
    rope = rescale(description, '{"rope_type": "dual_chunk", "factor": 3}').ropes[0]
    assert rope is not None
    assert rope.dual_chunk == DualChunk(512 - 128, 512)
    assert rope.longest == 3 * 512


def test_yarn_as_a_setting_is_yarn_in_the_checkpoint(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96}
    said = loaded(tiny_llama(tmp_path / "said", rope_scaling=yarn, **TINY))
    plain = tiny_llama(tmp_path / "plain", **TINY)
    asked = loaded(plain, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert asked.numerics_id == said.numerics_id
    assert asked.description.max_position_embeddings == 384


def test_linear_scaling_lengthens_what_may_be_asked(tmp_path: Path) -> None:
    plain = tiny_llama(tmp_path / "plain", **TINY)
    found = loaded(plain, rope_scaling={"type": "linear", "factor": 2.0}, max_model_len=190)
    assert found.description.max_position_embeddings == 192


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{", "rope_scaling is no valid JSON"),
        ("[1]", r"rope_scaling must be an object, not \[1\]"),
        ({"rope_type": "longer"}, "rope_scaling: the rotary embedding 'longer' is not supported"),
        ({"rope_type": "longer"}, "longrope, dual_chunk."),
        ({"rope_type": "yarn"}, "rope_scaling: yarn needs a factor"),
        ({"rope_type": "linear"}, "rope_scaling: the rotary embedding 'linear' lacks 'factor'"),
        ({"rope_type": "yarn", "factor": -1}, "factor .* must be a positive number, not -1"),
        ({**DUAL, "factor": 0.5}, "factor must be at least 1, got 0.5"),
        ({**DUAL, "local": 3}, "dual_chunk has no 'local'; it has factor, chunk_size, local_size"),
        ({**DUAL, "local_size": 33}, r"96 - 33 = 63\) must be a multiple of 64"),
        ({**DUAL, "local_size": 96}, r"96 - 96 = 0\) must be a multiple of 64"),
        ({**DUAL, "chunk_size": "96"}, "chunk_size must be a whole number from 2 to .*, not '96'"),
        ({**DUAL, "factor": 1e12}, "it reaches .* positions; at most"),
    ],
)
def test_a_wrong_setting_is_refused(
    setting: str | dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tiny_llama(tmp_path / "tiny", **TINY), rope_scaling=setting)


def test_models_without_such_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MistralForCausalLM has no layer that sees a whole text"):
        loaded(tiny_mistral(tmp_path / "tiny"), rope_scaling=DUAL)


@pytest.mark.parametrize("chunks", [{"chunk_size": 96, "local_size": 40}, [96, 32]], ids=str)
def test_a_wrong_checkpoint_is_refused(chunks: object, tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tiny", dual_chunk_attention_config=chunks)
    config = json.loads((directory / "config.json").read_text())
    with pytest.raises(ModelError, match=r"dual_chunk_attention_config of config\.json"):
        describe(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reuse": "prefix,chunk"}, "reuse 'chunk' puts state of other positions in place"),
        ({"keep": "recent:64"}, "recent drops cells, and with dual chunk attention rows must see"),
        (
            {"attention_pattern": "xattention"},
            "xattention chooses keys by how a query scores",
        ),
        (
            {"attention_pattern": "minference"},
            "minference chooses keys by how a query scores",
        ),
        (
            {"attention_pattern": "quest:dense_layers=0"},
            "quest chooses keys by how a query scores",
        ),
    ],
)
def test_what_does_not_go_with_dual_chunks_is_refused(
    settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    directory = tiny_llama(tmp_path / "tiny", tokenizer=True, **TINY)
    with pytest.raises(ConfigError, match=message):
        LLM(str(directory), rope_scaling=DUAL, **settings)


def test_requests_may_not_ask_for_it_either(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tiny", tokenizer=True, **TINY)
    with LLM(str(directory), rope_scaling=DUAL) as llm:
        for ask in (
            {"recent": {"window": 64}},
            {"quest": {"dense_layers": 0}},
            {"xattention": True},
        ):
            with pytest.raises(InvalidRequest, match=r"(which|with) dual chunk attention"):
                llm.generate("a text", SamplingParams(**ask))  # type: ignore[arg-type]


def test_drafts_prefixes_and_static_patterns_go_with_it(tmp_path: Path) -> None:
    """What was cached and what was drafted change no token, far beyond the trained length."""
    directory = tiny_llama(tmp_path / "tiny", tokenizer=True, **TINY)
    prompt = np.random.default_rng(3).integers(2, 4096, 260).tolist()
    prompt += prompt[20:60]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    asking: dict[str, Any] = {"streaming": {"heads": 0.5, "window_blocks": 1}}
    streaming = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, **asking)
    found = []
    for settings in (
        {"speculative_config": "none", "reuse": "none"},
        {"speculative_config": "copying", "max_num_batched_tokens": 37},
    ):
        with LLM(str(directory), rope_scaling=SHARP, **settings) as llm:
            asked = [params, streaming]
            first = llm.generate([prompt] * 2, asked)
            again = llm.generate([prompt] * 2, asked)
        outputs = [[o.outputs[0].token_ids for o in each] for each in (first, again)]
        assert outputs[0] == outputs[1]
        found.append(outputs[0])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_queries_go_on_growing_where_the_rest_is_scaled() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = {
        "architectures": ["Ministral3ForCausalLM"],
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {**yarn, "llama_4_scaling_beta": 0.1},
    }
    own = describe(config)
    scaled = rescale(own, {"rope_type": "linear", "factor": 2.0})
    found = [variant.fix(512) for each in (own, scaled) if (variant := each.ropes[0])]
    assert [(rope.growth, rope.period) for rope in found] == [(0.1, 64)] * 2
