"""Scores of tokens that are learned from a model's own attention."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.train import train
from ockham.core.errors import ConfigError
from ockham.model.checkpoint.keep_files import read_heads
from ockham.training.documents import Piece
from ockham.training.keep import KeepSettings, train_keep
from ockham.training.keep_heads import linear, with_inner
from ockham.training.keep_labels import LEAST, Labels, Reader, Text, texts_of
from tests.helpers.serving import ask, drain, make_engine
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), tokenizer=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rng, words = Random(1), ["red", "house", "river", "seven", "of", "the", "stone", "a"]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=90))}) for _ in range(30)]
    path.write_text("\n".join(lines))
    return path


def test_labels_are_the_most_attention_of_later_rows(model: Path) -> None:
    reader = Reader(model, 64)
    try:
        text = Text((5, 6, 7, 8, 9, 11, 5, 6, 7, 8, 9), 5)
        found = reader.labels([text], 5, Random(0), lambda line: None)
    finally:
        reader.close()
    assert found.inputs.shape == (2, 5, 32)
    assert found.labels.shape == (2, 5, 2)
    rms = np.sqrt(np.square(found.inputs.astype(np.float32)).mean(axis=-1))
    assert np.allclose(rms, 1.0, atol=2e-2)
    most = np.exp(found.labels) - LEAST
    assert (most > 0).all()
    assert (most <= 2.0).all(), "two query heads read each head"
    assert not np.array_equal(found.labels[0], found.labels[1])


def test_texts_are_read_again_behind_themselves() -> None:
    pieces = [Piece((1, 2, 3, 4)), Piece((5, 6, 7, 8, 9), 3), Piece((1,))]
    found = texts_of(pieces, [0], 3, Random(0))
    assert sorted(text.tokens for text in found) == [
        (1, 2, 3, 0, 1, 2, 3),
        (5, 6, 7, 8, 9, 0, 5, 6, 7),
    ]


def test_heads_foretell_what_follows_from_the_input() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 600, 8)).astype(np.float16)
    labels = np.stack([x.astype(np.float32)[:, :2] * 3 - 1 for x in inputs])
    known = Labels(inputs, labels, np.arange(600) % 8 == 7)
    for fitted in (linear(known), with_inner(known, 300, 0, lambda line: None)):
        assert fitted.scores["explained"] > 0.8
        assert fitted.tensors["quantiles"].shape == (101,)
        assert (np.diff(fitted.tensors["quantiles"]) >= 0).all()


@pytest.mark.parametrize("rule", ["kvzap", "locret"])
def test_what_is_trained_is_served(rule: str, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    command = ["keep", str(model), str(out), "--rule", rule, "--data", str(data)]
    settings = ["--rows", "512", "--context", "80", "--steps", "5", "--threads", "1"]
    ran = CliRunner().invoke(train, [*command, *settings])
    assert ran.exit_code == 0, ran.output
    assert "of the variance" in ran.output
    assert sorted(path.name for path in out.iterdir()) == ["keep.json", "keep.safetensors"]
    assert not out.with_name("heads.training").exists()
    assert read_heads(out).rule == rule
    least = {"kvzap": "share=0.1", "locret": "budget=40"}[rule]
    engine = make_engine(model, keep=f"{rule}:heads={out},{least},window=8,block=16")
    engine.add(ask("a", list(range(2, 200)), max_tokens=8))
    bill = drain(engine)[-1].ledger
    assert bill is not None
    assert bill.saved[rule].flops > 0


def test_so_few_texts_that_none_is_left_to_measure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at least 8 texts.*1000 rows come of [2-7]:"):
        train_keep(KeepSettings("lab", tmp_path / "out", "kvzap", rows=1000))


def test_wrong_settings_are_refused_in_a_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs text"):
        train_keep(KeepSettings(str(model), tmp_path / "out", "kvzap"))
    with pytest.raises(ConfigError, match="rows must be at least 512, got 3"):
        KeepSettings(str(model), tmp_path / "out", "kvzap", rows=3)
    with pytest.raises(ConfigError, match="there is no rule 'best'"):
        KeepSettings(str(model), tmp_path / "out", method="best")
