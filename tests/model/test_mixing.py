"""`ockham convert --mix`: a directory holds any format for each tensor, and loads directly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.core.registry import make, techniques
from ockham.kernels.layouts import ROWS
from ockham.model.loading import LoadedModel, load_model
from ockham.weights.stacked import parts_of
from tests.helpers.tiny import tiny_llama, tiny_mixtral

SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(60))


def load(path: Path, quantization: str | None = None) -> LoadedModel:
    return load_model(
        EngineConfig(model=str(path), quantization=quantization, kv_cache_memory_bytes=1 << 20)
    )


def convert(source: Path, out: Path, *mix: str, flags: tuple[str, ...] = ()) -> Result:
    named = [word for each in mix for word in ("--mix", each)]
    return CliRunner().invoke(cli, ["convert", str(source), str(out), *named, *flags])


def formats(model: LoadedModel) -> dict[str, str]:
    return {role: matrix.format for role, matrix in model.program.matrices().items()}


def test_each_tensor_is_packed_as_if_its_format_were_that_of_all(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    mix = ("down=int8", "*.v_proj.weight=q5_0", "*.layers.0.mlp.up_proj.weight=int4:32")
    result = convert(source, tmp_path / "out", *mix, flags=("--quantization", "int4:128"))
    assert result.exit_code == 0, result.output
    mixed = load(tmp_path / "out")
    found = formats(mixed)
    assert found["layer.0.gate_up"] == found["layer.1.gate_up"] + "+int4"
    assert found["layer.1.qkv"] == "int4+q5_0"
    assert found["layer.1.down"] == "int8"
    assert found["head"] == "int8"  # what int4 leaves to others is left to them
    alone = {name: load(source, name) for name in ("int4:128", "int4:32", "int8", "bf16")}
    ids = np.arange(8, dtype=np.int32)
    for role, part, name in (
        ("layer.1.qkv", 0, "int4:128"),
        ("layer.0.gate_up", 1, "int4:32"),
        ("layer.0.down", 0, "int8"),
    ):
        piece = parts_of(mixed.program.matrices()[role])[part]
        first = 0 if part == 0 else 512
        whole = alone[name].program.matrices()[role]
        assert (piece.rows(ids) == whole.rows(ids + np.int32(first))).all(), role


def test_the_named_format_takes_even_what_it_would_leave_to_another(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    result = convert(source, tmp_path / "out", "*=int4:64", "head=stored")
    assert result.exit_code == 0, result.output
    found = formats(load(tmp_path / "out"))
    assert {name for role, name in found.items() if role != "head"} == {"int4"}
    assert found["head"] == "fp32"
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert facts["quantization"] == "mix"
    assert facts["mix"] == {"*": "int4:64", "head": "stored"}


def test_what_a_mix_names_is_fitted_to_a_text(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    (tmp_path / "t.txt").write_text(TEXT)
    text = ("--calibration", str(tmp_path / "t.txt"))
    mix = ("*.k_proj.weight=int4:64", "*.v_proj.weight=int8")
    assert convert(source, tmp_path / "plain", *mix).exit_code == 0
    result = convert(source, tmp_path / "fitted", *mix, flags=text)
    assert result.exit_code == 0, result.output
    ids = np.arange(8, dtype=np.int32)
    plain, fitted = (load(tmp_path / name).program.matrices() for name in ("plain", "fitted"))
    for part, changed in ((0, False), (1, True), (2, False)):  # q, k and v
        one, other = (parts_of(each["layer.1.qkv"])[part].rows(ids) for each in (plain, fitted))
        assert (one != other).any() == changed


@pytest.mark.parametrize(
    ("mix", "sentence"),
    [
        ("down", "must be WHICH=QUANTIZATION"),
        ("=int8", "must be WHICH=QUANTIZATION"),
        ("router=int8", "'router', which is no tensor of this model; name a role"),
        ("*.w9=int8", "'*.w9', which is no tensor"),
        ("down=int9", "no format called 'int9'"),
        ("down=q6_k", "leave quantization out"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(tmp_path: Path, mix: str, sentence: str) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    result = convert(source, tmp_path / "out", mix)
    assert result.exit_code in (1, 2), result.output
    assert sentence in " ".join(result.output.split())


def test_a_mix_that_divides_an_expert_is_refused(tmp_path: Path) -> None:
    source = tiny_mixtral(tmp_path / "model", **SIZES)
    result = convert(source, tmp_path / "out", "*.w1.weight=int8")
    assert result.exit_code == 2, result.output
    assert "multiplied together have one format" in result.output
    result = convert(source, tmp_path / "out", "gate_up=int8", "*.experts.0.*=q5_0")
    assert result.exit_code == 0, result.output
    found = formats(load(tmp_path / "out"))
    assert found["layer.0.experts.0.gate_up"] == "q5_0"
    assert found["layer.0.experts.1.gate_up"] == "int8"


def test_any_format_that_packs_stands_in_one_directory(tmp_path: Path) -> None:
    """One tensor in each format; written twice, the weights have the same digest."""
    rows = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    packing = []
    for technique in techniques("format"):
        for form in technique.forms:
            try:
                make("format", form).pack(16, 256, [rows], ROWS)
            except ModelError:  # holds only what a file stores
                continue
            packing.append(form)
    assert {"int4:32", "nf4", "q5_0", "fp32"} <= set(packing)
    source = tiny_llama(tmp_path / "model", num_hidden_layers=(len(packing) + 6) // 7, **SIZES)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    mix = [f"*.layers.{n // 7}.{names[n % 7]}.weight={form}" for n, form in enumerate(packing)]
    assert convert(source, tmp_path / "out", *mix).exit_code == 0
    found = load(tmp_path / "out")
    assert {make("format", form).name for form in packing} == set(found.weight_format.split("+"))
    assert convert(source, tmp_path / "again", *mix).exit_code == 0
    assert load(tmp_path / "again").numerics_id == found.numerics_id


PEAK = """
import sys
import time
from ockham.core.config import EngineConfig
from ockham.model.loading import load_model

def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def load(path):
    return load_model(EngineConfig(model=path, kv_cache_memory_bytes=1 << 20, weight_cache="off"))

load(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
held = load(sys.argv[2])
time.sleep(0.5)  # pages move into huge ones in the background
print(held.weight_bytes, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_loading_a_mix_takes_hardly_more_memory_than_its_size(tmp_path: Path) -> None:
    wide = {**SIZES, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3}
    source = tiny_llama(tmp_path / "model", **wide)
    mix = ("*=int8", "*.up_proj.weight=bf16", "down=q5_0", "*.v_proj.weight=int4:32")
    assert convert(source, tmp_path / "out", *mix).exit_code == 0
    small = tiny_llama(tmp_path / "small", **SIZES)
    assert convert(small, tmp_path / "first", *mix).exit_code == 0
    command = [sys.executable, "-c", PEAK, str(tmp_path / "first"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size > 48 << 20
    assert peak < 1.15 * size, f"{peak / size:.2f} times"
