"""How much memory a model is to get: `python -m ockham.engine.survey` plans it from its headers.

A process of its own, since the files are anybody's and may have to be downloaded first. It reads a
`Question` as JSON from stdin and writes a `Survey` to stdout.
"""

from __future__ import annotations

import sys

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import DoesNotFit, OckhamError
from ockham.core.parent import die_with_parent
from ockham.core.units import readable
from ockham.engine.messages import Question, Survey
from ockham.engine.pooling import Pooler
from ockham.model.loading import PlannedModel, plan_model
from ockham.model.memory import least_bytes, outside_bytes

LEAST_CONTEXT = 8192
"""Tokens of context for which a model gets more than its equal share, if it needs it."""


def survey(question: Question) -> Survey:
    """The share of a model: an equal one, or less if it cannot use as much, or more if it needs
    that to serve one sequence of `LEAST_CONTEXT` tokens (of `max_model_len`, where that is set). A
    setting of `memory_bytes` is taken as it is.

    Raises `ModelError`, also `DoesNotFit` if all that there is would not do.
    """
    config, most = question.config, question.most_bytes
    if config.memory_bytes is not None:
        if config.memory_bytes > most:
            raise DoesNotFit(
                f"memory_bytes is {readable(config.memory_bytes)}, and there are {readable(most)} "
                "for all models, without what their processes take."
            )
        return _planned(config, config.memory_bytes)
    with_all = _planned(config, most)
    if with_all.memory_bytes <= question.share_bytes:
        return with_all
    try:
        shared = _planned(config, question.share_bytes)
        if shared.max_model_len >= min(with_all.max_model_len, LEAST_CONTEXT):
            return shared
    except DoesNotFit:
        pass
    wanted = min(with_all.max_model_len, config.max_model_len or LEAST_CONTEXT)
    return _planned(config, min(most, _least(config, most, wanted)))


def _planned(config: EngineConfig, nbytes: int) -> Survey:
    planned = plan_model(msgspec.structs.replace(config, memory_bytes=nbytes), available=nbytes)
    planned.source.close()
    plan = planned.plan
    state = max(plan.state_bytes, config.kv_cache_memory_bytes or 0)
    used = plan.weights_bytes + plan.workspace_bytes + outside_bytes(config, planned.program)
    return Survey(
        memory_bytes=used + state, max_model_len=plan.max_model_len, tasks=tasks_of(planned)
    )


def tasks_of(planned: PlannedModel) -> tuple[str, ...]:
    """What requests may ask of a model."""
    description = planned.description
    if description.pooling is None:
        return ("generate",)
    return Pooler(description.pooling, planned.program.pooled, description.hidden_size).tasks


def _least(config: EngineConfig, most: int, tokens: int) -> int:
    planned: PlannedModel = plan_model(config, available=most)
    planned.source.close()
    return least_bytes(
        config,
        planned.description,
        planned.program,
        planned.measured.bytes,
        planned.state_dtype,
        tokens,
    )


def main() -> None:
    die_with_parent()
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    try:
        found = survey(question)
    except OckhamError as error:
        found = Survey(error=str(error), fits=not isinstance(error, DoesNotFit))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
