"""The share of the memory that each of several models gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import DoesNotFit
from ockham.engine.messages import Question, Survey
from ockham.engine.survey import survey
from ockham.model.loading import plan_model
from tests.helpers.tiny import tiny_llama

MIB = 1 << 20
SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_model_len": 100},
    {"kv_cache_memory_bytes": 64 * MIB},
    {"kv_store": "/nowhere", "swap_space": 0.01},
    {"adapter": "lora:max_loras=2"},
    {"max_num_seqs": 2},
    {"memory_bytes": 400 * MIB},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("long")
    return tiny_llama(directory, tokenizer=True, max_position_embeddings=32768)


@pytest.mark.parametrize("share", [8 * MIB, 300 * MIB, 4096 * MIB])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_model_can_be_loaded_with_the_share_that_it_gets(
    checkpoint: Path, settings: dict[str, Any], share: int
) -> None:
    config = EngineConfig(model=str(checkpoint), **settings)
    found = survey(Question(config, share, 8192 * MIB))
    given = msgspec.structs.replace(config, memory_bytes=found.memory_bytes)
    planned = plan_model(given, available=8192 * MIB)
    planned.source.close()
    assert planned.plan.max_model_len == found.max_model_len
    if "memory_bytes" not in settings:
        assert found.max_model_len >= settings.get("max_model_len", 8192)


def test_who_cannot_use_an_equal_share_gets_less(checkpoint: Path) -> None:
    config = EngineConfig(model=str(checkpoint), max_num_seqs=2, max_model_len=64)
    assert survey(Question(config, 4096 * MIB, 8192 * MIB)).memory_bytes < 256 * MIB


def test_the_whole_memory_may_be_too_little(checkpoint: Path) -> None:
    config = EngineConfig(model=str(checkpoint))
    with pytest.raises(DoesNotFit, match="does not fit"):
        survey(Question(config, 8 * MIB, 8 * MIB))
    set_too_high = msgspec.structs.replace(config, memory_bytes=64 * MIB)
    with pytest.raises(DoesNotFit, match=r"memory_bytes is 64\.0 MiB"):
        survey(Question(set_too_high, 8 * MIB, 8 * MIB))


def test_a_process_answers_and_says_what_is_wrong(tmp_path: Path) -> None:
    question = Question(EngineConfig(model=str(tmp_path)), MIB, 1024 * MIB)
    done = subprocess.run(
        [sys.executable, "-m", "ockham.engine.survey"],
        input=msgspec.json.encode(question),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    found = msgspec.json.decode(done.stdout, type=Survey)
    assert found.fits
    assert str(tmp_path) in str(found.error)


@pytest.mark.parametrize(
    ("task", "found"), [("auto", ("generate",)), ("embed", ("embed", "token_embed"))]
)
def test_a_survey_says_what_a_model_does(
    checkpoint: Path, task: str, found: tuple[str, ...]
) -> None:
    config = EngineConfig(model=str(checkpoint), task=task, memory_bytes=400 * MIB)
    assert survey(Question(config, 1, 8192 * MIB)).tasks == found
