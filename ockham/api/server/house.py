"""A server as its routes see it: what they share, and the models among which requests choose.

What belongs to one model is a `Serving`. A request gets one when its body says which model it is
for (`choose`), and holds it until its answer is sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from ockham.api.server.errors import HttpError
from ockham.api.server.settings import ServerSettings
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

if TYPE_CHECKING:
    from ockham.api.server.batches.runner import Batches
    from ockham.api.server.chat_facts import ChatFacts
    from ockham.api.server.job import Job
    from ockham.api.server.serving import Serving
    from ockham.api.server.traces import Traces
    from ockham.core.config import EngineConfig
    from ockham.engine.messages import Ready

T = TypeVar("T")

GENERATE, EMBED = "generate", "embed"
"""Tasks that a model may be there for."""

NO_NAMES = ("", "dummy")
"""What clients send as the model where they were told of none: huggingface_hub says "dummy"."""
MOST_NAMED = 20
"""Models and adapters that are named to who names none of them."""

DOES = {
    GENERATE: "generates text",
    EMBED: "embeds texts",
    "token_embed": "embeds tokens",
    "classify": "classifies texts",
    "score": "scores pairs of texts",
}
"""What a model does that is made for a task."""
POOLED = tuple(task for task in DOES if task != GENERATE)
"""The tasks of models that give vectors or scores."""

_CHOSEN = "ockham.serving"
"""Where a request's scope holds the model that it is for."""
_RELEASE = "ockham.release"
"""Where it holds what lets go of that model."""


class Threads(Protocol):
    """Where large bodies are read. `AsyncLLM` has such threads, too."""

    def in_thread(self, size: int, work: Callable[[], T]) -> Awaitable[T]:
        """Do work on so many bytes: here if they are few, else in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What there is to say of a model, loaded or not.

    `tasks` are what it is there for; none where only its checkpoint says so and it was never
    loaded.
    `ready` is what its engine said of itself when it was loaded last, None before that; `chat` are
    facts of its chat template, known where `ready` is. `state` is "unloaded", "loading", "loaded"
    or "unloading", and `failed` why it could not be loaded the last time. `nbytes` is its share of
    the memory, None while that is not known. `expires_s` is when it is let go, in seconds of the
    epoch, None if that is not so while nothing else happens. `managed`: whether it is loaded and
    let go at all.
    """

    names: tuple[str, ...]
    adapters: dict[str, str]
    config: EngineConfig
    created_s: int
    tasks: tuple[str, ...]
    ready: Ready | None
    chat: Callable[[], ChatFacts]
    state: str = "loaded"
    failed: str | None = None
    nbytes: int | None = None
    expires_s: float | None = None
    managed: bool = False


class Models(Protocol):
    """The models of a server."""

    @property
    def names(self) -> Sequence[str]:
        """All names by which requests may call a model, those of adapters too. The first is the
        model of requests that name none."""

    @property
    def requests(self) -> int:
        """Requests that are being served."""

    async def take(self, http: Request, name: str | None, tasks: Sequence[str]) -> Serving:
        """The model of a name, which is loaded, and held until the request is answered. Raises
        `HttpError` 404 for a name that no model has, `InvalidRequest` if it is known to do none of
        `tasks`, of which there may be none, and what keeps the model from being loaded."""

    def there(self, name: str | None) -> Serving:
        """The model of a name, for who only looks: it is not held, and stays no longer for it.
        Raises `HttpError` 404 as `take` does, and `InvalidRequest` if it is not loaded."""

    def shown(self) -> list[Shown]:
        """What there is to say of each model."""

    def unload(self, name: str) -> str:
        """Let the model of a name go once its requests have been answered; the state that it is in
        now. Raises `InvalidRequest` if the model stays for good."""

    def stay(self, scope: Scope, seconds: float) -> None:
        """Have a request's model stay for so many seconds after the last request for it."""

    def name_of(self, scope: Scope) -> str:
        """The name, as answers have it, of the model that a request was for."""

    def drafters(self, scope: Scope) -> Sequence[str]:
        """The names under which the ledgers of a request's model have what was drafted."""

    def answered(self, scope: Scope, route: str, status: int) -> None:
        """Count a request that was answered, with the model that it was for."""

    def trouble(self) -> str | None:
        """What is wrong with an engine, as a sentence; None if nothing is."""

    @property
    def closed(self) -> bool:
        """Whether nobody is let in any more."""

    def close(self) -> None:
        """Let nobody in any more."""

    async def quiet(self) -> None:
        """Wait until nobody is being served."""

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nobody is being served; False if that took longer than `timeout_s`."""

    async def shutdown(self) -> None:
        """Stop all engines. Requests that still run fail with `EngineDead`."""

    async def recovered(self) -> None:
        """Wait until a request that failed because its engine died may be sent again."""


@dataclass(slots=True)
class House:
    """What the routes of a server share. Each app has one, as `app.state.house`."""

    settings: ServerSettings
    models: Models
    threads: Threads
    registry: Any
    """The `CollectorRegistry` of the server's metrics."""
    answering: dict[tuple[str, str], Job] = field(default_factory=dict)
    """The jobs that run, by their caller's name and the id in their answer."""
    batches: Batches | None = None
    """None where the server keeps none."""
    traces: Traces | None = None
    """None where the server sends none."""


def house(http: Request) -> House:
    """The server that got the request."""
    found: House = http.app.state.house
    return found


async def choose(http: Request, name: str | None, *tasks: str) -> Serving:
    """The model that a request names, loaded and held until the request is answered; later calls
    of the same request get the same. Raises `HttpError` 404 for a name that no model has,
    `InvalidRequest` for one that does none of `tasks`, and what keeps it from being loaded."""
    chosen = chosen_by(http.scope)
    if chosen is None:
        chosen = http.scope[_CHOSEN] = await house(http).models.take(http, name, tasks)
    chosen.check_model(name)
    if tasks:
        chosen.check_does(*tasks)
    return chosen


def check_does(wanted: Sequence[str], there: Sequence[str], name: str) -> None:
    """Raise InvalidRequest if a model, which does the tasks that are `there`, does none of those
    that are `wanted`, unless nothing in particular is. Of a model that was never loaded nothing may
    be there yet; then that is no fault."""
    if wanted and there and not set(wanted) & set(there):
        raise InvalidRequest(
            f"The model {name} {' and '.join(DOES[task] for task in there)}. What is asked needs "
            f"one that {DOES[wanted[0]]}; name a model that is made for it.",
            "model",
        )


def no_such_model(name: str, names: Sequence[str]) -> HttpError:
    """The error for a name that none of the models with these names has."""
    more = len(names) - MOST_NAMED
    rest = f" and {more} more" if more > 0 else ""
    return HttpError(
        404,
        f"There is no model {shown(name)} here; there is {', '.join(names[:MOST_NAMED])}{rest}.",
        param="model",
        code="model_not_found",
    )


def chosen_by(scope: Scope) -> Serving | None:
    """The model that a request has chosen, if it has chosen one."""
    found: Serving | None = scope.get(_CHOSEN)
    return found


def hold(scope: Scope, release: Callable[[], None]) -> None:
    """Have `release` called once the request is answered."""
    scope[_RELEASE] = release


def let_go(scope: Scope) -> None:
    """What ends a request's hold on its model. Called when it is answered, whatever became of
    it."""
    release = scope.pop(_RELEASE, None)
    if release is not None:
        release()
