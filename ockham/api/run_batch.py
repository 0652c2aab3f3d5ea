"""Runs a file of requests through the server's own routes, without a socket.

So a line is checked, answered and refused exactly as the same body sent to `ockham serve`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping

import msgspec
from starlette.types import ASGIApp

from ockham.api.async_llm import AsyncLLM
from ockham.api.batch_file import BatchInput, BatchOutput
from ockham.api.batch_lines import answer
from ockham.api.server.adapters import check_modules
from ockham.api.server.app import build_app
from ockham.api.server.gate import Gate
from ockham.api.server.metrics import Metrics
from ockham.api.server.settings import ServerSettings
from ockham.core.config import EngineConfig
from ockham.core.ledger import Ledger
from ockham.model.hub import served_names

AHEAD = 4
"""Requests under way for each sequence that may run, so that those that wait can be ordered."""
LONGEST_S = 24 * 3600.0


class Progress(msgspec.Struct):
    """How far a run is. `failed` of all that have a result, earlier ones too, have an error."""

    requests: int
    before: int
    """Finished by an earlier run."""
    finished: int = 0
    failed: int = 0
    ledger: Ledger = msgspec.field(default_factory=Ledger)


class _Usage(msgspec.Struct):
    ockham: Ledger | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


async def run_batch(
    config: EngineConfig,
    given: BatchInput,
    output: BatchOutput,
    names: tuple[str, ...] = (),
    tell: Callable[[Progress], None] = lambda progress: None,
    adapters: Mapping[str, str] | None = None,
) -> Progress:
    """Run every request of `given` that `output` has no result for; `tell` is called after each.

    `names` are those that requests may call the model by, `adapters` the directories of the
    adapters that they may name instead. Raises ModelError if the model cannot be
    loaded, OckhamError if the output cannot be written.
    """
    done = output.done
    progress = Progress(requests=len(given), before=len(done), failed=done.failed)
    seats = AHEAD * config.max_num_seqs
    settings = ServerSettings(
        served_model_names=names,
        adapters=dict(adapters or {}),
        max_body_bytes=1 << 30,
        max_queue=1 << 30,
        request_timeout_s=LONGEST_S,
        access_log=False,
    )
    async with AsyncLLM.from_config(config) as llm:
        await check_modules(llm, settings.adapters, names or served_names(config.model))
        gate = Gate(config.max_num_seqs, settings.max_queue)
        app = build_app(llm, settings, gate, Metrics((names or served_names(config.model))[0]))
        lines = given.lines(done)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(seats, len(given))):
                    group.create_task(_work(app, llm.recovered, lines, output, progress, tell))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return progress


async def _work(
    app: ASGIApp,
    recovered: Callable[[], Awaitable[None]],
    lines: Iterator[tuple[int, bytes]],
    output: BatchOutput,
    progress: Progress,
    tell: Callable[[Progress], None],
) -> None:
    """One request after another, until there are no more."""
    for number, line in lines:
        result = await answer(app, recovered, number, line)
        output.write(result)
        progress.finished += 1
        progress.failed += result.error is not None
        if result.response is not None and result.error is None:
            usage = msgspec.json.decode(result.response.body, type=_Body).usage
            if usage is not None and usage.ockham is not None:
                progress.ledger.add(usage.ockham)
        tell(progress)
