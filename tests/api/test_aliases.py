"""vLLM's names of techniques at the edge."""

from __future__ import annotations

from typing import Any

import pytest

from ockham.api.aliases import own_name
from ockham.api.settings import engine_config
from ockham.cli import options
from ockham.core.config import EngineConfig
from ockham.core.registry import SEAMS, find


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("ngram", "copying"),
        ("ngram:3, suffix", "copying:3,trie"),
        ("off", "none"),
        ({"method": "suffix", "branches": 2}, {"method": "trie", "branches": 2}),
        ('{"method": "ngram"}', {"method": "copying"}),
        (
            '{"method": "qwen3_next_mtp", "num_speculative_tokens": 2}',
            {"method": "mtp", "num_speculative_tokens": 2},
        ),
        ('{"method": ', '{"method": '),
        ("draft_model:small,branches=2,ngram", "draft_model:small,branches=2,copying"),
        (None, None),
        (5, 5),
    ],
)
def test_a_setting_may_name_drafters_as_vllm_does(given: Any, own: Any) -> None:
    assert own_name("speculative_config", given) == own


def settings_of_llm(**given: Any) -> EngineConfig:
    return engine_config("lab", given)


@pytest.mark.parametrize("make", [settings_of_llm, options.engine_config])
def test_python_and_commands_take_the_same_names(make: Any) -> None:
    config = make(scheduling_policy="priority", speculative_config="ngram")
    assert config.scheduling_policy == find("policy", "fcfs").name
    assert config.speculative_config == "copying"
    assert SEAMS["policy"].setting == "scheduling_policy"
