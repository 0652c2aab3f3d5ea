"""What two models are worth together at real sizes: `python -m benchmarks.two_models OUT`.

OUT is where a checkpoint of TinyLlama's shape is written that says what `lab` says, and one of a
tenth of it that says what `lab-small` says, unless they stand there: the small models fill a corner
of every matrix, and all else is 0, which takes the same time.

Calculations in steps are answered by every setting in turn, one after the other, greedily. Times
are those of the processor, from the first step of a request to its last, which tells more than the
clock where others use the machine; so threads = 1. Of a setting it is told how many answers are
right, its time over that of the large model alone, and what share of the large model's passes over
its weights it needed.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.nested_drafts import grow
from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case, task_cases
from ockham.model.hub import resolve

PAIR = {"large": ("lab", "tinyllama"), "small": ("lab-small", "draft-110m")}
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "chat_template.jinja",
)
TASK, CONTEXT = "steps", 1024
SEARCHES: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "cascade, least 0.9": {"method": "cascade", "by": "least", "sure": 0.9},
    "cascade, least 0.7": {"method": "cascade", "by": "least", "sure": 0.7},
    "cascade, least 0.5": {"method": "cascade", "by": "least", "sure": 0.5},
    "switch, 0.01": {"method": "switch", "entropy": 0.01, "window": 1, "stay": 1},
    "switch, 0.1": {"method": "switch", "entropy": 0.1, "window": 1, "stay": 1},
    "switch, 0.1 of 5": {"method": "switch", "entropy": 0.1, "window": 5, "stay": 5},
    "step_drafts, least 0.3": {"method": "step_drafts", "by": "least", "accept": 0.3},
    "step_drafts, mean 0.7": {"method": "step_drafts", "by": "mean", "accept": 0.7},
    "step_drafts, mean 0.5": {"method": "step_drafts", "by": "mean", "accept": 0.5},
    "lent_thought": {"method": "lent_thought", "begin": "", "end": "\nAnswer:"},
}


@dataclass
class Found:
    """What a setting gave, a number for each problem."""

    right: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    passes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--only", nargs="+", default=[], help="names of settings")
    given = parser.parse_args()
    for role, (model, shape) in PAIR.items():
        if not (given.out / role / "config.json").exists():
            grow(resolve(model), given.out / role, shape)
            for name in TOKENIZER:
                shutil.copy(resolve(model) / name, given.out / role / name)
    plain = _engine(given, "large", companions=f"small={given.out / 'small'}")
    drafts = {"method": "draft_model", "model": str(given.out / "small")}
    engines = dict.fromkeys(SEARCHES, plain)
    engines["exact drafts"] = _engine(given, "large", speculative_config=drafts)
    engines["small alone"] = _engine(given, "small")
    if given.only:
        engines = {name: each for name, each in engines.items() if name in ("alone", *given.only)}
    assert plain.tokenizer is not None, "it was copied"
    cases = task_cases([TASK], given.problems, 5, (), plain.tokenizer, CONTEXT).cases
    found = {name: Found() for name in engines}
    for number, case in enumerate(cases):
        for name in list(engines)[:: 1 if number % 2 else -1]:
            answer(engines[name], case, SEARCHES.get(name), f"{number} {name}", found[name])
    alone = found["alone"]
    for name, each in found.items():
        print(
            f"{name:24} right {sum(each.right) / len(cases):.0%}, time "
            f"{sum(each.seconds) / sum(alone.seconds):.2f}, passes of the large model "
            f"{each.passes / alone.passes:.2f}",
            flush=True,
        )


def _engine(given: argparse.Namespace, role: str, **settings: Any) -> Engine:
    values = {"speculative_config": "none", **settings}
    return Engine(
        EngineConfig(
            model=str(given.out / role),
            quantization=given.quantization,
            threads=1,
            max_num_seqs=4,
            max_model_len=CONTEXT,
            kv_cache_memory_bytes=128 << 20,
            **values,
        )
    )


def answer(
    engine: Engine, case: Case, search: dict[str, Any] | None, salt: str, found: Found
) -> None:
    """Answer a problem, and note what that took."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=case.max_tokens,
        **({} if search is None else {"search": search}),  # type: ignore[arg-type]
    )
    tokens = list(case.tokens)
    engine.add(Request(request_id="a", prompt_token_ids=tokens, params=params, cache_salt=salt))
    text = ""
    began = time.process_time()
    while engine.has_work:
        ran_s = engine.backend_s
        for delta in engine.step():
            text += delta.text
        found.passes += engine.backend_s > ran_s
    found.seconds.append(time.process_time() - began)
    assert case.score is not None, "the task has answers"
    found.right.append(case.score(text))


if __name__ == "__main__":
    main()
