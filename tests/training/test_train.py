"""Every method trains for a tiny target from end to end, and what it writes is what is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError, ModelError
from ockham.model.checkpoint.draft_files import (
    EarlyExit,
    MedusaHeads,
    PromptTokens,
    read_acceptance,
    read_drafter,
)
from ockham.text.tokenizer import Tokenizer
from ockham.training import loop, outputs
from ockham.training.documents import read_documents
from ockham.training.outputs import Outputs, write_outputs
from ockham.training.settings import Settings
from ockham.training.train import Trained, train
from tests.helpers.serving import ask, complete, make_engine
from tests.helpers.tiny import tiny_llama


def settings(target: Path, text: Path, out: Path, method: str, **more: Any) -> Settings:
    given = {"target": str(target), "data": (text,), "out": out, "method": method}
    small = {"tokens": 3072, "output_tokens": 1200, "context": 64, "batch_tokens": 128, "seed": 3}
    return Settings(**{**given, **small, **more})


def learned(trained: Trained, part: int = 6) -> bool:
    """Whether the loss of the last steps is well below that of the first."""
    count = len(trained.losses) // part
    return float(np.mean(trained.losses[-count:])) < 0.9 * float(np.mean(trained.losses[:count]))


@pytest.fixture(scope="module")
def draft_model(target: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("draft") / "model"
    given = settings(target, data, out, "draft_model", hidden_size=32, layers=1)
    assert learned(train(given))
    return out


def test_medusa_heads_are_trained_and_read(target: Path, data: Path, tmp_path: Path) -> None:
    trained = train(settings(target, data, tmp_path / "out", "medusa", heads=2))
    assert learned(trained)
    config, weights = (tmp_path / "out" / f"draft.{end}" for end in ("json", "safetensors"))
    assert weights.stat().st_mode == config.stat().st_mode
    found = read_drafter(tmp_path / "out")
    found.check_target(128, 4096, 2)
    assert isinstance(found.parts, MedusaHeads)
    assert found.parts.count == 2
    assert np.abs(found.parts.weights).max() > 0
    assert found.trained["scores"] == json.loads(json.dumps(trained.scores))
    scores = trained.scores["held_out"]
    assert len(scores["first_by_offset"]) == 2
    assert all(0 <= n <= 1 for n in scores["among_3_by_offset"])
    assert not (tmp_path / "out.training").exists()


def test_prompt_tokens_are_trained_and_read(target: Path, data: Path, tmp_path: Path) -> None:
    trained = train(settings(target, data, tmp_path / "out", "prompt_tokens", heads=2))
    assert trained.scores["held_out"]["of"] == 2
    parts = read_drafter(tmp_path / "out").parts
    assert isinstance(parts, PromptTokens)
    assert parts.embeddings.shape == (2, 128)


def test_a_head_reads_several_layers(target: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of at least four layers"):
        train(settings(target, data, tmp_path / "none", "eagle3"))
    deep = tiny_llama(tmp_path / "deep", tokenizer=True, num_hidden_layers=4)
    out = tmp_path / "out"
    trained = train(settings(deep, data, out, "eagle3"))
    assert trained.losses[-1] < trained.losses[0]
    setting = {"method": "eagle3", "model": str(out), "adaptive": False}
    engine = make_engine(deep, speculative_config=setting)
    found = complete(engine, [ask("one", [5, 6, 7] * 9)])
    assert found == complete(make_engine(deep), [ask("one", [5, 6, 7] * 9)])
    assert engine.speculation.stats().drafts > 0


def test_a_block_is_trained_and_drafts(target: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained = train(settings(target, data, out, "mtp"))
    assert learned(trained)
    assert 0 <= trained.scores["held_out"]["agreement"] <= 1
    engine = make_engine(target, speculative_config={"model": str(out), "adaptive": False})
    assert engine.speculation.names == ["copying", "grammar", "mtp"]
    found = complete(engine, [ask("one", [5, 6, 7] * 9)])
    assert found == complete(make_engine(target), [ask("one", [5, 6, 7] * 9)])
    assert "mtp" in {*engine.total.saved, *engine.total.wasted}
    with pytest.raises(ConfigError, match="made for the method 'mtp'"):
        make_engine(target, speculative_config={"method": "draft_model", "model": str(out)})


def test_an_early_exit_is_trained_and_read(target: Path, data: Path, tmp_path: Path) -> None:
    trained = train(settings(target, data, tmp_path / "out", "early_exit", layers=1))
    assert learned(trained)
    parts = read_drafter(tmp_path / "out").parts
    assert isinstance(parts, EarlyExit)
    assert parts.layers == 1
    assert trained.scores["held_out"]["of"] == 4


def test_a_draft_model_drafts_and_changes_no_token(target: Path, draft_model: Path) -> None:
    prompts = [[5, 6, 7, 8], list(range(40, 70))]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)

    def written(speculation: Any) -> tuple[list[list[int]], int]:
        llm = LLM(str(target), max_model_len=128, speculative_config=speculation)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        booked = [{**out.ledger.saved, **out.ledger.wasted} for out in outputs]
        drafted = sum("draft_model" in each for each in booked)
        return [output.outputs[0].token_ids for output in outputs], drafted

    drafting = {"method": "draft_model", "model": str(draft_model), "adaptive": False}
    tokens, drafted = written(drafting)
    assert drafted == 2
    assert tokens == written("none")[0]


def test_a_draft_model_is_gone_on_from(
    target: Path, data: Path, draft_model: Path, tmp_path: Path
) -> None:
    given = settings(target, data, tmp_path / "out", "draft_model", start=draft_model, tokens=256)
    trained = train(given)
    assert trained.losses[0] < 6.0  # of a new one it would be 10
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_acceptance_head_stands_beside_its_draft_model(
    target: Path, data: Path, draft_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = settings(target, data, out, "acceptance", draft_model=str(draft_model), rate=0.01)
    trained = train(given)
    head = read_acceptance(out, 32)
    assert head is not None
    assert head.weight.shape == (32, 32)
    assert {path.name for path in draft_model.iterdir()} < {path.name for path in out.iterdir()}
    scores = trained.scores["held_out"]
    assert scores["calibration_error"] < 0.1


def test_an_interrupted_training_goes_on_to_the_same_weights(
    target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(target, data, tmp_path / "whole", "early_exit", layers=1, tokens=1536))
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    made = loop.Loop._make_step

    def killed(self: loop.Loop) -> float:
        if self.step == 9:
            raise KeyboardInterrupt
        return made(self)

    given = settings(target, data, tmp_path / "parts", "early_exit", layers=1, tokens=1536)
    monkeypatch.setattr(loop.Loop, "_make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(given)
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(loop.Loop, "_make_step", made)
    told: list[str] = []
    parts = train(given, told.append)
    assert "going on from step 9 of 12" in told
    assert parts.losses == whole.losses
    one, other = (read_drafter(tmp_path / name).parts for name in ("whole", "parts"))
    assert isinstance(one, EarlyExit)
    assert isinstance(other, EarlyExit)
    assert np.array_equal(one.weight, other.weight)


def test_what_the_target_wrote_is_not_written_again(
    target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = read_documents((data,), (), Tokenizer(target), None)

    def written(path: Path) -> tuple[Outputs, list[str]]:
        told: list[str] = []
        return write_outputs(target, pieces, 4000, 64, 3, path, told.append), told

    whole, rounds = written(tmp_path / "whole.npz")
    assert len(rounds) > 1
    part = Outputs(whole.train[: outputs.AT_ONCE], {})
    part.save(tmp_path / "part.npz")
    again, left = written(tmp_path / "part.npz")
    assert again == whole
    assert left == rounds[1:]
    assert written(tmp_path / "part.npz") == (whole, [])


def test_other_settings_do_not_go_on_from_a_training(
    target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: loop.Loop) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "_make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings(target, data, tmp_path / "out", "medusa", tokens=128))
    with pytest.raises(ConfigError, match=r"other settings \(seed 3 there, 4 here\)"):
        train(settings(target, data, tmp_path / "out", "medusa", tokens=128, seed=4))


def test_what_cannot_be_trained_is_refused_at_once(
    target: Path, data: Path, draft_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="exists; name a directory that does not"):
        train(settings(target, data, tmp_path, "medusa"))
    with pytest.raises(ConfigError, match=r"needs text: name \.txt or \.jsonl files with --data"):
        train(settings(tiny_llama(tmp_path / "tiny", tokenizer=True), data, out, "medusa", data=()))
    with pytest.raises(ConfigError, match=r"must lie in \[1, 1\] for a model of 2 layers, got 3"):
        train(settings(target, data, out, "early_exit", layers=3))
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    with pytest.raises(ModelError, match="is a GGUF file, which PyTorch cannot train for"):
        train(settings(gguf, data, out, "medusa"))


def test_a_drafter_of_another_tokenizer_is_refused(
    target: Path, data: Path, draft_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in draft_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    described = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(described.replace('"<|pad|>"', '"<|pat|>"'))
    assert (other / "tokenizer.json").read_text(encoding="utf-8") != described
    for method, named in (("draft_model", "start"), ("acceptance", "draft_model")):
        path: Any = other if named == "start" else str(other)
        with pytest.raises(ConfigError, match=r"has another tokenizer than .*lab_drafter"):
            train(settings(target, data, tmp_path / "out", method, **{named: path}))


def test_a_converted_target_is_refused(target: Path, data: Path, tmp_path: Path) -> None:
    from ockham.core.config import EngineConfig
    from ockham.model.converting import convert

    packed = tmp_path / "packed"
    convert(EngineConfig(model=str(target), quantization="int8"), packed, lambda line: None)
    with pytest.raises(ModelError, match="is quantised, or packed by `ockham convert`"):
        train(settings(packed, data, tmp_path / "out", "medusa"))
