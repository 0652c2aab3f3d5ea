"""The real model's twin off the grid has the function of the file, and what a row says of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.lab.evidence.page import cells
from ockham.lab.evidence.real_model import MISSING, TEXTS, write_twin
from ockham.lab.evidence.row import Fidelity, Row
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.gguf_files import write_gguf
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}


def load(path: Path) -> LoadedModel:
    return load_model(
        EngineConfig(model=str(path), quantization="fp32", kv_cache_memory_bytes=1 << 20)
    )


def test_the_twin_computes_what_the_file_does_with_weights_off_its_grid(tmp_path: Path) -> None:
    tiny_llama(tmp_path, **SIZES)
    weights = load_file(tmp_path / "model.safetensors")
    config = {**SIZES, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
    path = tmp_path / "model.gguf"

    def kind(name: str) -> str:
        return "Q4_1"

    meant = write_gguf(path, "llama", config, weights, kind)
    (tmp_path / "twin").mkdir()
    write_twin(path, tmp_path / "twin", 0)
    prompts = [[5, 9, 3, 60, 2], [11]]
    expected = prompt_logits(load(path), prompts, 4)
    found = prompt_logits(load(tmp_path / "twin"), prompts, 4)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    twin = load_file(tmp_path / "twin" / "model.safetensors")
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.1.{name}.weight"
        assert not np.allclose(twin[name], meant[name], rtol=0.05)


def test_there_are_texts_enough() -> None:
    texts = json.loads(TEXTS.read_text("utf-8"))
    assert len(texts) == len(set(texts)) == 16
    assert sum(map(len, texts)) > 10_000  # more than 2,000 tokens of any tokenizer


def test_a_row_says_what_was_measured_on_a_real_model_or_that_nothing_was() -> None:
    known = {"seam": "format", "name": "x", "exact": False, "what": "this", "unit": "bytes"}
    fidelity = Fidelity(
        agreement=0.9, kl_mean=0.05, kl_p99=0.4, positions=2779, perplexity_ratio=1.02
    )
    bare = Row(**known, without=2.0, with_=1.0, claim="", real_model=MISSING)  # type: ignore[arg-type]
    assert ("on a real model", MISSING) in cells(bare)
    full = Row(
        **known,  # type: ignore[arg-type]
        without=2.0,
        with_=1.0,
        claim="",
        real_model="M",
        real_fidelity=fidelity,
        twin_fidelity=fidelity,
    )
    said = dict(cells(full))
    assert said["on M"].startswith("90.0% of the likeliest tokens agree; perplexity times 1.020")
    assert "2,779 positions" in said["the same, off its file's grid"]
    assert "10.0% on M" in full.verdict
