"""Training a probe: which hidden states of a text go before a right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.probe import Probe, ProbeFacts
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    NOTHING,
    Action,
    Branch,
    Finish,
    Observer,
    OwnRows,
    SearchState,
    Seen,
    Wants,
)
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case, task_cases
from ockham.lab.running import drive
from ockham.model.hub import ADAPTERS

EVERY = 4
"""Of a text's states, one in so many is learned from: neighbours say nearly the same."""
HELD_OUT = 4
"""One problem in so many is kept for judging."""
DECAY = 1.0
"""Weight of the squared length of the probe, whose inputs are standardised, beside the sum of the
losses."""
RANK = 64
"""The most that an adapter may have."""
TEXT, PROMPT = "text", "prompt"
"""What `ProbeFacts.at` may be."""
PARTS = 4
"""Into how many parts texts are cut, for judging."""


class Probed(msgspec.Struct, kw_only=True):
    """What a probe is worth on texts of problems that it did not learn from.

    `areas` are those under the ROC curve, of the states of each quarter of the texts, or of the
    prompt: how often a text that will be right has a higher chance than one that will not. `within`
    are the same between texts of one problem, which searches choose among, on average over the
    problems that have both kinds; `likelihood_within` are what the least probable token of a text
    so far says of that; both are empty of a prompt. Areas are nan where there is nothing to tell
    apart. `right` is the share of right texts.
    """

    texts: int
    states: int
    held_out: int
    right: float
    areas: list[float]
    within: list[float]
    likelihood_within: list[float]


class _Read(SearchState, Observer):
    """One text as the sampler writes it, and its states after a layer."""

    watches: ClassVar[bool] = False
    scores: ClassVar[bool] = True

    def __init__(self, layer: int, at: str) -> None:
        self._wants = Wants(hidden=(layer,), newest=True)
        self._layer, self._seen = layer, 0
        self._only_prompt = at == PROMPT
        self.states: list[Floats] = []
        self.logprobs: list[float] = []
        self.right: float | None = None

    @property
    def width(self) -> int:
        return 1

    def observer(self, branch: int) -> Observer:
        return self

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        self.logprobs = branches[0].scores.logprobs
        return [Finish([0])]

    def wants(self, own: OwnRows) -> Wants:
        enough = self._only_prompt and self._seen
        return self._wants if own.choosing and not enough else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        if self._seen % EVERY == 0 and not (self._only_prompt and self._seen):
            self.states.append(seen.hidden[self._layer][-1].copy())
        self._seen += 1


def probe_settings(model: str, lora: str | None) -> tuple[EngineConfig, dict[str, str] | None]:
    """How a model's texts are sampled, and the adapter that is applied to it."""
    config = EngineConfig(model=model, speculative_config="none", max_num_seqs=32)
    if lora is None:
        return config, None
    config = msgspec.structs.replace(config, adapter=f"lora:max_loras=1,max_lora_rank={RANK}")
    return config, {"name": lora, "path": str(ADAPTERS.get(lora, Path(lora)))}


