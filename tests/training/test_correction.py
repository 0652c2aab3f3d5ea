"""`ockham train correction`: sums of low rank that learn what rounding takes."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.kernels.corrected import CorrectedLinear
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.lab.compress.scoring import Held
from ockham.model.checkpoint.opening import open_model
from ockham.model.converting import convert
from ockham.model.loading import LoadedModel, choose_packer, load_model
from ockham.model.program.compile import compile_program
from ockham.model.rewriting.applying import Rewriting
from ockham.model.rewriting.model import RewrittenModel
from ockham.text.tokenizer import Tokenizer
from ockham.training.correction import CorrectionSettings, read_mix, train_correction
from ockham.weights.stacked import parts_of
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama, tiny_mixtral

torch = pytest.importorskip("torch")

SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(400))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tiny_llama(tmp_path / "model", **SIZES, tokenizer=True)


def settings(source: Path, out: str, **values: object) -> CorrectionSettings:
    sizes = {"tokens": 1024, "context": 32, "batch_tokens": 128, "rank": 4, **values}
    sizes.setdefault("quantization", None if "mix" in sizes else "int4:64")
    data = (source.with_name("text.txt"),)
    return CorrectionSettings(str(source), source.with_name(out), data=data, **sizes)  # type: ignore[arg-type]


def load(path: Path, **values: object) -> LoadedModel:
    shared = {"kv_cache_memory_bytes": 1 << 20, "kv_cache_dtype": "float32"}
    return load_model(EngineConfig(model=str(path), **{**shared, **values}))  # type: ignore[arg-type]


def corrected(model: LoadedModel) -> list[CorrectedLinear]:
    return [
        part
        for op in model.program.ops
        for matrix in op.matrices().values()
        for part in parts_of(matrix)
        if isinstance(part, CorrectedLinear)
    ]


def test_trained_sums_say_what_the_model_says_more_than_those_in_closed_form(source: Path) -> None:
    out = source.with_name("out")
    args = ["train", "correction", str(source), str(out), "--quantization", "int4:32", "--json"]
    args += ["--rank", "8", "--tokens", "16384", "--context", "32", "--batch-tokens", "128"]
    args += ["--data", str(source.with_name("text.txt")), "--rate", "0.003"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert scores["kl_closed_form"] < scores["kl_rounded"]
    assert scores["kl_trained"] < 0.8 * scores["kl_closed_form"]
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    assert told["trained"]["kl_trained"] == scores["kl_trained"]
    made = load(out)
    assert [each.rank for each in corrected(made)] == [8] * 4 * 2
    tokens = Tokenizer(source).encode("def f7(a, b):\n    return a", add_special_tokens=False)
    exact, rounded, found = (
        prompt_logits(each, [tokens], len(tokens))[0]
        for each in (load(source, quantization="fp32"), load(source, quantization="int4:32"), made)
    )
    assert np.square(found - exact).sum() < np.square(rounded - exact).sum()


def test_pytorch_computes_what_the_written_directory_does(source: Path) -> None:
    """But for the rounding of products' inputs: fp8 has none."""
    from ockham.training.sums import RoundedDecoder

    out = source.with_name("out")
    train_correction(settings(source, "out", quantization="fp8"))
    made, opened = load(out), open_model(out)
    packer = choose_packer(
        EngineConfig(model=str(out)), opened.config, opened.source, made.backend.layout
    )
    held = Held(opened.source.load(packer))
    compile_program(opened.description, held, opened.description.max_position_embeddings)
    decoder = RoundedDecoder(RewrittenModel(open_model(source), print), held.matrices)
    prompt = [5, 9, 3, 60, 2, 7]
    beside = replace(made, backend=ReferenceBackend())
    expected = prompt_logits(beside, [prompt], len(prompt))[0]
    with torch.no_grad():
        found = decoder(torch.tensor([prompt]))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_training_that_was_interrupted_goes_on_to_the_same_bytes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ockham.training import loop

    whole = train_correction(settings(source, "whole"))
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    made = loop.Loop._make_step

    def killed(self: loop.Loop) -> float:
        if self.step == 5:
            raise KeyboardInterrupt
        return made(self)

    monkeypatch.setattr(loop.Loop, "_make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_correction(settings(source, "parts"))
    assert not source.with_name("parts").exists()
    monkeypatch.setattr(loop.Loop, "_make_step", made)
    told: list[str] = []
    parts = train_correction(settings(source, "parts"), told.append)
    assert "going on from step 5 of 8" in told
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    one, other = (
        (source.with_name(name) / "model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert one == other
    assert not source.with_name("parts.training").exists()


def test_what_cannot_be_trained_is_said(source: Path) -> None:
    without = CorrectionSettings(str(source), source.with_name("out"), quantization="int4:64")
    with pytest.raises(ConfigError, match=r"needs text: name \.txt or \.jsonl files"):
        train_correction(without)
    with pytest.raises(ConfigError, match="nothing is rounded: name a quantization"):
        settings(source, "out", quantization=None)
    with pytest.raises(ConfigError, match="bf16 rounds nothing that a sum could make good"):
        settings(source, "out", quantization="bf16")
    with pytest.raises(ConfigError, match="there is no format called 'int9'"):
        settings(source, "out", quantization="int9")
    with pytest.raises(ConfigError, match="rank must be at least 1, got 0"):
        settings(source, "out", rank=0)
    train_correction(settings(source, "out"))
    again = replace(settings(source, "again"), target=str(source.with_name("out")))
    with pytest.raises(ModelError, match="is quantised"):
        train_correction(again)


def test_the_mix_of_a_directory_is_corrected(source: Path) -> None:
    mix = {
        "model.layers.0.mlp.down_proj.weight": "int4:32+lorc:rank=3",
        "qkv": "fp4",
        "head": "int8",
    }
    quiet = lambda line: None  # noqa: E731
    convert(EngineConfig(model=str(source)), source.with_name("mixed"), quiet, mix=mix)
    scores = train_correction(settings(source, "out", mix=read_mix(source.with_name("mixed"))))
    assert scores["kl_trained"] < scores["kl_rounded"]
    made = load(source.with_name("out"))
    assert [each.rank for each in corrected(made)] == [4, 3, 4]
    plain = source.with_name("plain")
    convert(EngineConfig(model=str(source), quantization="int4:32"), plain, quiet)
    with pytest.raises(ConfigError, match="has no mix of formats"):
        read_mix(plain)
    narrow = Rewriting(("magnitude_channels:share=0.5",))
    smaller = source.with_name("smaller")
    convert(EngineConfig(model=str(source)), smaller, quiet, mix={"down": "fp4"}, rewriting=narrow)
    with pytest.raises(ConfigError, match="had been rewritten or made smaller"):
        read_mix(smaller)


def test_routed_experts_are_rounded_and_stay_so(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    source = tiny_mixtral(tmp_path / "model", **SIZES, tokenizer=True)
    scores = train_correction(settings(source, "out"))
    assert scores["kl_trained"] < scores["kl_rounded"]
    assert len(corrected(load(tmp_path / "out"))) == 2 * 2


def test_an_interrupt_saves_the_step_and_the_same_command_goes_on(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ockham.training.loop import Loop

    whole = train_correction(settings(source, "whole"))
    make, made, told = Loop._make_step, [], []

    def interrupted(loop: Loop) -> float:
        made.append(loop.step)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return make(loop)

    monkeypatch.setattr(Loop, "_make_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_correction(settings(source, "out"), told.append)
    assert any("interrupted after step 3 of 8, which is saved" in line for line in told)
    found = train_correction(settings(source, "out"))
    assert made == list(range(8))
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}


def test_training_that_makes_it_worse_keeps_the_closed_form(source: Path) -> None:
    told: list[str] = []
    scores = train_correction(settings(source, "out", rate=0.99), told.append)
    assert scores["kl_trained"] > scores["kl_closed_form"]
    assert scores["kept"] == "closed form"
    assert any("the sums in closed form are kept" in line for line in told)
    text = source.with_name("text.txt")
    closed = train_correction(settings(source, "still", rate=1e-12), lambda line: None)
    assert closed["kl_closed_form"] == scores["kl_closed_form"]
    tokens = Tokenizer(source).encode(text.read_text()[:60], add_special_tokens=False)
    one, other = (
        prompt_logits(load(source.with_name(name)), [tokens], len(tokens))[0]
        for name in ("out", "still")
    )
    assert np.array_equal(one, other)


def test_two_ways_to_round_are_refused(source: Path, tmp_path: Path) -> None:
    args = ["train", "correction", str(source), str(tmp_path / "out"), "--quantization", "int4:64"]
    result = CliRunner().invoke(cli, [*args, "--mix-of", str(source)])
    assert "--quantization and --mix-of both say how weights are rounded" in result.output
