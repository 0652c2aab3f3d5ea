"""A format is one class: nothing else has to know its name."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core import registry
from ockham.core.arrays import Array, Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Arithmetic, Field, Values
from ockham.kernels.native import core
from ockham.model.loading import LoadedModel, load_model
from ockham.weights.by_rows import ByRows
from tests.helpers.registering import let_register

LEVELS = np.linspace(-1, 1, 16, dtype=np.float32)
GROUPS = (32, 64)


class Options(msgspec.Struct, frozen=True):
    group: int = 64


class Table16(ByRows):
    """Sixteen fixed levels, and a scale for each group."""

    name: ClassVar[str] = "table16"
    activations: ClassVar[str] = "float32"
    arithmetic: ClassVar[Arithmetic] = "fp32"
    dtype: ClassVar[str | None] = None
    forms: ClassVar[tuple[str, ...]] = ("table16:32", "table16:64")
    Options = Options

    def __init__(self, options: Options | None = None) -> None:
        self.group = 64 if options is None else options.group

    @classmethod
    def of_group(cls, group: int) -> Table16:
        if group not in GROUPS:
            raise ValueError(f"its group is {group!r}")
        return cls(Options(group))

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        if in_features % self.group:
            raise ModelError(f"{in_features} inputs cannot be cut into groups of {self.group}.")
        groups = in_features // self.group
        return {
            "codes": Field("uint8", (in_features,), 4),
            "scales": Field("float16", (groups,), 16),
        }

    def encode(self, rows: Array) -> Values:
        groups = rows.astype(np.float32).reshape(len(rows), -1, self.group)
        scales = np.abs(groups).max(-1).astype(np.float16)
        wide = np.maximum(scales.astype(np.float32), np.float32(1e-9))[:, :, None]
        codes = np.abs(groups[..., None] / wide[..., None] - LEVELS).argmin(-1).astype(np.uint8)
        return {"codes": codes.reshape(rows.shape), "scales": scales}

    def matmul(self, values: Values, x: Floats) -> Floats:
        product: Floats = x @ self.decode(values, x.shape[1]).T
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        codes = values["codes"].reshape(*values["scales"].shape, self.group)
        weights: Floats = LEVELS[codes] * values["scales"].astype(np.float32)[:, :, None]
        return weights.reshape(len(codes), in_features)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    let_register(monkeypatch)
    registry.register("format", "table16", exact=False)(Table16)


def load(model: str, quantization: str | None, backend: str = "reference") -> LoadedModel:
    return load_model(EngineConfig(model=model, quantization=quantization, backend=backend))


def test_a_model_is_packed_converted_and_loaded_in_it(tmp_path: Path) -> None:
    packed = load("lab", "table16:32")
    assert packed.weight_format == "table16"
    out = tmp_path / "out"
    result = CliRunner().invoke(
        cli, ["convert", "lab", str(out), "--quantization", "table16", "--group-size", "32"]
    )
    assert result.exit_code == 0, result.output
    converted = load(str(out), None)
    assert converted.weight_format == "table16"
    assert converted.numerics_id == packed.numerics_id
    ids = np.arange(8, dtype=np.int32)
    tables = [model.program.ops[0].table for model in (packed, converted)]  # type: ignore[union-attr]
    assert tables[0].rows(ids).tobytes() == tables[1].rows(ids).tobytes()


def test_the_help_and_the_errors_list_it() -> None:
    for verb in ("serve", "convert"):
        shown = " ".join(CliRunner().invoke(cli, [verb, "--help"]).output.split())
        assert "table16, table16:32, table16:64, ternary, tq2_0, stored" in shown
    with pytest.raises(ConfigError, match=r"called 'table17'; there is: .* table16:32, .*stored"):
        load("lab", "table17")
    wrong = CliRunner().invoke(cli, ["convert", "lab", "x", "--group-size", "32"])
    assert "or table16 only" in wrong.output


def test_an_unknown_name_is_refused_before_the_model_is_looked_for() -> None:
    with pytest.raises(ConfigError, match=r"int4:32, .*stored; and .*gptq"):
        load("no/such-model", "int5")


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_without_a_kernel_the_native_core_says_so_before_weights_are_read() -> None:
    with pytest.raises(ConfigError, match="no kernels for weights in 'table16', only for bf16, "):
        load("lab", "table16", "cpu")
