"""Several models in one server: each is loaded when a request names it, and let go again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Scope

from ockham.api.server.caller import caller_of
from ockham.api.server.chat_facts import ChatFacts
from ockham.api.server.engines import Engine, Engines
from ockham.api.server.errors import HttpError
from ockham.api.server.gate import Gate
from ockham.api.server.house import (
    DOES,
    EMBED,
    GENERATE,
    NO_NAMES,
    Shown,
    check_does,
    chosen_by,
    hold,
    no_such_model,
)
from ockham.api.server.residence import Residence
from ockham.api.server.resident import Resident
from ockham.api.server.serving import Serving
from ockham.api.server.settings import ServerSettings
from ockham.api.server.specs import ModelSpec
from ockham.api.server.sse import unless_disconnected
from ockham.api.server.wire import now_s
from ockham.core.errors import InvalidRequest, OckhamError, RequestTimeout

CLIENT_GONE = 499
RECOVERY_S = 1.0
"""After which a batch sends a request again whose engine died."""


class ManyModels:
    """Implements `ockham.api.server.house.Models`.

    Each model has places of its own, so that who fills the queue of one keeps nobody from another.
    A request that waits for its model to be loaded holds one of that model's places.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        engines: Engines,
        residence: Residence[Engine],
        settings: ServerSettings,
        *,
        patient: bool = False,
    ) -> None:
        """`patient`: these requests make nobody leave a model (see `Residence.enter`)."""
        self._specs, self._engines, self._residence = specs, engines, residence
        self._settings = settings
        self._patient = patient
        self._gates = {
            spec.name: Gate(spec.config.max_num_seqs, settings.max_queue) for spec in specs
        }
        self._created_s = now_s()

    @property
    def names(self) -> Sequence[str]:
        own = [name for spec in self._specs for name in spec.names]
        return (*own, *(name for spec in self._specs for name in spec.adapters))

    @property
    def requests(self) -> int:
        return sum(gate.requests for gate in self._gates.values())

    @property
    def closed(self) -> bool:
        return any(gate.closed for gate in self._gates.values())

    async def take(self, http: Request, name: str | None, tasks: Sequence[str]) -> Serving:
        spec = self._spec(name, tasks)
        if (name is None or name in NO_NAMES) and tasks and not set(tasks) & set(self._tasks(spec)):
            spec = await self._found_for(tasks, spec)
        check_does(tasks, self._tasks(spec), spec.name)
        resident = self._residence.enter_now(spec.name)
        if resident is None:
            with self._gates[spec.name].admit(1, caller_of(http).tenant(None, None)):
                if tasks:
                    check_does(tasks, await self._engines.find_tasks(spec.name), spec.name)
                resident = await self._entered(http, spec)
        hold(http.scope, functools.partial(self._residence.leave, resident))
        return self._serving(spec, resident.value)

    async def _entered(self, http: Request, spec: ModelSpec) -> Resident[Engine]:
        entering = self._residence.enter(spec.name, patient=self._patient)
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                found = await unless_disconnected(http.receive, entering)
        except TimeoutError as error:
            raise RequestTimeout(
                f"{spec.name} could not be loaded within {limit_s:g} s, as others used the memory; "
                "try again later, or start the server with a longer --request-timeout."
            ) from error
        if found is None:
            raise HttpError(CLIENT_GONE, "The client went away while its model was being loaded.")
        return found

    def _serving(self, spec: ModelSpec, engine: Engine) -> Serving:
        found = engine.servings.get(self)
        if found is None:
            gate, adapters = self._gates[spec.name], spec.adapters
            found = engine.servings[self] = Serving(
                engine.llm, spec.names, self._settings, gate, adapters, engine.kept
            )
        return found

    def _spec(self, name: str | None, tasks: Sequence[str] = ()) -> ModelSpec:
        """The model of a name, or where none is named, the one for such tasks."""
        if name is None or name in NO_NAMES:
            return self._default(set(tasks or (GENERATE,)))
        for spec in self._specs:
            if name in spec.names or name in spec.adapters:
                return spec
        raise no_such_model(name, self.names)

    def _default(self, wanted: set[str]) -> ModelSpec:
        """The first model that is there for one of the tasks: by its settings, else by what it was
        found to be. A model of which nothing is known is taken to generate."""
        if GENERATE in wanted:
            may = [spec for spec in self._specs if spec.may_generate]
            found = (s for s in may if GENERATE in (self._tasks(s) or (GENERATE,)))
        else:
            by_settings = [spec for spec in self._specs if wanted & set(spec.tasks)]
            found = (s for s in by_settings or self._specs if wanted & set(self._tasks(s)))
        return next(found, self._specs[0])

    def _tasks(self, spec: ModelSpec) -> tuple[str, ...]:
        """What a model is there for, as far as that is known."""
        return self._engines.tasks(spec.name)

    async def _found_for(self, tasks: Sequence[str], default: ModelSpec) -> ModelSpec:
        """The first model that does one of the tasks, for a request that names none, where only
        checkpoints tell. If none of them can be looked at, the `default`: it is said what is wrong
        with it. Raises InvalidRequest if there is no such model."""
        looked = False
        for spec in self._specs:
            found = await self._engines.find_tasks(spec.name)
            if set(tasks) & set(found):
                return spec
            looked = looked or bool(found)
        if not looked:
            return default
        how = " (--embedding MODEL)" if EMBED in tasks else ""
        raise InvalidRequest(
            f"None of the models here {DOES[tasks[0]]}; start the server with one that does{how}.",
            "model",
        )

    def there(self, name: str | None) -> Serving:
        spec = self._spec(name)
        resident = self._residence.resident(spec.name)
        if resident is None:
            raise InvalidRequest(
                f"{spec.name} is not loaded, so that it holds nothing in memory.", "model"
            )
        return self._serving(spec, resident.value)

    def shown(self) -> list[Shown]:
        return [self._shown(spec) for spec in self._specs]

    def _shown(self, spec: ModelSpec) -> Shown:
        residence, name = self._residence, spec.name
        left_s = residence.expires_in_s(name)
        return Shown(
            names=spec.names,
            adapters=spec.adapters,
            config=spec.config,
            created_s=self._created_s,
            tasks=self._tasks(spec),
            ready=self._engines.ready.get(name),
            chat=lambda: self._engines.chat.get(name, ChatFacts()),
            state=residence.state(name),
            failed=residence.failed(name),
            nbytes=residence.nbytes(name),
            expires_s=None if left_s is None else time.time() + left_s,
            managed=True,
        )

    async def preload(self, spec: ModelSpec) -> None:
        """Load a model before anybody asks for it. What keeps it from being loaded is logged."""
        with contextlib.suppress(OckhamError):
            self._residence.leave(await self._residence.enter(spec.name))

    def unload(self, name: str) -> str:
        return self._residence.unload(self._spec(name).name)

    def stay(self, scope: Scope, seconds: float) -> None:
        chosen = chosen_by(scope)
        if chosen is not None:
            self._residence.stay(chosen.names[0], seconds)

    def name_of(self, scope: Scope) -> str:
        """One that reached no model counts as the first model's."""
        chosen = chosen_by(scope)
        return self._specs[0].name if chosen is None else chosen.names[0]

    def drafters(self, scope: Scope) -> Sequence[str]:
        chosen = chosen_by(scope)
        return () if chosen is None else chosen.llm.ready.drafters

    def answered(self, scope: Scope, route: str, status: int) -> None:
        self._engines.metrics[self.name_of(scope)].answered(route, status)

    def trouble(self) -> str | None:
        for spec in self._specs:
            resident = self._residence.resident(spec.name)
            said = None if resident is None else resident.value.llm.client.trouble()
            if said is not None:
                return f"{spec.name}: {said}"
        return None

    def close(self) -> None:
        for gate in self._gates.values():
            gate.close()
        self._residence.close()

    async def quiet(self) -> None:
        while self.requests:
            for gate in self._gates.values():
                await gate.quiet()

    async def drained(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self.quiet(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def shutdown(self) -> None:
        await self._residence.shutdown()

    async def recovered(self) -> None:
        if self._residence.closed:
            await asyncio.Event().wait()  # the batch goes on when the server is started again
        await asyncio.sleep(RECOVERY_S)
