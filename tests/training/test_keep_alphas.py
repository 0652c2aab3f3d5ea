"""How much of the attention to a whole text each head needs, as it is learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ockham.cli.train import train
from ockham.core.errors import ModelError
from ockham.model.checkpoint.keep_files import ModelSizes, read_alphas
from ockham.training.keep import KeepSettings, train_keep
from ockham.training.keep_alphas import SINKS, Mixed, alphas
from ockham.training.keep_labels import Text
from tests.helpers.serving import ask, drain, make_engine
from tests.helpers.tiny import tiny_llama

SIZES = ModelSizes(32, 2, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), tokenizer=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rng, words = Random(1), ["red", "house", "river", "seven", "of", "the", "stone", "a"]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=90))}) for _ in range(20)]
    path.write_text("\n".join(lines))
    return path


def test_a_head_that_streams_sees_the_first_and_the_latest_tokens_alone(model: Path) -> None:
    window = 5
    mixed = Mixed(model, SIZES, window)
    tokens = np.random.default_rng(0).integers(2, 97, 40).tolist()
    # Through two layers the last row is reached from the first tokens and from so many latest ones.
    far = 40 - 2 * (window - 1) - 2
    other = [*tokens[:far], (tokens[far] + 1) % 97, *tokens[far + 1 :]]
    assert far >= SINKS
    with torch.no_grad():
        for alpha, reaches in ((0.0, False), (0.5, True), (1.0, True)):
            given = torch.full((2, 2), alpha)
            last, changed = (mixed.states(each, 39, given) for each in (tokens, other))
            assert torch.equal(last, changed) is not reaches
        whole = mixed.states(tokens, 0, None)
        assert torch.allclose(mixed.states(tokens, 0, torch.ones(2, 2)), whole, atol=1e-5)
        first = mixed.states(tokens, 0, torch.zeros(2, 2))[:window]
        assert torch.allclose(first, whole[:window], atol=1e-2), "their rows see all in either way"


def test_the_head_is_found_whose_attention_the_model_uses(model: Path, tmp_path: Path) -> None:
    """What the other heads give out is multiplied by 0."""
    planted = tmp_path / "planted"
    shutil.copytree(model, planted)
    weights = load_file(planted / "model.safetensors")
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        own = weights[name].copy()
        width = own.shape[1] // 2
        own[:, :width] = 0  # of key-value head 0
        if layer == 0:
            own[:] = 0
        weights[name] = own * 4
    save_file(weights, planted / "model.safetensors", {"format": "pt"})
    rng = np.random.default_rng(3)
    texts = [Text(tuple(rng.integers(2, 97, 64).tolist()), 32) for _ in range(9)]
    found = alphas(planted, SIZES, texts, 32, 25, 0, lambda line: None)
    learned = found.tensors["alphas"]
    assert learned.argmax() == 3, learned
    assert found.scores["order"].endswith("1/1")
    assert found.scores["error_lowest_half"] < 1e-6 < found.scores["error_all"]


def test_what_is_trained_is_served(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    command = ["keep", str(model), str(out), "--rule", "duo", "--data", str(data)]
    settings = ["--context", "80", "--steps", "3", "--threads", "1"]
    ran = CliRunner().invoke(train, [*command, *settings])
    assert ran.exit_code == 0, ran.output
    assert "from the least need to the most" in ran.output
    assert read_alphas(out).rule == "duo"
    assert read_alphas(out).trained["window"] == 10
    assert not out.with_name("heads.training").exists()
    engine = make_engine(model, keep=f"duo:heads={out},window=8,sinks=2,block=16")
    engine.add(ask("a", list(range(2, 90)) * 2, max_tokens=8))
    bill = drain(engine)[-1].ledger
    assert bill is not None
    assert bill.saved["duo"].flops > 0


def test_a_gguf_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ModelError, match="is a GGUF file, which PyTorch cannot train for"):
        train_keep(KeepSettings(str(file), tmp_path / "out", "duo"))
