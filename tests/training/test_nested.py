"""`ockham train nested`: the first channels of a model's feed-forwards are smaller models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import open_model
from ockham.model.rewriting.model import RewrittenModel
from ockham.training.nested import NestedSettings, train_nested
from tests.helpers.tiny import tiny_llama, tiny_mixtral

torch = pytest.importorskip("torch")

SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(200))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def quiet(line: str) -> None:
    """Nobody listens."""


def test_narrower_widths_come_closer_and_the_full_one_stays(tmp_path: Path, text: Path) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    args = ["train", "nested", str(source), str(tmp_path / "out"), "--widths", "0.5", "--json"]
    args += ["--data", str(text), "--tokens", "8192", "--context", "32", "--batch-tokens", "128"]
    result = CliRunner().invoke(cli, [*args, "--data-weight", "0"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    before, after = scores["kl_before"], scores["kl_after"]
    assert before["1"] == pytest.approx(0.0, abs=1e-4)  # sorting channels changes nothing
    assert after["0.5"] < 0.7 * before["0.5"]
    assert after["1"] < 0.5 * after["0.5"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["ockham_transforms"][-1]["widths"] == [0.5]


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_mixtral])
def test_a_width_is_the_model_that_the_transform_takes_out(tmp_path: Path, tiny) -> None:  # type: ignore[no-untyped-def]
    from ockham.training.decoder import Decoder

    source, half = tiny(tmp_path / "model", **SIZES), tmp_path / "half"
    flags = ["--transform", "width:keep=0.5,multiple=8"]
    made = CliRunner().invoke(cli, ["convert", str(source), str(half), *flags])
    assert made.exit_code == 0, made.output
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 97, (2, 20)))
    whole, small = (Decoder(RewrittenModel(open_model(path), quiet)) for path in (source, half))
    with torch.no_grad():
        np.testing.assert_allclose(whole(ids, 0.5, 8), small(ids), rtol=1e-4, atol=1e-5)
        assert (whole(ids) - small(ids)).abs().max() > 1e-3


def test_training_that_was_interrupted_goes_on_to_the_same_weights(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ockham.training import loop

    source = tiny_llama(tmp_path / "model", **SIZES)

    def settings(out: str) -> NestedSettings:
        sizes = {"tokens": 1024, "context": 32, "batch_tokens": 128}
        return NestedSettings(str(source), tmp_path / out, data=(text,), **sizes)  # type: ignore[arg-type]

    whole = train_nested(settings("whole"))
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    made = loop.Loop._make_step

    def killed(self: loop.Loop) -> float:
        if self.step == 5:
            raise KeyboardInterrupt
        return made(self)

    monkeypatch.setattr(loop.Loop, "_make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_nested(settings("parts"))
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(loop.Loop, "_make_step", made)
    told: list[str] = []
    parts = train_nested(settings("parts"), told.append)
    assert "going on from step 5 of 8" in told
    assert parts["kl_after"] == whole["kl_after"]


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    source, out = str(tiny_llama(tmp_path / "model", **SIZES)), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"needs text: name \.txt or \.jsonl files"):
        train_nested(NestedSettings(source, out))
    with pytest.raises(ConfigError, match=r"widths must lie between 0 and 1, got 1\.5"):
        NestedSettings(source, out, widths=(0.5, 1.5))
    with pytest.raises(ConfigError, match="no widths were given"):
        NestedSettings(source, out, widths=())
    with pytest.raises(ConfigError, match="data_weight must be at least 0 and finite, got -1"):
        NestedSettings(source, out, data_weight=-1)
    for given in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=f"at least 0 and finite, got {given}"):
            NestedSettings(source, out, data_weight=given)


def test_a_width_that_is_the_whole_model_is_refused_and_leaves_nothing(
    tmp_path: Path, text: Path
) -> None:
    source, out = str(tiny_llama(tmp_path / "model", **SIZES)), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"the width 0\.9 of .* is all of its channels in steps"):
        train_nested(NestedSettings(source, out, (text,), widths=(0.5, 0.9), multiple=32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]
