"""The parts of one HTTP request, each a text or a pair: read, let in, run, and billed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from starlette.requests import Request

from ockham.api.pooling import naming_text, pooling_request
from ockham.api.prompts import Encoded, Prompt
from ockham.api.server.caller import caller_of
from ockham.api.server.pooled.request import PooledBody
from ockham.api.server.serving import METERED, body_bytes, engine_name, serving
from ockham.api.server.sse import unless_disconnected
from ockham.api.server.wire import Usage, UsageMeter
from ockham.core.errors import RequestTimeout
from ockham.core.outputs import PooledRequestOutput
from ockham.core.pooling import PoolingParams
from ockham.engine.messages import Request as EngineRequest

T = TypeVar("T")

AT_ONCE = 512
"""Parts of a request that the engine has at a time. That fills its steps with the shortest texts,
and leaves the queue to others, however many parts there are."""


class Parts:
    """The parts of a request: texts that were read, and what is made of each."""

    def __init__(
        self,
        http: Request,
        body: PooledBody,
        params: PoolingParams,
        reads: Sequence[Encoded],
        name: str,
    ) -> None:
        """`name` is the field that the texts came in. Called in a thread where there are many."""
        caller, engine = caller_of(http), engine_name(http)
        self._http, self._name = http, name
        self._server = serving(http)
        self._tenant = caller.tenant(body.cache_salt, body.user)
        self._requests: list[EngineRequest] = [
            pooling_request(
                read,
                params,
                f"{engine}.{index}",
                cache_salt=caller.salt(body.cache_salt),
                tenant=self._tenant,
                priority=body.priority or 0,
            )
            for index, read in enumerate(reads)
        ]
        self._meter = UsageMeter([read.token_ids for read in reads])

    def usage(self) -> Usage:
        """What all of it took."""
        return self._meter.usage(final=True)

    async def outputs(self) -> list[PooledRequestOutput] | None:
        """What was made of each part, in their order; None if the caller has gone away. Raises
        `Overloaded`, `RequestTimeout`, or what the engine refuses a part with."""
        self._http.scope[METERED] = self._meter
        found = await unless_disconnected(self._http.receive, self._run())
        for output in found or ():
            self._meter.course.add_pooled(output.ledger)
        return found

    async def _run(self) -> list[PooledRequestOutput]:
        server, requests = self._server, self._requests
        found: dict[int, PooledRequestOutput] = {}
        numbers = iter(range(len(requests)))

        async def work() -> None:
            for number in numbers:
                with naming_text(self._name, number, len(requests)):
                    found[number] = await server.llm.pool(requests[number])

        at_once = min(len(requests), AT_ONCE, server.gate.most)
        timeout_s = server.settings.request_timeout_s
        with server.gate.admit(at_once, self._tenant, requests):
            try:
                async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(work())
                        await asyncio.sleep(0)  # others have their turn between two parts
            except TimeoutError as error:
                raise RequestTimeout(
                    f"The request did not finish within {timeout_s:g} s and was given up; send "
                    "fewer texts, or start the server with a longer --request-timeout."
                ) from error
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from errors
        return [found[number] for number in range(len(requests))]


async def read_parts(
    http: Request,
    body: PooledBody,
    params: PoolingParams,
    texts: Callable[[], Sequence[Prompt]],
    name: str,
    **how: Any,
) -> Parts:
    """The parts for texts, read as the keywords of `TextReader.read` say; `name` is the field that
    they came in. Raises
    `InvalidRequest` that names the text, also for one that is too long, and what the gate refuses
    with. Nothing has been computed yet."""
    server = serving(http)
    server.gate.check(1, caller_of(http).tenant(body.cache_salt, body.user))

    def work() -> Parts:
        given = texts()

        def naming(index: int) -> AbstractContextManager[None]:
            return naming_text(name, index, len(given))

        reads = server.llm.texts.read_all(given, naming, **how)
        return Parts(http, body, params, reads, name)

    return await server.llm.in_thread(body_bytes(http), work)
