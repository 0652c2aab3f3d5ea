"""Evidence for drafters with a second model: the shape of their drafts, and when they end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ockham.core.noise import gumbel
from ockham.core.seams import Foreseen
from ockham.core.speculative import parse
from ockham.draft.draft_model import DraftModel, DraftModelOptions
from ockham.draft.modelled.growing import Growing
from ockham.draft.modelled.stream import ModelStream
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.speculation import Speculation
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.drafts import ANSWERED, PROMPTS, SPECDEC, items
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.texts import held_out

RSD = (
    "RSD (paper 48): trees drawn without replacement beat chains and i.i.d. trees at every length "
    "of a draft, and in most cases at the target's budget; its abstract has no figures"
)
EASYSPEC = (
    "EasySpec (paper 247): drafting up to 1.62 times as fast on several GPUs, at most 7% less "
    "accurate; up to 4.17 times as fast as decoding token by token"
)
BUDGET = 8
"""Drafted tokens in each step."""
LENGTHS = (1, 2, 3, 4, 6, 8, 12)
"""Of drafts that always are as long."""
STOP = 0.8
"""The chance of a rejection at which others end."""
DRAFT_SHARE = 0.1
"""Of a step of the target, what a step of a draft model is thought to take."""
_OTHER_NOISE = 1 << 20
"""Added to the number of a sequence's stream, for noise that the target never draws with."""


class IndependentDrafts(DraftModel):
    """What trees without replacement are compared with: the tokens below one are drawn each by
    itself, so that some come twice, and are then one. The first has the target's own noise."""

    def _ranked(
        self, each: Growing, number: int, foreseen: Foreseen, row: int, drawn: int | None
    ) -> list[tuple[int, float]]:
        noise = each.wish.noise
        if noise is None or drawn is None:
            return super()._ranked(each, number, foreseen, row, drawn)
        tokens = foreseen.candidates[row].astype(np.int64)
        scaled = foreseen.logits[row, tokens] / noise.params.temperature
        weights = np.exp(scaled - scaled.max())
        shares = dict(zip(tokens.tolist(), (weights / weights.sum()).tolist(), strict=True))
        found = {drawn: shares.get(drawn, 0.0)}
        for other in range(1, self._branches):
            own = gumbel(
                noise.seed, noise.stream + other * _OTHER_NOISE, each.position(number), tokens
            )
            token = int(tokens[(scaled + own).argmax()])
            found.setdefault(token, shares[token])
        return list(found.items())


@evidence(
    "drafter",
    "draft_model-tree",
    "Trees of a draft model, drawn without replacement, against chains of as many tokens.",
)
def tree(bench: Bench) -> Row:
    """Sampled edits of code; every draft has the same number of tokens."""
    engine = bench.engine()
    prompts = items(bench, engine, "edit")
    params = [greedy(ANSWERED, temperature=1.0, seed=number) for number in range(len(prompts))]
    wanted = requests(prompts, params)
    setting = {"method": "draft_model", "model": "lab-drafter", "adaptive": False}
    setting["num_speculative_tokens"] = BUDGET
    config = parse(setting)
    chain = engine.make_speculation(parse({**setting, "branches": 1}))
    trees = engine.make_speculation(config)
    independent = engine.make_speculation(
        config, [IndependentDrafts(DraftModelOptions(**config.options))]
    )
    for controller in (chain, trees, independent):
        drafted(engine, wanted, controller)  # so that they know what is accepted
    apart = drafted(engine, wanted, independent)
    return bench.compare(
        "drafter",
        "draft_model-tree",
        lambda: drafted(engine, wanted, chain),
        lambda: drafted(engine, wanted, trees),
        lambda outcome: outcome.observed,
        exact=True,
        what=(
            f"{PROMPTS} sampled edits of code, {ANSWERED} tokens each, {BUDGET} drafted in each "
            f"step; trees drawn with replacement took {apart.observed:.0f} steps"
        ),
        unit="steps of the engine",
        claim=RSD,
    )


def drafted(engine: Engine, wanted: list[Request], controller: Speculation) -> Outcome:
    """Run requests one by one under a controller; observed is the number of steps."""
    before, steps = engine.speculation, engine.scheduler.steps
    engine.speculation = controller
    try:
        outcome = run(engine, wanted, at_once=1)
    finally:
        engine.speculation = before
    return replace(outcome, observed=float(engine.scheduler.steps - steps))


