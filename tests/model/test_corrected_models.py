"""Converted models whose products are corrected: nearer to the model, billed, and exact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.kernels.corrected import CorrectedLinear
from ockham.kernels.native import core
from ockham.kernels.ops import Operation
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.model.calibration import CalibrationText
from ockham.model.converting import convert
from ockham.model.loading import LoadedModel, load_model
from ockham.weights.stacked import parts_of
from tests.helpers import isas
from tests.helpers.adapters import write_adapter
from tests.helpers.corrected import corrected
from tests.helpers.serving import ask, drain, make_engine, tokens_of
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama, tiny_mixtral

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PROMPTS = [[5, 9, 3, 60, 2, 7], [11], [3, 4]]
RANK = 6
native = pytest.mark.skipif(core is None, reason="the native core was not built")


def load(path: Path, **settings: Any) -> LoadedModel:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 64}
    return load_model(EngineConfig(model=str(path), **{**defaults, **settings}))


def text() -> CalibrationText:
    windows = np.random.default_rng(5).integers(0, 97, (4, 60)).astype(np.int32)
    return CalibrationText(windows, "drawn")


def distance(one: LoadedModel, other: LoadedModel) -> float:
    pairs = zip(prompt_logits(one, PROMPTS, 4), prompt_logits(other, PROMPTS, 4), strict=True)
    return sum(float(np.square(a - b).sum()) for a, b in pairs)


@pytest.mark.parametrize("quantization", ["int4:32", "int8", "fp4:32"])
def test_a_corrected_model_is_nearer_to_the_model(tmp_path: Path, quantization: str) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    exact, rounded = load(model, quantization="fp32"), load(model, quantization=quantization)
    made = load(corrected(model, quantization, "lorc:rank=24"))
    assert distance(made, exact) < 0.9 * distance(rounded, exact)
    assert made.numerics_id != rounded.numerics_id
    assert made.weight_bytes > rounded.weight_bytes
    assert load(tmp_path / "model-corrected").numerics_id == made.numerics_id


@pytest.mark.parametrize("correction", ["lorc", "weighted"])
def test_a_correction_is_fitted_beside_weights_that_are(tmp_path: Path, correction: str) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    config = EngineConfig(model=str(model), quantization="int4:32")
    for name, added in (("plain", None), ("sum", f"{correction}:rank=24")):
        convert(config, tmp_path / name, lambda line: None, text(), correction=added)
    exact = load(model, quantization="fp32")
    plain, made = load(tmp_path / "plain"), load(tmp_path / "sum")
    assert distance(made, exact) < 0.9 * distance(plain, exact)
    for one, other in zip(plain.program.ops, made.program.ops, strict=True):
        for name in one.adaptable:
            base = other.matrices()[name]
            assert isinstance(base, CorrectedLinear)
            for key, array in one.matrices()[name].arrays.items():
                assert base.arrays[key].tobytes() == array.tobytes()
    told = json.loads((tmp_path / "sum" / "config.json").read_text())["quantization_config"]
    assert told["correction"] == f"{correction}:rank=24"
    assert told["calibration"]["digest"] == "drawn"


@native
@pytest.mark.parametrize("isa", isas.NAMES)
def test_the_compiled_sums_are_the_plain_twins(
    tmp_path: Path, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    out = corrected(tiny_llama(tmp_path / "model", **SIZES), "fp8", f"lorc:rank={RANK}")
    made = load(out, kv_cache_dtype="float32")
    for op in made.program.ops:
        for name in op.adaptable:
            matrix = op.matrices()[name]
            assert isinstance(matrix, CorrectedLinear)
            assert matrix.rank == RANK
    logits = np.concatenate(prompt_logits(made, PROMPTS, 3))
    plain = load(out, kv_cache_dtype="float32")
    for op in plain.program.ops:
        for each in sums_of(op):
            each.arrays["correction.factors"][...] = 0
    without = np.concatenate(prompt_logits(plain, PROMPTS, 3))
    assert np.abs(logits - without).max() > 1e-4
    beside = replace(load(out, kv_cache_dtype="float32"), backend=ReferenceBackend())
    twin = np.concatenate(prompt_logits(beside, PROMPTS, 3))
    assert np.abs(logits - twin).max() < 1e-4 * np.abs(twin).max()
    assert np.abs(logits - twin).max() < 0.01 * np.abs(without - twin).max()


def sums_of(op: Operation) -> list[CorrectedLinear]:
    return [each for each in op.matrices().values() if isinstance(each, CorrectedLinear)]


@native
def test_adapters_add_to_corrected_products_and_the_bill_tells_of_both(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    made = corrected(model, "int8", "lorc:rank=4")
    adapter = write_adapter(tmp_path / "adapter", seed=3, rank=5)
    asks = {"adapter/lora": {"name": "a", "path": str(adapter)}}
    alone, together = {}, {}
    for names in (["with"], ["without"], ["with", "without"]):
        engine = make_engine(made, adapter="lora", backend="cpu")
        for name in names:
            engine.take(ask(name, [5, 9, 23, 41], asks=asks if name == "with" else {}))
        found = {name: tokens for (name, _), tokens in tokens_of(drain(engine)).items()}
        (together if len(names) == 2 else alone).update(found)
    assert together == alone
    assert alone["with"] != alone["without"]
    plain, billed = load(model, quantization="int8"), load(made)
    sums = [matrix for op in billed.program.ops for matrix in sums_of(op)]
    assert len(sums) == 4 * billed.description.layers
    widths = sum(matrix.out_features + matrix.in_features for matrix in sums)
    (flops, nbytes), (more, larger) = (
        np.sum([(p.flops, p.nbytes) for op in each.program.ops for p in op.cost().products], axis=0)
        for each in (plain, billed)
    )
    assert more - flops == 2 * 4 * widths
    assert larger - nbytes == 4 * widths + 4 * 4 * len(sums)


@native
@pytest.mark.parametrize("isa", isas.NAMES)
def test_a_mix_corrects_single_tensors_with_the_same_bits_in_any_batch(
    tmp_path: Path, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    model, out = tiny_llama(tmp_path / "model", **SIZES), tmp_path / "out"
    mix = {
        "*q_proj*": "int4:32+lorc:rank=5",
        "*k_proj*": "int4:32+weighted:rank=3",
        "*v_proj*": "int4:32",
        "down": "q5_0 + lorc:rank=12",
    }
    config = EngineConfig(model=str(model), quantization="int8")
    convert(config, out, lambda line: None, text(), mix=mix)
    made = load(out, kv_cache_dtype="float32")
    for op in made.program.ops:
        for name, matrix in op.matrices().items():
            ranks = [getattr(part, "rank", 0) for part in parts_of(matrix)]
            assert ranks == {"qkv": [5, 3, 0], "down": [12]}.get(name, [0])
    together = prompt_logits(made, PROMPTS, 4)
    for prompt, logits in zip(PROMPTS, together, strict=True):
        (alone,) = prompt_logits(load(out, kv_cache_dtype="float32"), [prompt], 4)
        assert alone.tobytes() == logits.tobytes()
    beside = replace(load(out, kv_cache_dtype="float32"), backend=ReferenceBackend())
    for twin, logits in zip(prompt_logits(beside, PROMPTS, 4), together, strict=True):
        assert np.abs(logits - twin).max() < 1e-4 * np.abs(twin).max()


def test_routed_experts_are_left_alone(tmp_path: Path) -> None:
    made = load(corrected(tiny_mixtral(tmp_path / "model", **SIZES), "int4:32"))
    formats = {type(each) for op in made.program.ops for each in op.matrices().values()}
    assert CorrectedLinear in formats
    for op in made.program.ops:
        for name, matrix in op.matrices().items():
            assert isinstance(matrix, CorrectedLinear) == (name in op.adaptable)


def test_what_cannot_be_corrected_is_refused(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    config = EngineConfig(model=str(model))
    with pytest.raises(ConfigError, match="is for weights that are rounded"):
        convert(config, tmp_path / "out", lambda line: None, correction="lorc")
    for plain in (EngineConfig(model=str(model), quantization="bf16"), config):
        with pytest.raises(ConfigError, match="is for weights that are rounded"):
            convert(
                plain, tmp_path / "out", lambda line: None, mix={"qkv": "fp32"}, correction="lorc"
            )
    rounded = EngineConfig(model=str(model), quantization="int4:32")
    with pytest.raises(ConfigError, match="is fitted to a text: add --calibration FILE"):
        convert(rounded, tmp_path / "out", lambda line: None, correction="weighted")
    for mix, told in (
        ({"down": "bf16+lorc"}, "for weights that are rounded: name a format of fewer bits"),
        ({"head": "int4:32+lorc"}, "to whose products nothing can be added"),
        ({"down": "int4:32+weighted"}, "is fitted to a text"),
        ({"down": "int4:32+svd"}, "no correction called 'svd'"),
    ):
        with pytest.raises(ConfigError, match=told):
            convert(config, tmp_path / "out", lambda line: None, mix=mix)
    wrong = CliRunner().invoke(
        cli,
        f"convert {model} {tmp_path / 'out'} --quantization int4:32 --correction svd".split(),
    )
    assert "there is no correction called 'svd'; there is: lorc, weighted" in wrong.output
    assert not (tmp_path / "out").exists()