def train_probe(
    config: EngineConfig,
    task: str,
    *,
    items: int,
    samples: int,
    layer: int | None,
    at: str = TEXT,
    temperature: float,
    adapter: Mapping[str, str] | None,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[Probe, Probed]:
    """Sample texts of a task's items, and fit a logistic regression from the states after `layer`
    (the one in the middle, if None) to whether a text is right: `at` says which states, see
    `ProbeFacts`. `adapter` has the name and the path of one that is applied.

    Raises ConfigError for a task or layer that does not exist, for a model without a tokenizer, and
    where all texts are right, or all are wrong.
    """
    engine = Engine(config)
    try:
        layers = engine.model.description.layers
        layer = layers // 2 if layer is None else layer
        if not 0 <= layer < layers:
            raise ConfigError(f"layer must lie in [0, {layers - 1}], got {layer}.")
        if engine.tokenizer is None:
            raise ConfigError("answers are read from text: a probe needs a model with a tokenizer.")
        cases = task_cases([task], items, seed, (), engine.tokenizer, engine.max_model_len).cases
        if not any(case.score for case in cases):
            raise ConfigError(f"the items of {task!r} have no right answers; name another task.")
        read = _texts(engine, cases, samples, (layer, at), temperature, adapter, seed, tell)
    finally:
        engine.close()
    return _fitted(read, ProbeFacts(layer, config.model, task, at))


def _texts(
    engine: Engine,
    cases: list[Case],
    samples: int,
    where: tuple[int, str],
    temperature: float,
    adapter: Mapping[str, str] | None,
    seed: int,
    tell: Callable[[str], None],
) -> list[list[_Read]]:
    """The texts of each case, with the states after a layer that `ProbeFacts.at` names."""
    read = [[_Read(*where) for _ in range(samples)] for _ in cases]
    searches: dict[str, SearchState] = {}
    asks: dict[str, Any] = make_asks({"adapter/lora": dict(adapter)}) if adapter else {}
    done = 0

    def ended(case: Case, text: _Read, output: RequestOutput) -> None:
        nonlocal done
        assert case.score is not None, "the cases of a task with answers"
        text.right = case.score(output.outputs[0].text)
        done += 1
        if done % 100 == 0:
            tell(f"{done} of {len(cases) * samples} texts are written")

    endings: dict[str, Callable[[RequestOutput], None]] = {}
    wanted = []
    for number, case in enumerate(cases):
        for sample in range(samples):
            name = f"{number} {sample}"
            text = read[number][sample]
            searches[name], endings[name] = text, partial(ended, case, text)
            params = SamplingParams(
                temperature=temperature,
                seed=seed + number * samples + sample,
                max_tokens=case.max_tokens,
            )
            wanted.append(
                Request(
                    request_id=name,
                    prompt_token_ids=list(case.tokens),
                    params=params,
                    asks=dict(asks),
                )
            )
    drive(engine, wanted, lambda output: endings[output.request_id](output), searches)
    return read


def _fitted(read: list[list[_Read]], facts: ProbeFacts) -> tuple[Probe, Probed]:
    learned = [text for n, texts in enumerate(read) if n % HELD_OUT for text in texts]
    problems = [texts for n, texts in enumerate(read) if n % HELD_OUT == 0]
    judged = [text for texts in problems for text in texts]
    rights = {text.right for text in learned}
    if len(rights) < 2:
        share = "right" if rights == {1.0} else "wrong"
        raise ConfigError(
            f"all texts are {share}: there is nothing to tell apart; choose other items, or "
            "another temperature."
        )
    states = np.concatenate([np.stack(text.states) for text in learned if text.states])
    labels = np.concatenate([np.full(len(text.states), text.right) for text in learned])
    weight, bias = logistic(states.astype(np.float64), labels, DECAY)
    probe = Probe(facts, weight.astype(np.float32), bias)
    parts, chance = 1 if facts.at == PROMPT else PARTS, partial(_chance, probe)
    compared = range(0 if facts.at == PROMPT else PARTS)
    return probe, Probed(
        texts=len(learned),
        states=len(states),
        held_out=len(judged),
        right=float(np.mean([text.right for text in judged])),
        areas=[_area(chance, judged, part) for part in range(parts)],
        within=[_within(chance, problems, part) for part in compared],
        likelihood_within=[_within(_least, problems, part) for part in compared],
    )


Judgement = Callable[[_Read, int], float]
"""What is said of a text when so many of its parts are written."""


def _chance(probe: Probe, text: _Read, part: int) -> float:
    """What a probe says of the last state of a part."""
    last = max(0, (part + 1) * len(text.states) // PARTS - 1)
    return float(probe(text.states[last][None])[0])


def _least(text: _Read, part: int) -> float:
    """The log probability of the least probable token so far."""
    return min(text.logprobs[: max(1, (part + 1) * len(text.logprobs) // PARTS)])


def _area(judge: Judgement, texts: list[_Read], part: int) -> float:
    """Under the ROC curve, of what is said of each text."""
    there = [text for text in texts if text.states]
    said = np.array([judge(text, part) for text in there])
    return area_under_curve(said, np.array([text.right == 1.0 for text in there], bool))


def _within(judge: Judgement, problems: list[list[_Read]], part: int) -> float:
    """The mean of the areas of problems that have right and wrong texts."""
    areas = [_area(judge, texts, part) for texts in problems]
    found = [area for area in areas if not np.isnan(area)]
    return float(np.mean(found)) if found else float("nan")


def area_under_curve(chances: Doubles, rights: Any) -> float:
    """How often one of the right ones (n,) has a higher chance than one of the others; ties count
    half. nan without both."""
    right, wrong = chances[rights], chances[~rights]
    if not len(right) or not len(wrong):
        return float("nan")
    above = (right[:, None] > wrong[None]).mean()
    return float(above + 0.5 * (right[:, None] == wrong[None]).mean())


def logistic(x: Doubles, y: Doubles, decay: float) -> tuple[Doubles, float]:
    """Weight (width,) and bias of the logistic regression of labels y (n,) in [0, 1] on inputs x
    (n, width), by Newton's method. Inputs are standardised; `decay` weighs the squared length of
    their weight. The weight that is returned is that of x itself."""
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], axis=1)
    penalty = np.full(z.shape[1], 2.0 * decay)
    penalty[-1] = 1e-9
    found = np.zeros(z.shape[1])
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(z @ found, -60.0, 60.0)))
        slope = z.T @ (p - y) + penalty * found
        curve = (z * (p * (1.0 - p))[:, None]).T @ z + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        largest = float(np.abs(step).max())
        found -= step * min(1.0, 10.0 / max(largest, 1e-12))
        if largest < 1e-8:
            break
    weight = found[:-1] / spread
    return weight, float(found[-1] - mean @ weight)
