"""What tests of drafters ask of an engine with drafts and of one without."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ockham.engine.engine import Engine
from tests.helpers import serving

VOCABULARY = 97

make_engine = partial(
    serving.make_engine, max_model_len=200, block_size=4, reuse="none", speculative_config="none"
)
"""An engine that reuses nothing, and without drafts unless it is told of a drafter."""


def draft_model(draft: Path, branches: int = 4) -> dict[str, Any]:
    """A setting for a draft model that drafts in every step."""
    return {
        "method": "draft_model",
        "model": str(draft),
        "adaptive": False,
        "num_speculative_tokens": 4,
        "branches": branches,
    }


def answers(engine: Engine, count: int = 5, **params: Any) -> dict[tuple[str, int], list[int]]:
    """Greedy and sampled requests of several lengths, one of several choices, one penalised."""
    requests = []
    for i in range(count):
        asked = {
            "temperature": 0.0 if i % 2 else 0.9,
            "max_tokens": 10 + 7 * i,
            "n": 2 if i == 2 else 1,
            "frequency_penalty": 0.5 if i == 4 else 0.0,
            "seed": i,
            **params,
        }
        prompt = [(7 * i + 3 * j) % VOCABULARY for j in range(1 + 20 * i)]
        requests.append(serving.ask(str(i), prompt, **asked))
    return serving.complete(engine, requests)
