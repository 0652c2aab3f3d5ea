"""`ockham calibrate` shows a model's heads to a technique, and writes what the engine reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Calibration, QueryBlock
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.lab.head_samples import BLOCKS, HeadSamples
from ockham.training.calibrate import CalibrateSettings, calibrated_techniques
from tests.helpers import serving
from tests.helpers.serving import drain
from tests.helpers.tiny import tiny_llama, tiny_mistral


class _Watching(Calibration):
    def __init__(self) -> None:
        self.seen: list[QueryBlock] = []

    def saw(self, block: QueryBlock) -> None:
        self.seen.append(block)


def texts(lengths: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, 97, length).tolist() for length in lengths]


def test_whole_blocks_of_each_text_are_seen_in_every_layer(tmp_path: Path) -> None:
    watching = _Watching()
    samples = HeadSamples(str(tiny_llama(tmp_path, max_position_embeddings=1024)), 800)
    try:
        assert samples.show(texts([600, 777]), watching) == 1377
        with pytest.raises(ConfigError, match="at least 512"):
            samples.show(texts([511]), watching)
    finally:
        samples.close()
    assert len(watching.seen) == 2 * 2 * BLOCKS
    assert {block.layer for block in watching.seen} == {0, 1}
    lengths = [len(block.keys) for block in watching.seen[:BLOCKS]]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 9 * BLOCK_KEYS
    for block in watching.seen:
        assert block.queries.shape == (BLOCK_KEYS, 4, 8)
        assert block.keys.shape[1:] == (2, 8)


def test_what_is_seen_is_what_the_attention_reads(tmp_path: Path) -> None:
    """The probabilities of the engine's own attention follow from it."""
    from ockham.core.seams import Observer, OwnRows, Seen, Wants

    class Scores(Observer):
        def __init__(self) -> None:
            self.of: dict[int, np.ndarray] = {}

        def wants(self, own: OwnRows) -> Wants:
            return Wants(scores=[1], rows=np.arange(len(own.tokens), dtype=np.int32))

        def saw(self, own: OwnRows, seen: Seen) -> None:
            for place, scores in zip(own.places[seen.rows].tolist(), seen.scores[1], strict=True):
                self.of[place] = scores.copy()

    checkpoint, [text] = tiny_llama(tmp_path, max_position_embeddings=1024), texts([600])
    watching, scores = _Watching(), Scores()
    samples = HeadSamples(str(checkpoint), 800)
    samples.show([text], watching)
    samples.close()
    engine: Engine = serving.make_engine(checkpoint, max_model_len=800, speculative_config="none")
    request = serving.ask("a", text, max_tokens=2)
    engine.add(request)
    engine.groups[request.request_id].first.observe(scores)
    drain(engine)
    block = [each for each in watching.seen if each.layer == 1][2]
    row, keys = 40, block.keys[: len(block.keys) - BLOCK_KEYS + 41]
    expected = np.zeros((2, len(keys)))
    for head in range(4):
        products = np.exp(keys[:, head // 2] @ block.queries[row, head])
        expected[head // 2] += products / products.sum()
    np.testing.assert_allclose(scores.of[len(keys) - 1], expected, rtol=0.02, atol=1e-3)


def call(*words: Any) -> Any:
    return CliRunner().invoke(cli, ["calibrate", *map(str, words)])


def test_the_lab_model_is_calibrated_and_served_so(tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    result = call("minference:stride=8", "lab", out, "--texts", 1, "--context", 600)
    assert result.exit_code == 0, result.output
    assert "of full attention" in result.output
    assert f"--attention-pattern minference:heads={out}" in result.output
    written = json.loads(out.read_text())
    assert written["stride"] == 8
    assert written["calibrated"]["model"] == "lab"
    engine = Engine(
        EngineConfig(model="lab", attention_pattern=f"minference:heads={out},share=0.3")
    )
    try:
        asked = serving.ask("a", list(range(300, 300 + 400)), max_tokens=1)
        engine.add(asked)
        ledger = drain(engine)[-1].ledger
        assert ledger is not None
        assert ledger.saved["minference"].flops > 0
    finally:
        engine.close()
    again = call("minference", "lab", out)
    assert again.exit_code != 0
    assert "is there already" in again.output


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    assert "minference" in calibrated_techniques()
    out = tmp_path / "heads.json"
    for technique, words in (
        ("streaming", "nothing to calibrate of 'streaming'; there is of: "),
        ("minference:stride=3", "stride must be 8 or 16, got 3"),
    ):
        result = call(technique, "lab", out)
        assert result.exit_code == 2
        assert words in result.output
    for field, value in (("texts", 0), ("context", 100)):
        with pytest.raises(ConfigError, match=f"{field} must be at least"):
            CalibrateSettings("minference", "lab", out, **{field: value})
    with pytest.raises(ConfigError, match="has no directory"):
        CalibrateSettings("minference", "lab", tmp_path / "none" / "heads.json")
    with pytest.raises(ModelError, match="no layer of attention that sees a whole text"):
        HeadSamples(str(tiny_mistral(tmp_path, window=100)), 400)
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "%s"}\n' % ("a word " * 60) * 50)
    result = call("minference", "lab", out, "--data", short)
    assert "no text has 512 tokens" in result.output
    assert not out.exists()


def test_too_few_tokens_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ockham.training.calibrate.HeadSamples", refuse)
    result = call("a2ats", "lab", tmp_path / "books", "--texts", "1", "--context", "600")
    assert result.exit_code == 2, result.exception
    assert "calibrated on at least 1024 tokens, and the texts have" in result.output
