"""Reward models: what they learn of texts, and that what is written is read as a reward model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.engine.rewards import RewardModel
from ockham.lab.tasks import items
from ockham.model.hub import BUILT_IN
from ockham.text.tokenizer import load_tokenizer
from ockham.training.reward import RewardSettings, labelled, train_reward


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "reward"
    told: list[str] = []
    settings = RewardSettings(
        "lab", out, task="steps", problems=24, samples=3, temperature=1.3, epochs=1
    )
    scores = train_reward(settings, told.append)
    assert scores["texts"] + scores["held_out"] == 72
    assert 0.0 < scores["right"] < 1.0
    assert 0.0 <= scores["area_of_lines"] <= 1.0
    return out


def test_a_line_is_right_while_the_text_begins_as_the_answer_does() -> None:
    (item,) = items("long_steps", 0, 1)
    lines = item.answer.split("\n")
    wrong = "\n".join([lines[0], lines[1] + "1", *lines[2:4]])
    found = list(labelled(item, wrong, 0.0))
    assert [label for _, label in found] == [1.0, 0.0, 0.0, 0.0]
    assert [wrong[:at] for at, _ in found][-1] == wrong
    assert {label for _, label in labelled(item, wrong, 1.0)} == {1.0}
    assert list(labelled(item, "", 0.0)) == []


def test_what_is_written_is_what_transformers_reads(trained: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    tokenizer = load_tokenizer(EngineConfig(), BUILT_IN["lab"])
    assert tokenizer is not None
    reward = RewardModel("r", str(trained), tokenizer, 1)
    prompt, text = tokenizer.encode("Add 27 and 58."), "7+8=15\n"
    score = reward.judging(None).submit(np.array(prompt, np.int32), text).result(60)
    ids = tokenizer.encode("Add 27 and 58." + text, add_special_tokens=True)
    with torch.no_grad():
        logit = model(torch.tensor([ids])).logits[0, 0]
    assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-4)
    reward.close()


def test_what_cannot_be_trained_is_refused(trained: Path, tmp_path: Path) -> None:
    settings = RewardSettings("lab", tmp_path / "out", problems=8, samples=1)
    for changed, said in (
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"out": trained}, "holds a model already"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(settings, **changed)  # type: ignore[arg-type]
    for task, said in (("prose", "are for tests only"), ("no", "there is no task")):
        with pytest.raises(ConfigError, match=said):
            train_reward(replace(settings, task=task))
    config = json.loads((trained / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert not (tmp_path / "out").exists()
