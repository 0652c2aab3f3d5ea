"""`ockham draft` checks what it is given before it needs PyTorch, and says what can be done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from tests.helpers.tiny import tiny_llama


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, ["draft", *args])


@pytest.fixture
def without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `train` is not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("without_pytorch")
def test_a_gguf_file_is_refused_before_anything_is_to_be_installed(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    result = call("train", str(tmp_path / "model.gguf"), str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "name the checkpoint" in result.output
    assert "ockham draft index" in result.output
    assert "pip install" not in result.output


@pytest.mark.usefixtures("without_pytorch")
def test_a_target_without_tokenizer_or_text_is_refused_in_words_that_help(tmp_path: Path) -> None:
    bare, whole = tiny_llama(tmp_path / "bare"), tiny_llama(tmp_path / "whole", tokenizer=True)
    for verb in (
        ("train", str(bare), str(tmp_path / "out")),
        ("index", str(bare), str(tmp_path / "out"), "--data", __file__),
    ):
        result = call(*verb)
        assert result.exit_code == 1
        assert "has no tokenizer.json" in result.output
        assert "--tokenizer" not in result.output
    result = call("train", str(whole), str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "needs text" in result.output


@pytest.mark.usefixtures("without_pytorch")
def test_what_is_to_be_installed_is_told_when_all_else_is_right(tmp_path: Path) -> None:
    result = call("train", "lab", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "pip install 'ockham[train]'" in result.output
