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
from ockham.weights.transforms.loraprune import Factors, LoraPruneOptions
from ockham.weights.transforms.mfac import costs, inverse_diagonal
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


def test_the_inverse_of_a_window_of_gradients_is_that_of_the_matrix() -> None:
    rng = np.random.default_rng(4)
    gradients = rng.standard_normal((20, 12)) * rng.lognormal(size=12)
    matrix = 0.3 * np.eye(12) + gradients.T @ gradients / 20
    expected = np.linalg.inv(matrix).diagonal()
    np.testing.assert_allclose(inverse_diagonal(gradients, 0.3), expected)
    level = 0.1 * np.square(gradients).mean()
    expected = 0.5 / np.linalg.inv(level * np.eye(12) + gradients.T @ gradients / 20).diagonal()
    np.testing.assert_allclose(costs(gradients, 0.1), expected)
    assert not costs(np.zeros((3, 12)), 0.1).any()


def test_factors_of_full_rank_tell_the_gradient_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(5)
    x, g, down = (
        rng.standard_normal((9, 6)),
        rng.standard_normal((9, 4)),
        rng.standard_normal((4, 6)),
    )
    options = LoraPruneOptions(rank=6, alpha=6.0)
    factors = Factors.drawn(down.astype(np.float32), options, rng)
    factors.a = np.eye(6)
    factors.look(x, g)
    whole = np.abs(g.T @ x * down).sum(axis=0)
    np.testing.assert_allclose(factors.importance(down), whole / np.linalg.norm(whole))
    factors.learn(0.01)
    assert np.square(factors.b).mean() == pytest.approx(1e-4)


def test_gradients_of_factors_are_those_of_the_chain_rule() -> None:
    rng = np.random.default_rng(6)
    x, target = rng.standard_normal((7, 5)), rng.standard_normal((7, 3))
    factors = Factors.drawn(np.zeros((3, 5), np.float32), LoraPruneOptions(rank=2), rng)
    factors.b = rng.standard_normal((3, 2))

    def loss() -> float:
        return 0.5 * float(np.square(x @ factors.product.T - target).sum())

    factors.look(x, x @ factors.product.T - target)
    for values, gradient in (
        (factors.b, factors.b_gradient.copy()),
        (factors.a, factors.a_gradient.copy()),
    ):
        before = loss()
        values[1, 1] += 1e-6
        assert (loss() - before) / 1e-6 == pytest.approx(gradient[1, 1], rel=1e-4)
        values[1, 1] -= 1e-6


def test_an_activation_without_derivative_is_refused(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path, hidden_act="relu")
    with pytest.raises(ConfigError, match="whose activation is SiLU; this one has relu"):
        model_of(source).gradients("a test")
