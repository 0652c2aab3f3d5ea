"""Rows that run shared layers as often as they decide: the PyTorch module is the oracle of the
engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from recipes.lab.export import config_fields
from recipes.lab.model import LabModel, Shape
from recipes.lab.recursive import RecursiveModel, fixed_depth
from recipes.lab.start import share_layers
from recipes.lab.tokenizer import load_tokenizer, write_json

LAB = Path(__file__).parents[2] / "ockham/model/lab"
SHAPE = Shape(
    vocab_size=97, hidden=32, layers=4, heads=4, kv_heads=2, head_dim=8, intermediate=48, passes=3
)
TOKENS = 150


@pytest.fixture(scope="module")
def model() -> RecursiveModel:
    """Random weights that matter, and routers that send about half of the rows on."""
    found = RecursiveModel(SHAPE, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "routers" in name:
                parameter.normal_(generator=generator, std=0.5)
            elif parameter.ndim == 2:
                parameter.mul_(1.0 if "embed" in name else 6.0)
    return found


@pytest.fixture(scope="module")
def checkpoint(model: RecursiveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recursive")
    weights = {
        name: parameter.detach().flatten() if "routers" in name else parameter.detach()
        for name, parameter in model.named_parameters()
    }
    save_file(
        {name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors"
    )
    fields = {**config_fields(SHAPE, load_tokenizer(LAB)), "torch_dtype": "float32"}
    write_json(folder / "config.json", fields)
    return folder


def prompt() -> list[int]:
    return np.random.default_rng(5).integers(0, SHAPE.vocab_size, TOKENS).tolist()


def logits_of(checkpoint: Path, rows: int, backend: str, gate: str) -> np.ndarray:
    """Of the tokens of the prompt after the first, in chunks of so many rows."""
    config = EngineConfig(
        model=str(checkpoint),
        backend=backend,
        gate=gate,
        max_num_batched_tokens=rows,
        quantization="fp32",
        kv_cache_dtype="float32",
        skip_tokenizer_init=True,
    )
    engine = Engine(config)
    found: list[np.ndarray] = []
    engine.on_scored = lambda _, logits: found.append(logits.copy())
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    engine.take(Request(request_id="0", prompt_token_ids=prompt(), params=params, detokenize=False))
    while engine.has_work:
        engine.step()
    return np.concatenate(found)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("gate", ["whole", "recursions:depth=2", "recursions:depth=3"])
def test_the_engine_computes_what_pytorch_does(
    model: RecursiveModel, checkpoint: Path, backend: str, gate: str
) -> None:
    ids, depth = torch.tensor([prompt()]), gate.partition("=")[2]
    added = fixed_depth(SHAPE.passes, int(depth)) if depth else torch.zeros(SHAPE.passes - 1)
    with torch.no_grad():
        found = model.deep(ids, added, None)
        expected = model.head(found.states)[0, :-1].numpy()
    if not depth:
        shares = found.active.mean((1, 2))
        assert 0.2 < shares[1] < shares[0] < 0.8
    for rows in (1, 7, 64):
        logits = logits_of(checkpoint, rows, backend, gate)
        assert np.abs(logits - expected).max() <= 1e-4 * np.ptp(expected)


def test_shared_layers_begin_as_the_means_of_those_in_whose_places_they_run() -> None:
    dense = LabModel(Shape(vocab_size=97, hidden=32, layers=8, intermediate=48), seed=3)
    found = share_layers(dict(dense.state_dict()), SHAPE)
    name = "mlp.up_proj.weight"
    own = {n: dense.state_dict()[f"model.layers.{n}.{name}"] for n in range(8)}
    assert torch.equal(found[f"model.layers.0.{name}"], own[0])
    assert torch.equal(found[f"model.layers.3.{name}"], own[7])
    assert torch.allclose(found[f"model.layers.1.{name}"], (own[1] + own[3] + own[5]) / 3)
    assert torch.allclose(found[f"model.layers.2.{name}"], (own[2] + own[4] + own[6]) / 3)


def test_routers_learn_through_hard_decisions(model: RecursiveModel) -> None:
    ids = torch.tensor([prompt()[:32]])
    found = model.deep(ids, torch.zeros(2), torch.zeros(2, 1, 32))
    found.states.square().sum().backward()
    for router in model.model.routers:
        assert router.weight.grad is not None
        assert router.weight.grad.abs().max() > 0
    model.zero_grad()
