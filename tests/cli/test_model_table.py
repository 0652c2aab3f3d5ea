"""What `ockham serve` takes for several models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ockham.api.server.specs import Table
from ockham.cli.model_table import model_options, read_table
from ockham.cli.options import engine_options_of_several
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError

FOUND: list[Table | None] = []


@click.command()
@engine_options_of_several
@model_options
def probe(
    more_models: tuple[str, ...],
    embedding: tuple[str, ...],
    models: Any,
    keep_alive: float,
    models_max: int | None,
    models_memory_bytes: int | None,
    **engine: Any,
) -> None:
    table = read_table(
        engine,
        more_models=more_models,
        embedding=embedding,
        models=models,
        keep_alive=keep_alive,
        models_max=models_max,
        models_memory_bytes=models_memory_bytes,
        served_model_name=(),
        lora_modules=(),
    )
    FOUND.append(table)


def read(*args: str) -> Table | None:
    """Raises what the command does."""
    result = CliRunner().invoke(probe, args, catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return FOUND[-1]


def table_of(*args: str) -> Table:
    found = read(*args)
    assert found is not None
    return found


def test_one_model_is_no_table() -> None:
    assert read("lab") is None
    assert read() is None
    with pytest.raises(ConfigError, match="--keep-alive is for servers of several models"):
        read("lab", "--keep-alive", "5m")


def test_models_are_called_as_they_are_named() -> None:
    table = table_of("lab", "dir/lab-moe.Q4_K_M.gguf", "--embedding", "enc", "-t", "2")
    assert [spec.names for spec in table.specs] == [
        ("lab",),
        ("lab-moe.Q4_K_M", "dir/lab-moe.Q4_K_M.gguf"),
        ("enc",),
    ]
    assert [spec.config.task for spec in table.specs] == ["auto", "auto", "embed"]
    assert {spec.config.threads for spec in table.specs} == {2}
    assert {spec.stay_s for spec in table.specs} == {300.0}
    assert table.memory_bytes > 0


def test_what_is_asked_of_text_is_not_asked_of_models_of_embeddings(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        "models:\n  other: {model: lab, task: embed}\n"
        "  own: {model: lab, task: embed, max-model-len: 99}\n  chats: lab\n"
    )
    flags = ("--reuse", "prefix,chunk", "--kv-store", str(tmp_path), "--max-model-len", "700")
    flags = (*flags, "--guard", "0.01")
    table = table_of("lab", "--embedding", "enc", "-t", "2", *flags, "--config", str(config))
    plain = EngineConfig()
    for spec in table.specs:
        embeds = spec.config.task == "embed"
        assert spec.config.reuse == (plain.reuse if embeds else "prefix,chunk")
        assert (spec.config.kv_store is None) == embeds
        assert (spec.config.guard == 0.0) == embeds
        assert spec.config.threads == 2
    lengths = {spec.name: spec.config.max_model_len for spec in table.specs}
    assert lengths == {"lab": 700, "enc": None, "other": None, "own": 99, "chats": 700}


def test_a_table_has_settings_of_its_own_for_each_model(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        """
keep-alive: 10m
threads: 3
models-max: 2
models:
  fast:
    model: lab
    aliases: [gpt-4o, mini]
    preload: true
  careful:
    model: lab-moe
    max-model-len: 2K
    threads: 1
    keep-alive: -1
    enable-lora: true
    lora-modules: {steps: lab-steps}
  plain:
"""
    )
    table = table_of("--config", str(config))
    fast, careful, plain = table.specs
    assert table.most == 2
    assert fast.names == ("fast", "gpt-4o", "mini")
    assert (fast.stay_s, fast.preload, fast.config.threads) == (600.0, True, 3)
    assert (careful.config.model, careful.config.max_model_len) == ("lab-moe", 2048)
    assert (careful.stay_s, careful.config.threads) == (math.inf, 1)
    assert careful.adapters == {"steps": "lab-steps"}
    assert careful.config.adapter is not None
    assert plain.config.model == "plain"
    assert plain.config.adapter is None


def test_a_store_is_shared_out_and_one_of_a_models_own_is_left_alone() -> None:
    models = {"own": {"model": "lab", "kv-store": "/elsewhere", "kv-store-bytes": "1G"}}
    table = table_of(
        *("lab", "a/b", "--models", json.dumps(models)),
        *("--kv-store", "/kv", "--kv-store-bytes", "4G"),
    )
    stores = [(spec.config.kv_store, spec.config.kv_store_bytes) for spec in table.specs]
    assert stores[0] == ("/kv/lab", 2 << 30)
    assert stores[1][0] is not None
    assert stores[1][0].startswith("/kv/a-b-"), "a name that is a path is none of a directory"
    assert stores[2] == ("/elsewhere", 1 << 30)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("lab", "lab"), "two models, or a model and an adapter, are called 'lab'"),
        (("--models", "{"), "no JSON"),
        (("--models", "[1]"), "each model's name its settings"),
        (("--models", '{"a": 3}'), "'a' must have settings"),
        (("--models", '{"a": {"modle": "x"}}'), "Did you mean model"),
        (("--models", '{"a": {"port": 1}}'), "no setting of a model"),
        (("--models", '{"a": {"task": "rank"}}'), "task must be one of"),
        (("--models", '{"a": {"threads": 0}}'), "models: a: threads must lie in"),
        (
            ("--models", '{"a": {"kv-store": "/x"}, "b": {"kv-store": "/x"}}'),
            "one engine at a time has a directory",
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(*args)


def test_a_duration_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(probe, ["lab", "lab-moe", "--keep-alive", "soon"])
    assert result.exit_code == 2
    assert "5m" in result.output
