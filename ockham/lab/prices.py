"""What searches cost: predicted from their settings alone, and measured."""

from __future__ import annotations

import time
from random import Random
from typing import NamedTuple

import msgspec

from ockham.core.cost import StepCost
from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.price import Work, seconds_of_work, total_cost
from ockham.core.rates import Rates
from ockham.core.registry import find, name_of, read_options
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import SearchOptions
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.running import drive

COMMON = ("choices", "vote:samples=4", "vote:samples=16", "vote:samples=16:parallel=16", "beam")
NEVER = "(?:never said)"
"""An extractor under which no samples agree, so that none is spared."""


class Priced(NamedTuple):
    """Operations and bytes, and seconds."""

    cost: StepCost
    seconds: float


def works(spec: str, prompt: int, tokens: int, chunk: int) -> list[Work]:
    """The pieces of work of a search, given by its name and options. Raises ConfigError for one
    whose work does not follow from its settings."""
    technique = find("search", name_of(spec))
    options = read_options(technique, spec)
    if technique.exact:
        found = [Work(prompt, tokens)]
    elif isinstance(options, SearchOptions):
        found = list(options.works(prompt, tokens))
    else:
        raise ConfigError(
            f"what {technique.name} takes depends on what is said: it has no price beforehand."
        )
    return [Work(w.prompt, w.tokens, w.branches, chunk, w.held) for w in found]


def priced(engine: Engine, rates: Rates, spec: str, prompt: int, tokens: int) -> Priced:
    """What a search takes at most, predicted."""
    found = works(spec, prompt, tokens, engine.scheduler.most_rows)
    seconds = sum(seconds_of_work(engine.cost, rates, w, engine.vocabulary) for w in found)
    return Priced(total_cost(engine.cost, found), seconds)


def measured(engine: Engine, spec: str, prompt: int, tokens: int) -> Priced:
    """The same, run on a random prompt whose answers do not end by themselves."""
    technique, rng = find("search", name_of(spec)), Random(spec)
    asked: dict[str, object] = {}
    if not technique.exact:
        options = read_options(technique, spec)
        assert options is not None, "a search with branches has options"
        usual = msgspec.structs.asdict(type(options)())
        given = msgspec.structs.asdict(options)
        given = {name: value for name, value in given.items() if value != usual[name]}
        asked = {"search": {"method": technique.name, **given, "extract": NEVER}}
    params = SamplingParams(
        temperature=1.0,
        seed=0,
        max_tokens=tokens,
        ignore_eos=True,
        **asked,  # type: ignore[arg-type]
    )
    ids = [rng.randrange(engine.vocabulary) for _ in range(prompt)]
    outputs: list[RequestOutput] = []
    began = time.perf_counter()
    request = Request(
        request_id="price", prompt_token_ids=ids, params=params, cache_salt=str(rng.random())
    )
    drive(engine, [request], outputs.append)
    seconds, bill = time.perf_counter() - began, outputs[0].ledger
    return Priced(
        StepCost(bill.flops, bill.weight_bytes, bill.state_read_bytes, bill.state_written_bytes),
        seconds,
    )
