"""Narrower feed-forwards and layers without attention as alternatives of `ockham compress`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.kernels.backends import find_backend
from ockham.lab.compress.card import Card
from ockham.lab.compress.scoring import Held, Model, Scorer
from ockham.lab.compress.shapes import (
    Reshaping,
    Shape,
    Shaped,
    blocks_of,
    check_widths,
    writing,
)
from ockham.lab.compress.text import Texts, read_texts
from ockham.model.checkpoint.opening import open_model
from ockham.model.converting import convert, tensors_in, unquantised
from ockham.model.loading import choose_packer, load_model
from ockham.model.rewriting.applying import MadeTransform, Rewriting
from tests.helpers.tiny import tiny_llama, tiny_mixtral

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 32,
    "num_hidden_layers": 3,
    "tokenizer": True,
}
FAST = ("--calibration-tokens", "512", "--score-tokens", "128", "--formats", "int4,int8")
SMALLER = ("--widths", "0.5,0.75", "--drop")


def compress(source: Path, out: Path, *flags: str) -> Result:
    return CliRunner().invoke(cli, ["compress", str(source), str(out), *FAST, *flags])


def card_of(out: Path) -> Card:
    return msgspec.json.decode((out / "compression.json").read_bytes(), type=Card)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), **SIZES)


@pytest.fixture(scope="module")
def first(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result that no formats alone could reach, with its journal beside it."""
    out = tmp_path_factory.mktemp("first") / "out"
    result = compress(source, out, "--bits", "3.6", *SMALLER)
    assert result.exit_code == 0, result.output
    return out


def test_parts_go_where_formats_alone_do_not_reach_the_goal(source: Path, first: Path) -> None:
    alone = compress(source, first.parent / "alone", "--bits", "3.6")
    assert alone.exit_code == 2
    assert "the nearest that can: --bits" in alone.output
    card, config = card_of(first), json.loads((first / "config.json").read_text())
    model = load_model(EngineConfig(model=str(first), kv_cache_memory_bytes=1 << 20))
    assert model.weight_bytes == card.nbytes <= 3.6 * card.nbytes / card.bits
    shapes = {each.block: each.shape for each in card.shapes}
    assert len(shapes) == 2 * 3
    assert {*shapes.values()} > {"whole"}
    without = [n for n in range(3) if shapes[f"layer.{n}.attention"] == "dropped"]
    assert config.get("layers_without_attention", []) == without
    page = (first / "README.md").read_text()
    assert all(f"| `{block}` | {shape} |" in page for block, shape in shapes.items())


def test_bytes_of_narrower_matrices_are_those_that_are_written(
    source: Path, tmp_path: Path
) -> None:
    """A scale for each row and a sum of low rank do not get less as weights do."""
    flags = ("--widths", "0.5", "--formats", "int4dq", "--correction", "lorc:rank=2")
    result = compress(source, tmp_path / "out", "--bits", "4.4", *flags)
    assert result.exit_code == 0, result.output
    card = card_of(tmp_path / "out")
    narrowed = {each.block for each in card.shapes if each.shape != "whole"}
    assert narrowed
    norms = 4 * 128 * (2 * 3 + 1)
    assert card.nbytes == sum(each.nbytes for each in card.chosen) + norms


def test_a_run_with_shapes_that_was_stopped_goes_on(
    source: Path, first: Path, tmp_path: Path
) -> None:
    lines = (first.parent / "out.scores.jsonl").read_bytes().splitlines(keepends=True)
    half = tmp_path / "half.jsonl"
    half.write_bytes(b"".join(lines[:12]))
    flags = ("--bits", "3.6", *SMALLER, "--scores", str(half))
    result = compress(source, tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    assert "11 of 29 tensors and blocks were scored before" in result.output
    assert sorted(half.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert card_of(tmp_path / "out").shapes == card_of(first).shapes


def scorer_of(path: Path) -> tuple[Model, Scorer, list[Shaped], Texts]:
    opened, backend = open_model(path), find_backend("auto", 1)
    config = EngineConfig(model=str(path))
    stored = choose_packer(config, opened.config, opened.source, backend.layout)
    plain = replace(unquantised(opened.source, opened.description, stored), layout=backend.layout)
    texts = read_texts(None, lambda text: [3 + len(w) for w in text.split()], 128, 512, 512)
    held = Held(opened.source.load(plain))
    model = Model(opened.description, held, backend, texts.scored)
    model.judge()
    keys = {id(matrix): key for key, matrix in held.matrices.items()}
    blocks = list(blocks_of(model.program, keys, (0.5,), True))
    windows, tensors = texts.fitted.windows, tensors_in(opened.source)
    scorer = Scorer(model, opened.source, tensors, stored, plain, windows, [], 1, blocks)
    return model, scorer, blocks, texts


@pytest.mark.parametrize(
    ("block", "shape", "reshaping"),
    [
        ("layer.1.feed_forward", "128 channels", Reshaping({1: 128}, ())),
        ("layer.0.feed_forward", "dropped", Reshaping({0: 32}, ())),
        ("layer.2.attention", "dropped", Reshaping({}, (2,))),
    ],
)
def test_a_score_is_what_the_smaller_block_alone_does(
    source: Path, tmp_path: Path, block: str, shape: str, reshaping: Reshaping
) -> None:
    model, scorer, _, texts = scorer_of(source)
    found = {own.name: scores for own, scores in scorer.scores([], {})}
    score = next(each for each in found[block] if each.form == shape)
    rewriting = Rewriting((MadeTransform("test", reshaping),), "float32")
    config = EngineConfig(model=str(source), quantization="fp32")
    convert(config, tmp_path / "out", lambda line: None, texts.fitted, rewriting=rewriting)
    config = EngineConfig(model=str(tmp_path / "out"), kv_cache_memory_bytes=1 << 20)
    loaded = load_model(config)
    assert score.loss is not None
    assert score.loss > 1e-6
    kl = model.of(loaded.description).divergence(loaded.program)
    assert kl == pytest.approx(score.loss, rel=1e-3)


def test_feed_forwards_of_mixtures_stay_and_their_attentions_may_go(tmp_path: Path) -> None:
    source = tiny_mixtral(tmp_path / "model", experts=4, **SIZES)
    _, _, blocks, _ = scorer_of(source)
    assert [each.name for each in blocks] == [f"layer.{n}.attention" for n in range(3)]


def test_wrong_shares_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--widths must lie between 0 and 1, got 1\.5"):
        check_widths([0.5, 1.5])
    result = compress(source, tmp_path / "out", "--bits", "4", "--widths", "half")
    assert result.exit_code == 2
    assert "'half' is not a list of numbers; write 0.25,0.5." in result.output


def test_values_stay_finite_where_a_channel_is_never_used() -> None:
    rng = np.random.default_rng(3)
    down, inner = rng.standard_normal((8, 64)).astype(np.float32), np.zeros((30, 64), np.float32)
    inner[:, :40] = rng.standard_normal((30, 40))
    made = writing(down, inner.T @ inner, Shape("32 channels", 32))
    assert np.isfinite(made).all()
    assert np.count_nonzero(np.abs(made).sum(axis=0)) == 32
