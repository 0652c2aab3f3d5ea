"""`ockham convert --calibration`: matrices fitted to the inputs that a text gives them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.seams import Layout, Linear
from ockham.kernels.ops import AttentionInput, Embed, FeedForward
from ockham.model.calibration import Layers, Observed
from ockham.model.loading import LoadedModel, load_model
from ockham.model.windows import cut, layouts_for, window_step
from ockham.weights.fp32 import Fp32
from ockham.weights.int4 import Int4
from tests.helpers.tiny import tiny_llama, tiny_mixtral

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(60))


def load(path: Path, quantization: str | None = None) -> LoadedModel:
    return load_model(
        EngineConfig(model=str(path), quantization=quantization, kv_cache_memory_bytes=1 << 20)
    )


def convert(source: Path, out: Path, *flags: str, text: str = TEXT, name: str = "t.txt") -> Result:
    file = out.parent / name
    file.write_text(text)
    args = ["convert", str(source), str(out), "--quantization", "int4"]
    return CliRunner().invoke(cli, [*args, "--calibration", str(file), *flags])


def test_second_moments_are_summed_over_all_products() -> None:
    rng = np.random.default_rng(0)
    linear = Fp32().pack(3, 8, [rng.standard_normal((3, 8)).astype(np.float32)])
    observed = Observed("w", linear, "down")
    parts = [rng.standard_normal((n, 8)).astype(np.float32) for n in (4, 1)]
    for x in parts:
        assert (observed.matmul(x) == linear.matmul(x)).all()
    whole = np.concatenate(parts)
    np.testing.assert_allclose(observed.moments, whole.T @ whole, rtol=1e-5)


def test_layer_by_layer_is_the_whole_program(tmp_path: Path) -> None:
    model = load(tiny_llama(tmp_path, **SIZES))
    windows = np.random.default_rng(0).integers(0, 4096, (5, 24)).astype(np.int32)
    layers = Layers(model.program, model.description, windows)
    for _, start, stop in layers.ranges()[:-1]:
        layers.run(start, stop)
    from ockham.kernels.reference.backend import ReferenceBackend

    backend, layouts = ReferenceBackend(), layouts_for(model.description, 5, 24, "float32")
    executor = backend.bind(model.program, backend.allocate(layouts))
    run = executor.begin(window_step(windows, len(layouts)))
    executor.run(run, 0, model.program.breakpoints["head"])
    np.testing.assert_allclose(np.concatenate(layers._x), run.x, rtol=1e-4, atol=1e-5)


def test_every_product_errs_less_on_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sum of squared errors x (w - w')^T over the text, the moments know everything."""
    moments = {}
    fit = Int4.fit

    def keep(self: Int4, rows: np.ndarray, moment: np.ndarray, layout: Layout) -> Linear:
        moments[rows.tobytes()] = moment.copy()
        return fit(self, rows, moment, layout)

    monkeypatch.setattr(Int4, "fit", keep)
    source = tiny_llama(tmp_path / "model", **SIZES)
    result = convert(source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    exact, plain, fitted = load(source), load(source, "int4:64"), load(tmp_path / "out")
    assert fitted.weight_format == "int4+int8"
    compared = 0
    for ops in zip(*(m.program.ops for m in (exact, plain, fitted)), strict=True):
        if not isinstance(ops[0], AttentionInput | FeedForward):
            continue
        names = ["qkv"] if isinstance(ops[0], AttentionInput) else ["gate_up", "down"]
        for name in names:
            ids = np.arange(getattr(ops[0], name).out_features, dtype=np.int32)
            rows = [getattr(op, name).rows(ids) for op in ops]
            moment = moments[rows[0].tobytes()]
            errors = [np.einsum("ni,ij,nj->", d, moment, d) for d in (w - rows[0] for w in rows)]
            assert errors[2] < 0.8 * errors[1], name
            compared += 1
    assert compared == 6


def test_the_directory_says_what_it_was_fitted_to(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    flags = ("--group-size", "32", "--calibration-tokens", "200")
    lines = json.dumps({"text": TEXT}) + "\n"
    result = convert(source, tmp_path / "out", *flags, text=lines, name="t.jsonl")
    assert result.exit_code == 0, result.output
    assert "calibrated layer 2 of 2" in result.output
    found = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert found["calibration"].keys() == {"digest", "windows", "window_tokens"}
    assert found["calibration"]["windows"] == 1
    assert found["quantization"] == "int4:32"
    other = convert(source, tmp_path / "other", *flags)
    assert other.exit_code == 0, other.output
    record = json.loads((tmp_path / "other" / "config.json").read_text())["quantization_config"]
    assert record["calibration"]["digest"] != found["calibration"]["digest"]


def test_a_table_that_is_embedding_and_head_is_packed_as_without_text(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", tie_word_embeddings=True, **SIZES)
    assert convert(source, tmp_path / "out").exit_code == 0
    tables = []
    for model in (load(source, "int4"), load(tmp_path / "out")):
        embed = model.program.ops[0]
        assert isinstance(embed, Embed)
        tables.append(embed.table.arrays)
    assert all((tables[0][name] == tables[1][name]).all() for name in tables[0])


def test_an_expert_that_nobody_chose_is_packed_as_without_text(tmp_path: Path) -> None:
    source = tiny_mixtral(tmp_path / "model", experts=16, **SIZES)
    result = convert(source, tmp_path / "out", text="import os")
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "out").weight_format == "int4+int8"


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("", "t.txt", "at least 2 are needed"),
        ('{"text": 3}', "t.jsonl", 'no JSON object with a string "text"'),
        ("[]\n", "t.jsonl", "line 1 of"),
    ],
)
def test_a_text_that_is_none_is_refused(
    tmp_path: Path, text: str, name: str, sentence: str
) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    result = convert(source, tmp_path / "out", text=text, name=name)
    assert result.exit_code == 2
    assert sentence in result.output
    assert not (tmp_path / "out").exists()


def test_formats_that_cannot_be_fitted_are_refused_with_those_that_can(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    (tmp_path / "t.txt").write_text(TEXT)
    text = ["--calibration", str(tmp_path / "t.txt")]
    base = ["convert", str(source), str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*base, "--quantization", "int8", *text])
    assert result.exit_code == 2
    assert "is calibrated: give --quantization" in result.output
    assert "int4" in result.output
    result = CliRunner().invoke(cli, [*base, "--calibration-tokens", "9"])
    assert "--calibration-tokens is for --calibration" in result.output


def test_windows_are_cut_from_the_beginning() -> None:
    assert cut(list(range(10)), 4, 9).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut(list(range(10)), 4, 1).tolist() == [[0, 1, 2, 3]]
    assert cut(list(range(3)), 4, 9).tolist() == [[0, 1, 2]]
