"""A server's only model, which is loaded before the first request and stays."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Scope

from ockham.api.async_llm import AsyncLLM
from ockham.api.server.chat_facts import chat_facts
from ockham.api.server.gate import Gate
from ockham.api.server.house import Shown
from ockham.api.server.kept import KeptPrefixes
from ockham.api.server.metrics import Metrics
from ockham.api.server.serving import Serving
from ockham.api.server.settings import ServerSettings
from ockham.api.server.wire import now_s
from ockham.core.errors import InvalidRequest
from ockham.model.hub import served_names


class OneModel:
    """Implements `ockham.api.server.house.Models`."""

    def __init__(
        self, llm: AsyncLLM, settings: ServerSettings, gate: Gate, metrics: Metrics
    ) -> None:
        """`llm` has been started."""
        self._llm, self._gate, self._metrics = llm, gate, metrics
        names = settings.served_model_names or served_names(llm.config.model)
        adapters = dict(settings.adapters)
        self._serving = Serving(llm, names, settings, gate, adapters, KeptPrefixes(llm))
        self._created_s = now_s()

    @property
    def names(self) -> Sequence[str]:
        return (*self._serving.names, *self._serving.adapters)

    @property
    def requests(self) -> int:
        return self._gate.requests

    @property
    def closed(self) -> bool:
        return self._gate.closed

    async def take(self, http: Request, name: str | None, tasks: Sequence[str]) -> Serving:
        self._serving.check_model(name)
        return self._serving

    def there(self, name: str | None) -> Serving:
        self._serving.check_model(name)
        return self._serving

    def shown(self) -> list[Shown]:
        return [
            Shown(
                names=self._serving.names,
                adapters=self._serving.adapters,
                config=self._llm.config,
                created_s=self._created_s,
                tasks=self._llm.ready.tasks,
                ready=self._llm.ready,
                chat=lambda: chat_facts(self._llm.tokenizer),
            )
        ]

    def unload(self, name: str) -> str:
        self._serving.check_model(name)
        raise InvalidRequest(
            "This server has one model, which stays as long as the server runs; stop the server, "
            "or start it with a table of models (--models).",
            "model",
        )

    def stay(self, scope: Scope, seconds: float) -> None:
        """Changes nothing: the model stays."""

    def name_of(self, scope: Scope) -> str:
        return self._serving.names[0]

    def drafters(self, scope: Scope) -> Sequence[str]:
        return self._llm.ready.drafters

    def answered(self, scope: Scope, route: str, status: int) -> None:
        self._metrics.answered(route, status)

    def trouble(self) -> str | None:
        return self._llm.client.trouble()

    def close(self) -> None:
        self._gate.close()

    async def quiet(self) -> None:
        await self._gate.quiet()

    async def drained(self, timeout_s: float) -> bool:
        return await self._gate.drained(timeout_s)

    async def shutdown(self) -> None:
        await self._llm.shutdown()

    async def recovered(self) -> None:
        await self._llm.recovered()
