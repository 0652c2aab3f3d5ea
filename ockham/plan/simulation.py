"""How a workload would go on an engine: the real engine over a backend that computes nothing.

Scheduling, admission, reuse, preemption, drafting and searches are the engine's own, so that
queueing, batching and what is reused are predicted and not only steps. The backend reads each step
that the engine builds, moves a virtual clock on by the seconds that it is predicted to take, and
answers with the tokens of recorded answers. No weight is read, and no state takes memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.rates import Rates
from ockham.core.registry import find, name_of
from ockham.core.seams import Drafter
from ockham.engine.engine import Engine
from ockham.kernels.backends import find_backend
from ockham.kernels.cores import allowed_cores
from ockham.lab.calibrate import calibrate
from ockham.lab.kernels.limits import Limits
from ockham.lab.workloads import Request
from ockham.lab.workloads.prompts import token_prompts
from ockham.model.loading import LoadedModel, load_model, plan_model
from ockham.plan.clock import VirtualClock
from ockham.plan.executor import PredictedBackend
from ockham.plan.playing import Played, play, streams_of
from ockham.text.tokenizer import load_tokenizer

Prompted = Sequence[tuple[Request, Sequence[int]]]
"""Requests of a workload, each with the tokens of its prompt."""


OUTSIDE = (
    "kv_store",
    "swap_space",
    "pins",
    "companions",
    "rewards",
    "checkers",
    "run_programs",
)
"""Settings by which something happens in files, programs, other threads or other models."""


def prompted(config: EngineConfig, requests: Sequence[Request]) -> Prompted:
    """Requests with their prompts as a model's tokenizer makes them. Chats go on with the recorded
    answers. Raises ConfigError for text where the model has no tokenizer."""
    planned = plan_model(config)
    planned.source.close()
    tokenizer = load_tokenizer(config, planned.directory, planned.metadata)
    try:
        return list(token_prompts(requests, tokenizer))
    finally:
        if tokenizer is not None:
            tokenizer.close()


def recorded_answers(config: EngineConfig, requests: Sequence[Request]) -> dict[str, list[int]]:
    """The recorded answers of a workload, by the ids of its requests, as tokens."""
    planned = plan_model(config)
    planned.source.close()
    tokenizer = load_tokenizer(config, planned.directory, planned.metadata)
    if tokenizer is None:
        return {}
    try:
        return {
            request.id: tokenizer.encode(request.answer)
            for request in requests
            if request.answer is not None
        }
    finally:
        tokenizer.close()


def measured_rates(config: EngineConfig) -> Rates:
    """The rates of this machine, now, for the model and the formats of a configuration. Takes some
    seconds. Raises ConfigError where the compiled kernels are missing."""
    limits = Limits(config.threads or allowed_cores())
    loaded = load_model(config)
    return calibrate(loaded.program, loaded.state_dtype, limits)


def simulate(
    config: EngineConfig,
    requests: Prompted,
    *,
    rates: Rates | None = None,
    rate: float | None = None,
    seed: int = 0,
    pauses: bool = True,
    answers: Mapping[str, Sequence[int]] | None = None,
    before: Prompted = (),
    watts: float | None = None,
    available_bytes: int | None = None,
    factor: float = 1.0,
) -> Played:
    """Predict how an engine of this configuration would answer a workload.

    `rates` are those of the machine, measured here if they are not given. `rate` and `seed` say
    when sessions begin (`lab.workloads.arrival_times`), `pauses` whether they wait
    between their requests. `answers` are the tokens of the answers by
    request, from which drafts are accepted; what is missing is made up, and no draft of it is.
    What was answered `before` may be reused.
    `watts` is the power that the machine takes, for a figure of energy; `available_bytes` is its
    memory, by default what is free here. Scheduling and bookkeeping are done for real and timed,
    times `factor`, which is more than 1 for a machine whose cores are slower. With a factor of 0
    they take what the rates say, and a simulation of the same seed gives the same figures each
    time.

    Raises ConfigError for what cannot be simulated: drafters that read the model's own states,
    stores on disk, and rates that lack a format of the model.
    """
    _check(config)
    rates = measured_rates(config) if rates is None else rates
    clock = VirtualClock(factor, rates.cold)
    streams: dict[int, list[int]] = {}
    engine = Engine(
        config, clock=clock, load=_without_weights(rates, clock, streams, available_bytes)
    )
    try:
        _check_drafters(engine)
        _check_formats(engine, rates)
        if before:
            streams.update(streams_of(before, {}, engine.vocabulary))
            play(engine, before, clock, rate=math.inf)
        streams.update(streams_of(requests, answers or {}, engine.vocabulary))
        return play(engine, requests, clock, rate=rate, seed=seed, pauses=pauses, watts=watts)
    finally:
        engine.close()


def _without_weights(
    rates: Rates,
    clock: VirtualClock,
    streams: Mapping[int, Sequence[int]],
    available_bytes: int | None,
) -> Callable[[EngineConfig, Callable[[str], None] | None], LoadedModel]:
    """Loads models without their weights, for a backend that predicts."""

    def load(config: EngineConfig, progress: Callable[[str], None] | None) -> LoadedModel:
        planned = plan_model(config, available=available_bytes)
        planned.source.close()
        if planned.description.pooling is not None:
            raise ConfigError(
                f"{config.model} makes vectors or scores of texts; only models that generate text "
                "can be simulated."
            )
        backend = PredictedBackend(
            find_backend(config.backend, config.threads), rates, clock, streams
        )
        return LoadedModel(
            directory=planned.directory,
            description=planned.description,
            program=planned.program,
            backend=backend,
            weight_format=planned.weight_format,
            state_dtype=planned.state_dtype,
            weight_bytes=planned.plan.weights_bytes,
            parameters=planned.measured.parameters,
            plan=planned.plan,
            layouts=planned.plan.layouts(planned.description),
            numerics_id=backend.numerics(planned.format_names),
            eos_token_ids=planned.eos_token_ids,
            generation_config=planned.generation_config,
            sampling_defaults=planned.sampling_defaults,
            raw_config=planned.raw_config,
            metadata=planned.metadata,
        )

    return load


def _check(config: EngineConfig) -> None:
    for name in OUTSIDE:
        if getattr(config, name):
            raise ConfigError(
                f"{name} works beside the engine's steps, which a simulation leaves alone; leave "
                "it out, and measure what it is worth."
            )
    if not find("verifier", name_of(config.verifier)).exact:
        raise ConfigError(
            f"the verifier {name_of(config.verifier)!r} accepts drafts by the model's own "
            "probabilities, which a simulation does not know; leave it out, and measure what it is "
            "worth."
        )


def _check_drafters(engine: Engine) -> None:
    for drafter in engine.speculation.drafters:
        reads = type(drafter).attach_model is not Drafter.attach_model
        if drafter.observes or reads:
            raise ConfigError(
                f"the drafter {drafter.name!r} drafts by what the model itself computes, which a "
                "simulation does not know; leave it out, and measure what it is worth."
            )


def _check_formats(engine: Engine, rates: Rates) -> None:
    lacking = {each.format for each in engine.cost.products} - rates.products.keys()
    if lacking:
        raise ConfigError(
            f"the rates were measured without the weight format {sorted(lacking)[0]!r}; measure "
            "them with this configuration."
        )
