"""`ockham train heal`: a smaller model learns from the one that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.model.checkpoint.opening import open_model
from ockham.model.loading import load_model
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.windows import layouts_for, window_step
from ockham.training.heal import HealSettings, heal
from tests.helpers.tiny import tiny_llama, tiny_sliced, tiny_unequal

torch = pytest.importorskip("torch")

SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(200))


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_sliced, tiny_unequal])
def test_pytorch_computes_what_the_reference_backend_does(tmp_path: Path, tiny) -> None:  # type: ignore[no-untyped-def]
    from ockham.training.decoder import Decoder

    source = tiny(tmp_path, **SIZES)
    windows = np.random.default_rng(3).integers(0, 97, (2, 20)).astype(np.int32)
    config = EngineConfig(model=str(source), backend="reference", kv_cache_memory_bytes=1 << 20)
    loaded = load_model(config)
    layouts = layouts_for(loaded.description, 2, 20, "float32")
    executor = loaded.backend.bind(loaded.program, loaded.backend.allocate(layouts))
    run = executor.begin(window_step(windows, len(layouts)))
    executor.run(run, 0, len(loaded.program.ops))
    expected = executor.finish(run).logits
    model = Decoder(RewrittenModel(open_model(source), lambda line: None))
    with torch.no_grad():
        found = model(torch.from_numpy(windows.astype(np.int64))).flatten(0, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


def test_a_narrowed_model_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES, tokenizer=True)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = ["--transform", "magnitude_channels:share=0.5"]
    run = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "narrow"), *flags])
    assert run.exit_code == 0, run.output
    args = ["train", "heal", str(tmp_path / "narrow"), str(tmp_path / "out"), "--json"]
    args += ["--teacher", str(source), "--data", str(text), "--tokens", "8192", "--context", "32"]
    result = CliRunner().invoke(cli, [*args, "--batch-tokens", "128", "--rate", "0.003"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert scores["kl_after"] < 0.7 * scores["kl_before"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [each["transform"] for each in config["ockham_transforms"]][-1] == "heal"
    assert load_model(EngineConfig(model=str(tmp_path / "out"))).parameters > 0


def test_healing_that_was_interrupted_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ockham.training import loop

    teacher = tiny_llama(tmp_path / "model", **SIZES, tokenizer=True)
    healed = tiny_llama(tmp_path / "other", **SIZES, tokenizer=True, seed=1)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def settings(out: str) -> HealSettings:
        sizes = {"tokens": 1024, "context": 32, "batch_tokens": 128}
        return HealSettings(str(healed), tmp_path / out, (text,), teacher=str(teacher), **sizes)

    whole = heal(settings("whole"))
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    made = loop.Loop._make_step

    def killed(self: loop.Loop) -> float:
        if self.step == 5:
            raise KeyboardInterrupt
        return made(self)

    monkeypatch.setattr(loop.Loop, "_make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        heal(settings("parts"))
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(loop.Loop, "_make_step", made)
    told: list[str] = []
    parts = heal(settings("parts"), told.append)
    assert "going on from step 5 of 8" in told
    assert (parts["kl_before"], parts["kl_after"]) == (whole["kl_before"], whole["kl_after"])


def test_a_packed_model_is_refused_by_its_part(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES, tokenizer=True)
    (tmp_path / "text.txt").write_text(TEXT)
    flags = ["--quantization", "int8"]
    run = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "packed"), *flags])
    assert run.exit_code == 0, run.output
    data = (tmp_path / "text.txt",)
    for target, teacher, part in (("packed", "model", "to heal"), ("model", "packed", "teacher")):
        settings = HealSettings(
            str(tmp_path / target), tmp_path / "out", data, teacher=str(tmp_path / teacher)
        )
        with pytest.raises(ModelError, match=f"the .*{part} .*packed is quantised, or packed by"):
            heal(settings)


def test_what_cannot_be_healed_is_said(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES, tokenizer=True)
    with pytest.raises(ConfigError, match=r"needs text: name \.txt or \.jsonl files"):
        heal(HealSettings(str(source), tmp_path / "out", teacher=str(source)))
    with pytest.raises(ConfigError, match="rate must be positive and below 1, got 2"):
        HealSettings(str(source), tmp_path / "out", teacher=str(source), rate=2)
