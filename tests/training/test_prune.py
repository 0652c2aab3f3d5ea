"""`ockham train prune`: channels go while the model learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import open_model
from ockham.model.loading import load_model
from ockham.model.rewriting.model import RewrittenModel
from ockham.text.tokenizer import Tokenizer
from ockham.training.prune import PruneSettings, train_pruned
from ockham.weights.widths import WidthOptions, feed_forwards
from tests.helpers.tiny import tiny_llama, tiny_mixtral

torch = pytest.importorskip("torch")

SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(200))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_mixtral])
def test_a_pruned_model_is_smaller_and_is_what_was_trained(
    tmp_path: Path,
    text: Path,
    tiny,  # type: ignore[no-untyped-def]
) -> None:
    source = tiny(tmp_path / "model", **SIZES)
    args = ["train", "prune", str(source), str(tmp_path / "out"), "--share", "0.5", "--json"]
    args += ["--data", str(text), "--tokens", "4096", "--context", "32", "--batch-tokens", "128"]
    args += ["--multiple", "8", "--periods", "3", "--rate", "0.001"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    before, after = scores["channels"]
    assert after == before // 2
    config = EngineConfig(model=str(tmp_path / "out"), kv_cache_memory_bytes=1 << 20)
    whole = EngineConfig(model=str(source), kv_cache_memory_bytes=1 << 20)
    assert load_model(config).parameters < load_model(whole).parameters
    assert divergence(tmp_path / "out", source) == pytest.approx(scores["kl"], rel=0.3)


def divergence(smaller: Path, original: Path) -> float:
    """The mean KL of what was written from the original on the text that it learned from."""
    from ockham.training.decoder import Decoder, Healed

    learned, teacher = (
        Decoder(RewrittenModel(open_model(path), lambda line: None)) for path in (smaller, original)
    )
    ids = Tokenizer(original).encode(TEXT)
    rows = torch.tensor(ids[: len(ids) // 33 * 33][: 33 * 40]).reshape(-1, 33)
    return Healed(learned, teacher).divergence(rows)


def gradual(source: Path, share: float, periods: int):  # type: ignore[no-untyped-def]
    from ockham.training.decoder import Decoder
    from ockham.training.gradual import Gradual

    model = RewrittenModel(open_model(source), lambda line: None)
    parts, options = feed_forwards(model), WidthOptions(share, 8)
    return Gradual(Decoder(model), Decoder(model), parts, options, periods), parts


def test_channels_go_step_by_step_and_stay_away(tmp_path: Path) -> None:
    model, parts = gradual(tiny_llama(tmp_path, **SIZES), 0.25, 2)
    down = model.learned.tensor(next(iter(parts)))
    ids = torch.from_numpy(np.random.default_rng(3).integers(2, 90, (2, 20)))
    sizes, before = [], down.detach().norm(dim=0).clone()
    for step in range(20):
        model.loss(ids, np.random.default_rng(0), "text").backward()
        with torch.no_grad():
            for values in model.parameters():
                values += 0.0 if step < 4 else 1e-6
        model.moved(step, 20)
        model.zero_grad()
        sizes.append(down.detach().norm(dim=0) / before)
    gone = np.setdiff1d(np.arange(64), model.kept()[next(iter(parts))])
    shares = torch.stack(sizes)[:, gone]
    assert (shares[3] == 1).all()  # nothing goes at first
    assert (shares[-1] == 0).all()
    assert ((shares[4:15] > 0.01) & (shares[4:15] < 0.99)).any()  # they go gradually
    assert (shares.diff(dim=0) <= 1e-4).all()
    total = sum(len(own) for own in model.kept().values())
    assert total == 0.75 * 64 * len(parts)


def test_pruning_that_was_interrupted_goes_on_to_the_same_model(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ockham.training import loop

    source = tiny_llama(tmp_path / "model", **SIZES)

    def settings(out: str) -> PruneSettings:
        sizes = {"tokens": 2560, "context": 32, "batch_tokens": 128, "multiple": 8, "periods": 2}
        return PruneSettings(str(source), tmp_path / out, data=(text,), **sizes)  # type: ignore[arg-type]

    whole = train_pruned(settings("whole"))
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    made = loop.Loop._make_step

    def killed(self: loop.Loop) -> float:
        if self.step == 8:  # in the middle of a period
            raise KeyboardInterrupt
        return made(self)

    monkeypatch.setattr(loop.Loop, "_make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_pruned(settings("parts"))
    monkeypatch.setattr(loop.Loop, "_make_step", made)
    parts = train_pruned(settings("parts"))
    assert (parts["kl"], parts["channels"]) == (whole["kl"], whole["channels"])
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert one == other


def test_a_share_that_removes_nothing_is_refused_and_leaves_nothing(
    tmp_path: Path, text: Path
) -> None:
    source = str(tiny_llama(tmp_path / "model", **SIZES))
    settings = PruneSettings(source, tmp_path / "out", (text,), share=0.05, tokens=32_000)
    with pytest.raises(ConfigError, match="5% of the channels cannot be removed in steps of 32"):
        train_pruned(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]


def test_what_cannot_be_pruned_is_said(tmp_path: Path) -> None:
    source, out = str(tiny_llama(tmp_path / "model", **SIZES)), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"needs text: name \.txt or \.jsonl files"):
        train_pruned(PruneSettings(source, out))
    with pytest.raises(ConfigError, match=r"share must be above 0 and below 1, got 1\.5"):
        PruneSettings(source, out, share=1.5)
    with pytest.raises(ConfigError, match="1024 tokens are 1 steps, too few for 5 periods"):
        PruneSettings(source, out, tokens=1024)
