"""Searches that decide within a text give the same answer where a step brings several tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ockham import LLM, SamplingParams

SEARCHES: dict[str, dict[str, Any]] = {
    "switch": {"entropy": 0.2, "window": 2, "stay": 2},
    "step_drafts": {"by": "least", "accept": 0.3},
    "lent_thought": {"begin": "", "end": "\nAnswer:"},
    "cascade": {"by": "least", "sure": 0.9},
    "interim": {"border": "\n", "write": "Answer:", "every": 2, "tokens": 5},
    "give_up": {"threshold": -0.2, "after": 4},
    "promising": {"samples": 4, "extract": "Answer: (.+)"},
    "deepconf": {"samples": 6, "warmup": 2, "window": 4, "extract": "Answer: (.+)"},
    "beam": {"width": 4, "extract": "Answer: (.+)"},
}
PROBLEMS = ("Sort 34 23 12 64 29.", "Add 7795 and 9866.", "Multiply 47 by 5.", "Sum 48 33 81 53.")
DRAFTS = {"method": "draft_model", "model": "lab-small", "adaptive": False}


@pytest.fixture(scope="module")
def models() -> Iterator[list[LLM]]:
    made = [
        LLM("lab", max_model_len=512, companions="small=lab-small", speculative_config=drafts)  # type: ignore[arg-type]
        for drafts in ("none", DRAFTS)
    ]
    yield made
    for each in made:
        each.close()


@pytest.mark.parametrize("temperature", [0.0, 1.1])
@pytest.mark.parametrize("method", SEARCHES)
def test_drafts_change_no_answer(models: list[LLM], method: str, temperature: float) -> None:
    if temperature == 0.0 and method in ("promising", "deepconf", "beam"):
        pytest.skip("it is over samples")
    found = []
    for llm in models:
        said = []
        for seed in range(3):
            params = SamplingParams(
                temperature=temperature,
                seed=seed,
                max_tokens=90,
                search={"method": method, **SEARCHES[method]},  # type: ignore[call-arg]
            )
            chats = [[{"role": "user", "content": problem}] for problem in PROBLEMS]
            said += [output.outputs[0].token_ids for output in llm.chat(chats, params)]  # type: ignore[arg-type]
        found.append(said)
    assert found[0] == found[1]
    assert models[1].engine.speculation.counters.accepted > 0
