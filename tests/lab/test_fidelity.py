"""How near a quantised model stays: divergence, agreement and perplexity, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.lab.fidelity import fidelity
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def load(path: Path, quantization: str | None = None) -> LoadedModel:
    return load_model(
        EngineConfig(model=str(path), quantization=quantization, kv_cache_memory_bytes=1 << 20)
    )


def windows(vocabulary: int = 97) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (3, 20)).astype(np.int32)


def test_a_model_does_not_diverge_from_itself(tmp_path: Path) -> None:
    model = load(tiny_llama(tmp_path, **SIZES))
    found = fidelity(model, model, windows())
    assert (found.tokens, found.divergence, found.agreement) == (3 * 19, 0.0, 1.0)
    nats = 0.0
    for tokens, logits in zip(windows(), prompt_logits(model, windows().tolist(), 20), strict=True):
        wide = logits[:-1].astype(np.float64)
        normaliser = np.log(np.exp(wide).sum(axis=1))
        nats += float((normaliser - wide[np.arange(19), tokens[1:]]).sum())
    assert found.reference_perplexity == pytest.approx(math.exp(nats / (3 * 19)), rel=1e-5)
    assert found.candidate_perplexity == found.reference_perplexity


def test_fewer_bits_are_less_faithful(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path, **SIZES)
    exact = load(path)
    divergences = [fidelity(exact, load(path, f), windows()).divergence for f in ("int8", "int4")]
    assert 0 < divergences[0] < divergences[1]


def test_other_vocabularies_do_not_compare(tmp_path: Path) -> None:
    one = load(tiny_llama(tmp_path / "a", **SIZES))
    other = load(tiny_llama(tmp_path / "b", vocab_size=96, **SIZES))
    with pytest.raises(ConfigError, match="97 and 96 do not compare"):
        fidelity(one, other, windows(96))


def test_the_command_compares_two_precisions(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import os\n" * 60)
    args = ["bench", "fidelity", "lab", "--text", str(text), "--tokens", "100"]
    result = CliRunner().invoke(cli, [*args, "--quantization", "int8", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 0 < found["divergence"] < 0.1
    assert found["agreement"] > 0.9
    assert CliRunner().invoke(cli, args).exit_code == 2
