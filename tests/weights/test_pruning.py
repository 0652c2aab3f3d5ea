"""Masks by magnitude, Wanda and SparseGPT: how many zeros, which ones, and what is made good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from ockham.cli.main import cli
from ockham.core.arrays import Doubles, Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import make
from ockham.model.loading import load_model
from ockham.weights.gptq import DAMPING, factor_of_inverse
from ockham.weights.pruning import PruneOptions, least_of
from ockham.weights.transforms.sparsegpt import SparseGpt, SparseGptOptions
from tests.helpers.tiny import tiny_llama, tiny_mixtral

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(40))
TRANSFORMS = ["magnitude", "wanda", "sparsegpt"]


def layer(outputs: int = 24, inputs: int = 64, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Weights, correlated inputs of which some are much larger, and their second moments."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, 16)) @ rng.standard_normal((16, inputs))
    x += rng.standard_normal((400, inputs))
    x *= rng.uniform(0.1, 3.0, inputs)
    weights = rng.standard_normal((outputs, inputs)).astype(np.float32)
    return weights, x.astype(np.float32), (x.T @ x).astype(np.float32)


def error(weights: Floats, pruned: Floats, x: Floats) -> float:
    return float(np.square(x.astype(np.float64) @ (weights - pruned).T.astype(np.float64)).sum())


def by_inverses(weights: Floats, moments: Floats, pattern: tuple[int, int]) -> Doubles:
    """What algorithm 1 means, with the inverse of the moments of the inputs that are left computed
    anew for each input."""
    h = moments.astype(np.float64)
    h += np.eye(len(h)) * DAMPING * h.diagonal().mean()
    found = weights.astype(np.float64)
    kept, of = pattern
    for start in range(0, len(h), of):
        importance = np.array([np.linalg.inv(h[i:, i:])[0, 0] for i in range(start, start + of)])
        scores = found[:, start : start + of] ** 2 / importance
        gone = np.argsort(scores, axis=1, kind="stable")[:, : of - kept]
        for i in range(start, start + of):
            inverse = np.linalg.inv(h[i:, i:])
            rows = (gone == i - start).any(axis=1)
            found[rows, i:] -= np.outer(found[rows, i] / inverse[0, 0], inverse[0])
            found[rows, i] = 0
    return found


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_sparsegpt_does_what_its_formula_says(pattern: str) -> None:
    weights, _, moments = layer()
    options = SparseGptOptions(pattern=pattern, block=20)
    pruned = SparseGpt(options).pruned(weights, moments, factor_of_inverse(moments))
    assert options.kept_of is not None
    expected = by_inverses(weights, moments, options.kept_of)
    assert np.array_equal(pruned == 0, expected == 0)
    assert np.allclose(pruned, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_sparsegpt_loses_less_than_masks_alone(share: float, block: int) -> None:
    weights, x, moments = layer()
    options = SparseGptOptions(share=share, block=block)
    pruned = SparseGpt(options).pruned(weights, moments, factor_of_inverse(moments))
    assert np.mean(pruned == 0) == pytest.approx(share, abs=0.01)
    scores = np.abs(weights) * np.sqrt(moments.diagonal())
    wanda, magnitude = (
        np.where(least_of(each, options), 0, weights) for each in (scores, np.abs(weights))
    )
    assert error(weights, pruned, x) < 0.7 * error(weights, wanda, x)
    assert error(weights, wanda, x) < 0.7 * error(weights, magnitude, x)


def test_inputs_that_were_never_there_go_first_and_break_nothing() -> None:
    weights, _, moments = layer()
    moments[:, 10:30] = moments[10:30] = 0
    pruned = SparseGpt(SparseGptOptions()).pruned(weights, moments, factor_of_inverse(moments))
    assert np.isfinite(pruned).all()
    assert not pruned[:, 10:30].any()
    assert np.mean(pruned == 0) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "zeros"),
    [(PruneOptions(), 32), (PruneOptions(share=0.25), 16), (PruneOptions(pattern="3:4"), 16)],
)
def test_each_row_has_as_many_zeros_as_it_should(options: PruneOptions, zeros: int) -> None:
    scores = np.abs(layer()[0])
    scores[2] = 1.0  # of equals, the first
    gone = least_of(scores, options)
    assert (gone.sum(axis=1) == zeros).all()
    if options.kept_of is None:
        assert gone[2, :zeros].all()
        assert (scores[0][gone[0]].max()) < scores[0][~gone[0]].min()
    else:
        assert (gone.reshape(len(scores), -1, 4).sum(axis=-1) == 1).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("share=0", "share must be above 0 and below 1, got 0.0"),
        ("share=1.5", "share must be above 0 and below 1, got 1.5"),
        ("pattern=4:2", "a pattern is N:M, with N weights of M that stay .* got '4:2'"),
        ("pattern=half", "such as 2:4; got 'half'"),
        ("share=0.5,pattern=2:4", "a share of zeros or a pattern, not both"),
    ],
)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_masks_that_there_are_not_are_refused(transform: str, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make("transform", f"{transform}:{given}")


def test_a_block_without_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="block must be at least 1, got 0"):
        make("transform", "sparsegpt:block=0")


def convert(source: Path, out: Path, *flags: str) -> str:
    (out.parent / "text.txt").write_text(TEXT)
    args = ["convert", str(source), str(out), *flags]
    if not any(each.startswith("magnitude") for each in flags):  # it reads no text
        args += ["--calibration", str(out.parent / "text.txt")]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_share_of_less_than_a_weight_is_refused(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    args = ["convert", str(source), str(tmp_path / "out"), "--transform", "magnitude:share=0.001"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert "no weight became zero" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "experts"])
@pytest.mark.parametrize("mask", ["", ":share=0.7", ":pattern=2:4"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_model_has_zeros_where_it_is_pruned_and_nowhere_else(
    tmp_path: Path, transform: str, mask: str, experts: int
) -> None:
    tiny = tiny_mixtral if experts else tiny_llama
    source = tiny(tmp_path / "model", **SIZES, **({"experts": experts} if experts else {}))
    convert(source, tmp_path / "out", "--transform", transform + mask)
    share = 0.7 if "share" in mask else 0.5
    for name, weights in load_file(tmp_path / "out/model.safetensors").items():
        if "_proj" in name or "experts" in name:
            assert np.mean(weights == 0) == pytest.approx(share, abs=0.02), name
            if "pattern" in mask:
                groups = (weights != 0).reshape(len(weights), -1, 4).sum(axis=-1)
                assert groups.max() <= 2
        else:
            assert np.mean(weights == 0) < 0.01, name


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_pattern_that_does_not_divide_the_inputs_is_refused(
    tmp_path: Path, transform: str
) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    (tmp_path / "text.txt").write_text(TEXT)
    args = [
        "convert",
        str(source),
        str(tmp_path / "out"),
        "--transform",
        f"{transform}:pattern=2:5",
    ]
    result = CliRunner().invoke(cli, [*args, "--calibration", str(tmp_path / "text.txt")])
    assert result.exit_code != 0
    assert "has 64 inputs, which are no groups of 5" in " ".join(result.output.split())


def test_one_command_prunes_and_stores_sparsely(tmp_path: Path) -> None:
    """What is packed with the zeros is what is packed of the pruned checkpoint."""
    source = tiny_llama(tmp_path / "model", **SIZES)
    flags = ["--transform", "sparsegpt:share=0.5"]
    convert(source, tmp_path / "pruned", *flags, "--dtype", "float32")
    convert(source, tmp_path / "packed", *flags, "--quantization", "sparse8")

    def load(path: Path, quantization: str | None = None) -> tuple[str, int]:
        model = load_model(EngineConfig(model=str(path), quantization=quantization))
        return model.numerics_id, model.weight_bytes

    assert load(tmp_path / "packed") == load(tmp_path / "pruned", "sparse8")
