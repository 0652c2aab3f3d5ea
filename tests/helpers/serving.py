"""An engine in this process, requests for it, and what it says to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ockham.core.config import EngineConfig
from ockham.core.ledger import Ledger
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    """Without a tokenizer, for sequences of 256 tokens unless `settings` say otherwise."""
    values = {"skip_tokenizer_init": True, "max_model_len": 256, **settings}
    return Engine(EngineConfig(model=str(checkpoint), **values))


def ask(
    name: str,
    prompt: list[int],
    salt: str = "",
    asks: dict[str, Any] | None = None,
    **params: Any,
) -> Request:
    """A greedy request for 20 tokens unless `params` say otherwise."""
    values = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **params}
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**values),
        detokenize=False,
        cache_salt=salt,
        asks=asks or {},
    )


def drain(engine: Engine, most_steps: int = 5000) -> list[Delta]:
    """Step the engine until it has no work; what it said. Every page must be back."""
    deltas: list[Delta] = []
    for _ in range(most_steps):
        if not engine.has_work:
            engine.check_integrity()
            assert engine.stats().pages_used == 0
            return deltas
        deltas += engine.step()
        engine.check_integrity()
    raise AssertionError(f"the engine did not finish in {most_steps} steps")


def tokens_of(deltas: list[Delta]) -> dict[tuple[str, int], list[int]]:
    """(request, choice) -> its tokens."""
    out: dict[tuple[str, int], list[int]] = {}
    for delta in deltas:
        out.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
    return out


def complete(engine: Engine, requests: Iterable[Request]) -> dict[tuple[str, int], list[int]]:
    """(request, choice) -> its tokens, of requests that are served together."""
    for request in requests:
        engine.add(request)
    return tokens_of(drain(engine))


class Said(NamedTuple):
    """What a request's first choice said."""

    tokens: list[int]
    logprobs: list[Any]


def serve(engine: Engine, requests: list[Request]) -> dict[str, tuple[Said, Ledger]]:
    """Request -> what its first choice said, and its bill, of requests that are served together."""
    for request in requests:
        engine.add(request)
    said = {request.request_id: Said([], []) for request in requests}
    bills: dict[str, Ledger] = {}
    for delta in drain(engine):
        if delta.index == 0:
            said[delta.request_id].tokens.extend(delta.token_ids)
            said[delta.request_id].logprobs.extend(delta.logprobs or [])
        if delta.ledger is not None:
            bills[delta.request_id] = delta.ledger
    return {name: (said[name], bills[name]) for name in said}
