"""Problems of a task, other ones in each round, for evidence of how often answers are right."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case, task_cases
from ockham.lab.evidence.bench import Bench, Outcome, outcome_of
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.model.hub import ADAPTERS

TEMPERATURE = 1.0
RANK = 32
"""Of the adapters that these tasks need, at most."""


def is_lab(bench: Bench) -> bool:
    """Whether the model is the one that the adapters are of."""
    return bench.config.model == "lab"


def settings(bench: Bench) -> dict[str, Any]:
    """What an engine is built with beside what the bench says."""
    return {"adapter": f"lora:max_lora_rank={RANK}"} if is_lab(bench) else {}


class Problems:
    """Runs of the problems of one round after the other, and how many answers were right."""

    def __init__(
        self,
        bench: Bench,
        task: str,
        problems: int,
        *,
        engine: Engine | None = None,
        adapter: str = "",
        temperature: float = TEMPERATURE,
        at_once: int = 0,
    ) -> None:
        """So many problems of a task in each round. `adapter` is a built-in one of the model. At
        most `at_once` problems run at once; 0 for as many as the engine runs."""
        self._bench = bench
        self._engine = bench.engine(**settings(bench)) if engine is None else engine
        if self._engine.tokenizer is None:
            raise ConfigError("answers are read from text: a search is measured with a tokenizer.")
        self._task, self._problems, self._temperature = task, problems, temperature
        self._at_once = at_once
        self._rounds: Counter[str] = Counter()
        self._right: dict[str, list[float]] = {}
        self._asks: dict[str, Any] = {}
        if adapter:
            path = str(ADAPTERS[adapter])
            self._asks = make_asks({"adapter/lora": {"name": adapter, "path": path}})

    def __call__(
        self,
        which: str,
        asked: Mapping[str, Any],
        texts: Callable[[RequestOutput], str] = lambda output: output.outputs[0].text,
        levels: Sequence[str] = (),
    ) -> tuple[Outcome, list[RequestOutput]]:
        """Answer the problems of the next round of `which` as `asked`: of all levels in turn, or of
        these. `texts` says what counts."""
        number = self._rounds[which]
        self._rounds[which] += 1
        cases = self.cases(number, levels)
        outcome, outputs = self._run(cases, number, asked)
        self.count(which, cases, [texts(output) for output in outputs])
        return outcome, outputs

    def count(self, which: str, cases: list[Case], texts: list[str]) -> None:
        """Note how many texts are right."""
        scores = [case.score(text) for case, text in zip(cases, texts, strict=True) if case.score]
        self._right.setdefault(which, []).extend(scores)

    def right(self, which: str) -> float:
        """The share of right answers of all rounds."""
        return mean(self._right[which])

    def compare(self, row: Row, one: str, other: str) -> None:
        """Note in the row how right two ways answered the same problems."""
        row.compare_answers(self._right[one], self._right[other])

    def cases(self, number: int, levels: Sequence[str] = ()) -> list[Case]:
        """The problems of a round."""
        engine = self._engine
        assert engine.tokenizer is not None, "checked above"
        seed = self._bench.seed * 1000 + number
        found = task_cases(
            [self._task], self._problems, seed, levels, engine.tokenizer, engine.max_model_len
        )
        return found.cases

    def _run(
        self, cases: list[Case], number: int, asked: Mapping[str, Any]
    ) -> tuple[Outcome, list[RequestOutput]]:
        outputs: dict[str, RequestOutput] = {}
        wanted = [
            Request(
                request_id=case.key,
                prompt_token_ids=list(case.tokens),
                params=SamplingParams(
                    temperature=self._temperature,
                    seed=1000 * number + place,
                    max_tokens=case.max_tokens,
                    **asked,
                ),
                asks=dict(self._asks),
            )
            for place, case in enumerate(cases)
        ]
        started = time.perf_counter()
        many = self._at_once or len(wanted)
        for first in range(0, len(wanted), many):
            some = wanted[first : first + many]
            drive(self._engine, some, lambda output: outputs.update({output.request_id: output}))
        ordered = [outputs[case.key] for case in cases]
        return outcome_of(ordered, started), ordered