@evidence(
    "drafter",
    "draft_model-acceptance",
    "Drafts that end by their chance of being rejected, against the best fixed length.",
)
def acceptance(bench: Bench) -> Row:
    """Chains, greedy. The best fixed length is the one whose steps and drafted tokens would take
    the least time if a step of the draft model took a tenth of the target's."""
    engine = bench.engine()
    prompts = items(bench, engine, "edit")
    wanted = requests(prompts, [greedy(ANSWERED)] * len(prompts))
    setting = {"method": "draft_model", "model": "lab-drafter", "adaptive": False, "branches": 1}

    def controller(**more: object) -> Speculation:
        return engine.make_speculation(parse({**setting, **more}))

    fixed = {}
    for length in LENGTHS:
        own = controller(num_speculative_tokens=length)
        outcome = drafted(engine, wanted, own)
        cost = outcome.observed + DRAFT_SHARE * own.counters.tokens
        fixed[length] = (cost, outcome.observed)
    best = min(fixed, key=lambda length: fixed[length])
    always, ending = controller(num_speculative_tokens=best), controller(rejection_threshold=STOP)
    drafted(engine, wanted, ending)  # so that it knows what is accepted
    steps = drafted(engine, wanted, ending).observed
    return bench.compare(
        "drafter",
        "draft_model-acceptance",
        lambda: discarding(engine, wanted, always),
        lambda: discarding(engine, wanted, ending),
        lambda outcome: outcome.observed,
        exact=True,
        what=(
            f"{PROMPTS} edits of code, {ANSWERED} tokens each; always {best} drafted tokens, which "
            f"take {fixed[best][1]:.0f} steps, against drafts that end where the chance of a "
            f"rejection exceeds {STOP}, which take {steps:.0f}"
        ),
        unit="drafted tokens that were discarded",
        claim=SPECDEC,
    )


def discarding(engine: Engine, wanted: list[Request], controller: Speculation) -> Outcome:
    """Run requests one by one; observed is how many drafted tokens were discarded."""
    counters = controller.counters
    before = counters.tokens - counters.accepted
    outcome = drafted(engine, wanted, controller)
    return replace(outcome, observed=float(counters.tokens - counters.accepted - before))


class Uncalibrated(DraftModel):
    """What was drafted and then said stays as groups of layers left it."""

    def open(self, salt: str) -> ModelStream:
        return ModelStream(self.model)


@evidence(
    "drafter",
    "draft_model-layer-parallel",
    "Two layers of a draft model at a time from the same input, against one after the other.",
)
def layer_parallel(bench: Bench) -> Row:
    """The built-in model drafts for itself: its drafter has too few layers to show anything."""
    engine = bench.engine()
    prompts = programs(bench, engine)
    params = [greedy(ANSWERED, temperature=1.0, seed=number) for number in range(len(prompts))]
    wanted = requests(prompts, params)
    setting = {"method": "draft_model", "model": bench.config.model, "adaptive": False}
    exact, *groups = (
        parse({**setting, "branches": 1, "num_speculative_tokens": BUDGET, "layer_parallel": size})
        for size in (1, 2, 4)
    )
    alone, pairs = engine.make_speculation(exact), engine.make_speculation(groups[0])
    told = []
    for config in groups:
        both = [engine.make_speculation(config)]
        both.append(
            engine.make_speculation(config, [Uncalibrated(DraftModelOptions(**config.options))])
        )
        steps = [f"{drafted(engine, wanted, each).observed:.0f}" for each in both]
        told.append(
            f"{config.options['layer_parallel']} layers: {steps[0]}, uncalibrated {steps[1]}"
        )
    return bench.compare(
        "drafter",
        "draft_model-layer-parallel",
        lambda: drafted(engine, wanted, alone),
        lambda: drafted(engine, wanted, pairs),
        lambda outcome: outcome.observed,
        exact=True,
        what=(
            f"{len(prompts)} programs gone on with at temperature 1, {ANSWERED} tokens each, chains"
            f" of {BUDGET} that the model drafts for itself; steps, {'; '.join(told)}"
        ),
        unit="steps of the engine",
        claim=EASYSPEC,
    )


def programs(bench: Bench, engine: Engine) -> list[list[int]]:
    """Beginnings of programs that no training read; where there is no tokenizer, other prompts."""
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [256] * PROMPTS)
    encode = engine.tokenizer.encode
    passages = held_out()["code"][:PROMPTS]
    return [encode(text[: len(text) // 3], add_special_tokens=False)[-256:] for text in passages]
