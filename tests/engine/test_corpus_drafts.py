"""Drafts from indexed texts: from files to faster answers of the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.model.checkpoint.corpus_files import ORDER_FILE, TOKENS_FILE, read_corpus
from ockham.model.hub import resolve_drafter

TEXT = "def add(first, second):\n    return first + second\n\n\nclass Adder:\n    pass\n"


def index(out: Path, *data: Path) -> Any:
    arguments = [argument for path in data for argument in ("--data", str(path))]
    return CliRunner().invoke(cli, ["draft", "index", "lab", str(out), *arguments])


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "sub").mkdir()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.py").write_text("never read")
    (folder / "sub" / "a.py").write_text(TEXT)
    (folder / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    lines = [{"text": "one line"}, {"messages": [{"role": "user", "content": "a question"}]}]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = folder / "out"
    result = index(out, folder)
    assert result.exit_code == 0, result.output
    assert "1 files are no text and were left out" in result.output
    assert "3 texts" in result.output
    return out


def answer(engine: Engine, prompt: list[int], temperature: float) -> list[int]:
    params = SamplingParams(temperature=temperature, max_tokens=40, seed=3, ignore_eos=True)
    engine.add(Request(request_id="a", prompt_token_ids=prompt, params=params))
    found: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            found += delta.token_ids
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_texts_are_the_same(indexed: Path, temperature: float) -> None:
    drafting = {"method": "corpus", "model": str(indexed), "adaptive": False}
    engine = Engine(EngineConfig(speculative_config=drafting))
    plain = Engine(EngineConfig(speculative_config="none"))
    assert plain.tokenizer is not None
    prompt = plain.tokenizer.encode("class Adder:\n    pass\n\ndef add(first, sec")
    assert answer(engine, prompt, temperature) == answer(plain, prompt, temperature)
    drafts = engine.stats().drafts
    assert drafts.tokens
    assert drafts.bytes > 8 * len(read_corpus(indexed).tokens)


def test_auto_drafts_from_texts_that_are_named(indexed: Path) -> None:
    engine = Engine(EngineConfig(speculative_config={"model": str(indexed)}))
    assert engine.speculation.names == ["copying", "grammar", "corpus"]


def test_what_was_read_is_in_the_index(indexed: Path) -> None:
    corpus = read_corpus(indexed)
    tokenizer = Engine(EngineConfig(speculative_config="none")).tokenizer
    assert tokenizer is not None
    ends = np.flatnonzero(corpus.tokens < 0)
    starts = [0, *(ends[:-1] + 1)]
    texts = {
        tokenizer.decode(corpus.tokens[a:b].tolist()) for a, b in zip(starts, ends, strict=True)
    }
    assert texts == {TEXT, "one line", "a question"}


def test_bad_input_is_refused(indexed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out, data, message in (
        (tmp_path / "out", tmp_path / "empty", "hold no text"),
        (indexed, tmp_path / "empty", "exists; name another"),
    ):
        found = index(out, data)
        assert message in f"{found.output} {found.exception}"
        assert found.exit_code
    with pytest.raises(ConfigError, match="ockham draft index"):
        Engine(EngineConfig(speculative_config={"method": "corpus"}))
    with pytest.raises(ConfigError, match="holds no indexed texts"):
        Engine(
            EngineConfig(
                speculative_config={"method": "corpus", "model": str(resolve_drafter("lab-medusa"))}
            )
        )


def test_files_that_do_not_belong_together_are_refused(indexed: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    out.mkdir()
    for file in indexed.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    np.save(out / ORDER_FILE, np.load(out / ORDER_FILE)[:-1])
    with pytest.raises(ModelError, match="do not belong together"):
        read_corpus(out)
    (out / TOKENS_FILE).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        read_corpus(out)
