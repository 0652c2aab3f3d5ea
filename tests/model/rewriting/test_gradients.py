"""The way back from the loss: what PyTorch's automatic differentiation finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.model.calibration import CalibrationText
from ockham.model.checkpoint.opening import open_model
from ockham.model.rewriting.model import RewrittenModel
from ockham.weights.transforms.heapr import channel_scores
from tests.helpers.architectures import CASES
from tests.helpers.tiny import tiny_llama

torch = pytest.importorskip("torch")

ids = np.random.default_rng(0).integers(3, 97, (3, 24)).astype(np.int32)


def model_of(path: Path) -> RewrittenModel:
    text = CalibrationText(ids, "")
    return RewrittenModel(open_model(path), lambda line: None, lambda: text)


@pytest.mark.parametrize(
    "case", ["llama-tied-biased", "mistral", "qwen3", "granite", "mixtral", "qwen2-moe", "phi3"]
)
def test_gradients_are_those_of_pytorch(tmp_path: Path, case: str) -> None:
    """Of a `down` matrix, g^T a is the gradient of its weights."""
    oracle = CASES[case].build(1)
    oracle.save_pretrained(tmp_path)
    tokens = torch.from_numpy(ids.astype(np.int64))
    logits = oracle(tokens).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    grads = {
        name: parameter.grad.numpy()
        for name, parameter in oracle.named_parameters()
        if parameter.grad is not None and "down_proj" in name
    }
    layers = list(model_of(tmp_path).gradients("a test"))
    assert [each.layer for each in layers] == list(reversed(range(len(layers))))
    compared = 0
    for each in layers:
        own = [grad for name, grad in grads.items() if f"layers.{each.layer}." in name]
        for name, a in each.inner.items():
            found = each.outputs[name].T @ a
            known = [x for grad in own for x in (grad if grad.ndim == 3 else [grad])]
            same = [x for x in known if x.shape == found.shape]
            off = min(float(np.abs(found - x).max()) for x in same)
            assert off < 1e-3 * np.abs(found).max(), name
            compared += 1
    assert compared >= len(layers)


def test_scores_are_the_quadratic_form_of_the_paper() -> None:
    rng = np.random.default_rng(2)
    a, g, down = (
        rng.standard_normal((9, 5)),
        rng.standard_normal((9, 4)),
        rng.standard_normal((4, 5)),
    )
    second = g.T @ g / 9
    expected = [np.square(a[:, k]).sum() * down[:, k] @ second @ down[:, k] for k in range(5)]
    np.testing.assert_allclose(channel_scores(a, g, down), expected)


def test_an_activation_without_derivative_is_refused(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path, hidden_act="relu")
    with pytest.raises(ConfigError, match="whose activation is SiLU; this one has relu"):
        model_of(source).gradients("a test")
