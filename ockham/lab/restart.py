"""What a prompt costs after a restart, when its state is read from disk instead of computed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, OckhamError
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.statistics import Interval, paired_ratio

WARM_HITS = 5
"""Warm hits of a round, of which the median counts."""
READ_BYTES = 4 << 20


@dataclass(slots=True)
class Restart:
    """Seconds to the first token, round by round. `pages` were read, `nbytes` in all, of which the
    disk alone gives `disk_bytes_per_s`."""

    prompt_tokens: int
    computed_s: float = 0.0
    pages: int = 0
    nbytes: int = 0
    warm_s: list[float] = field(default_factory=list)
    """Again, from the pool."""
    cold_s: list[float] = field(default_factory=list)
    """After a restart; the system has nothing of the files in memory."""
    cached_s: list[float] = field(default_factory=list)
    """After a restart of the engine alone: the system still has the files in memory."""
    disk_bytes_per_s: list[float] = field(default_factory=list)
    cached_bytes_per_s: list[float] = field(default_factory=list)

    def ratio(self, seconds: list[float], rates: list[float]) -> tuple[float, Interval | None]:
        """`seconds` beside a warm hit and the time that its bytes take at these rates."""
        least = [w + self.nbytes / r for w, r in zip(self.warm_s, rates, strict=True)]
        return paired_ratio(seconds, least)


def measure_restart(
    config: EngineConfig, directory: Path, prompt_tokens: int, rounds: int
) -> Restart:
    """Start an engine again and again on a store in `directory`, which is made for it.

    Every engine answers a short prompt first. Raises ConfigError for a prompt that does not fit.
    """
    config = msgspec.structs.replace(config, kv_store=str(directory))
    rng = Random(f"restart {config.seed}")
    result = Restart(prompt_tokens)
    with _engine(config) as engine:
        if prompt_tokens >= engine.max_model_len:
            raise ConfigError(
                f"a prompt of {prompt_tokens} tokens does not fit a context of "
                f"{engine.max_model_len}; lower --input-len."
            )
        prompt = [rng.randrange(engine.vocabulary) for _ in range(prompt_tokens)]
        result.computed_s = _first_token_s(engine, prompt)
        tiers = engine.tiers
        if tiers is None or tiers.disk is None:
            raise ConfigError(f"the store in {directory} cannot be used; name another --directory.")
        result.pages = prompt_tokens // engine.state.page_tokens
        rows = result.pages + tiers.identity.checkpoint_parts
        result.nbytes = rows * tiers.disk.slot_bytes
    (pages,) = directory.glob("*/pages")
    for _ in range(rounds):
        _drop(pages)
        result.disk_bytes_per_s.append(_read_rate(pages, result.nbytes))
        result.cached_bytes_per_s.append(_read_rate(pages, result.nbytes))
        with _engine(config) as engine:
            result.cached_s.append(_first_token_s(engine, prompt))
            if engine.stats().tiers.fetched != result.pages:
                raise OckhamError("the prompt was not read back from the store.")
            warm = [_first_token_s(engine, prompt) for _ in range(WARM_HITS)]
            result.warm_s.append(median(warm))
        _drop(pages)
        with _engine(config) as engine:
            result.cold_s.append(_first_token_s(engine, prompt))
    return result


@contextmanager
def _engine(config: EngineConfig) -> Iterator[Engine]:
    engine = Engine(config)
    try:
        _first_token_s(engine, [1, 2, 3, 4, 5])
        yield engine
    finally:
        engine.close()


def _first_token_s(engine: Engine, prompt: list[int]) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    request = Request(
        request_id="restart", prompt_token_ids=prompt, params=params, detokenize=False
    )
    begin = time.perf_counter()
    engine.add(request)
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begin


def _drop(path: Path) -> None:
    """Let the system forget what it has of a file in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read_rate(path: Path, nbytes: int) -> float:
    """Bytes per second of reading the first `nbytes` of a file in their order, and nothing else."""
    descriptor = os.open(path, os.O_RDONLY)
    buffer = bytearray(READ_BYTES)
    done, begin = 0, time.perf_counter()
    while done < nbytes:
        got = os.preadv(descriptor, [memoryview(buffer)[: nbytes - done]], done)
        if not got:
            break
        done += got
    seconds = time.perf_counter() - begin
    os.close(descriptor)
    return done / seconds
