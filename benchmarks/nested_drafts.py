"""What a model's first neurons draft at a real size: `python -m benchmarks.nested_drafts OUT`.

OUT is where a checkpoint of TinyLlama's shape is written that says what `lab-nested` says, unless
it stands there: `lab-nested` fills a corner of every matrix, and all else is 0, which takes the
same time. The first quarter of its neurons lies in the first quarter of the larger ones.

Each text is decoded by every setting in turn, greedily; the speed of a setting is the time without
drafts over the time with them, of decoding alone. Processor time is what is compared, which tells
more than the clock where others use the machine; so threads = 1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from statistics import median

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from ockham.cli.random_checkpoint import SHAPES
from ockham.core.arrays import Floats, Longs
from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.tasks import TASKS
from ockham.model.hub import resolve
from ockham.text.tokenizer import Tokenizer

MODEL, SHAPE = "lab-nested", "tinyllama"
BEGINNING = 200
"""Tokens of a text that goes on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--tasks", nargs="+", default=["code", "steps"])
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--most", type=int, default=6, help="drafted tokens where all are verified")
    given = parser.parse_args()
    if not (given.out / "config.json").exists():
        grow(resolve(MODEL), given.out, SHAPE)
    nested = {"method": "nested", "share": given.share}
    settings: dict[str, str | dict[str, object]] = {
        "none": "none",
        "nested, always": {**nested, "adaptive": False, "num_speculative_tokens": given.most},
        "nested": {**nested},
        "copying": "copying",
        "copying and nested": {**nested, "method": "copying,nested"},
    }
    engines = {
        label: Engine(
            EngineConfig(
                model=str(given.out),
                quantization=given.quantization,
                threads=1,
                reuse="none",
                speculative_config=setting,
                max_model_len=1024,
                kv_cache_memory_bytes=128 << 20,
                skip_tokenizer_init=True,
            )
        )
        for label, setting in settings.items()
    }
    for task in given.tasks:
        compare(engines, task, given.texts, given.tokens)


def compare(engines: dict[str, Engine], task: str, texts: int, tokens: int) -> None:
    """Decode the texts of a task with each engine in turn, and say what each was worth."""
    seconds: dict[str, list[float]] = {label: [] for label in engines}
    steps = dict.fromkeys(engines, 0)
    for number, prompt in enumerate(prompts(task, texts)):
        said = {}
        for label in list(engines)[:: 1 if number % 2 else -1]:
            said[label], took_s, count = decode(engines[label], prompt, tokens, f"{task} {number}")
            seconds[label].append(took_s)
            steps[label] += count
        assert all(each == said["none"] for each in said.values()), "drafts change no token"
    plain = seconds["none"]
    for label, own in seconds.items():
        speeds = [a / b for a, b in zip(plain, own, strict=True)]
        print(
            f"{task:8} {label:20} speed {sum(plain) / sum(own):.2f}, of a text "
            f"{min(speeds):.2f} to {max(speeds):.2f}, median {median(speeds):.2f}; "
            f"{texts * (tokens - 1) / steps[label]:.2f} tokens a step",
            flush=True,
        )


def decode(
    engine: Engine, prompt: list[int], tokens: int, salt: str
) -> tuple[list[int], float, int]:
    """The tokens that follow a prompt, processor seconds after the first of them, and steps."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    engine.add(
        Request(
            request_id="text",
            prompt_token_ids=prompt,
            params=params,
            detokenize=False,
            cache_salt=salt,
        )
    )
    said: list[int] = []
    while not said:
        said += [token for delta in engine.step() for token in delta.token_ids]
    began, steps = time.process_time(), 0
    while engine.has_work:
        said += [token for delta in engine.step() for token in delta.token_ids]
        steps += 1
    return said, time.process_time() - began, steps


def prompts(task: str, count: int) -> list[list[int]]:
    """Items of a task as chats begin, or the beginnings of texts."""
    tokenizer, rng, found = Tokenizer(resolve(MODEL)), Random("nested drafts"), []
    for number in range(count):
        item = TASKS[task].item(rng.randrange(1 << 30), number, "test")
        text = item.text or tokenizer.apply_chat_template([dict(m) for m in item.messages])
        ids = tokenizer.encode(text, add_special_tokens=False)
        found.append(ids[:BEGINNING] if item.text else ids)
    return found


def grow(source: Path, out: Path, shape: str) -> None:
    """Write a checkpoint of a shape that says what the smaller one in `source` says."""
    own = json.loads((source / "config.json").read_text())
    config = SHAPES[shape].config()
    small, large = own["hidden_size"], config["hidden_size"]
    dim = own["head_dim"]
    if dim * config["num_attention_heads"] != large:
        raise SystemExit(f"heads of {shape} have another size than the {dim} of {source}.")
    group = own["num_attention_heads"] // own["num_key_value_heads"]
    wide = config["num_attention_heads"] // config["num_key_value_heads"]
    heads = np.arange(own["num_attention_heads"])
    queries = ((heads // group * wide + heads % group)[:, None] * dim + np.arange(dim)).ravel()
    keys = np.arange(own["num_key_value_heads"] * dim)
    inner, quarter = config["intermediate_size"], own["intermediate_size"] // 4
    later = inner // 4 + np.arange(own["intermediate_size"] - quarter)
    neurons = np.concatenate([np.arange(quarter), later])
    stream = np.arange(small)
    sizes = {
        "q_proj": (large, large, queries, stream),
        "k_proj": (config["num_key_value_heads"] * dim, large, keys, stream),
        "v_proj": (config["num_key_value_heads"] * dim, large, keys, stream),
        "o_proj": (large, large, stream, queries),
        "gate_proj": (inner, large, neurons, stream),
        "up_proj": (inner, large, neurons, stream),
        "down_proj": (large, inner, stream, neurons),
    }
    weights: dict[str, Floats] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= {name: each.astype(np.float32) for name, each in load_file(path).items()}

    def placed(name: str, rows: int, columns: int, at: Longs, among: Longs) -> Floats:
        matrix: Floats = np.zeros((rows, columns), np.float32)
        if name in weights:
            matrix[np.ix_(at, among)] = weights[name]
        return matrix

    def norm(name: str) -> Floats:
        """The mean square of the larger stream is that of the smaller one, times small / large."""
        vector: Floats = np.zeros(large, np.float32)
        if name in weights:
            vector[:small] = weights[name] * np.float32(np.sqrt(small / large))
        return vector

    vocabulary = np.arange(own["vocab_size"])
    table = "model.embed_tokens.weight"
    weights.setdefault("lm_head.weight", weights[table])
    grown = {
        name: placed(name, config["vocab_size"], large, vocabulary, stream)
        for name in (table, "lm_head.weight")
    }
    grown["model.norm.weight"] = norm("model.norm.weight")
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns, at, among) in sizes.items():
            block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            key = f"model.layers.{layer}.{block}.{name}.weight"
            grown[key] = placed(key, rows, columns, at, among)
        for name in ("input_layernorm", "post_attention_layernorm"):
            key = f"model.layers.{layer}.{name}.weight"
            grown[key] = norm(key)
    config |= {
        "rms_norm_eps": own["rms_norm_eps"] * small / large,
        "rope_theta": own.get("rope_theta") or own["rope_parameters"]["rope_theta"],
        "max_position_embeddings": own["max_position_embeddings"],
        "tie_word_embeddings": False,
    }
    out.mkdir(parents=True, exist_ok=True)
    stored = {name: each.astype(ml_dtypes.bfloat16) for name, each in grown.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
