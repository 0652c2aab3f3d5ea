"""The adapters in memory: brought in when a request asks for one, in a thread, and kept while there
is room.

A request waits until its adapter is in memory; no step waits. Requests that wait are served in the
order in which they came.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import msgspec

from ockham.core.asks import AdapterAsk
from ockham.core.errors import InvalidRequest, ModelError
from ockham.core.seams import Adapter, AdapterDtype, LowRank
from ockham.core.step import PackedAdapter

Pack = Callable[[Sequence[LowRank], AdapterDtype], PackedAdapter]


class HeldAdapter(msgspec.Struct, frozen=True):
    """An adapter in memory. `digest` names what its files held; a row costs `flops` more."""

    name: str
    digest: str
    packed: PackedAdapter
    flops: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


class _Place(msgspec.Struct):
    """An adapter that is in memory, or on its way. Nobody may take its place while it has users."""

    loading: Future[HeldAdapter]
    users: set[str] = msgspec.field(default_factory=set)


class _Wish(msgspec.Struct):
    request_id: str
    ask: AdapterAsk
    given: Future[HeldAdapter]


class Adapters:
    """Holds the adapters of one engine. `want` and `release` may be called from any thread."""

    def __init__(self, technique: Adapter, pack: Pack) -> None:
        self._technique, self._pack = technique, pack
        self._lock = threading.RLock()
        self._places: dict[str, _Place] = {}
        """By what they are of; those that were released longest ago come first."""
        self._place_of: dict[str, str] = {}
        """Of each request that uses an adapter, its place."""
        self._waiting: deque[_Wish] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ockham-adapters")

    def check(self, ask: AdapterAsk) -> None:
        """Raise InvalidRequest for an adapter that is not there, or does not fit the model. Its
        weights are not read."""
        if not ask.name or not ask.path:
            raise InvalidRequest("an adapter has a name and a path; give both.", "model")
        try:
            self._technique.check(ask)
        except ModelError as error:
            raise InvalidRequest(str(error), "model") from error

    def want(self, request_id: str, ask: AdapterAsk) -> Future[HeldAdapter]:
        """The adapter for a request, which has it until `release`. The future raises InvalidRequest
        for one that is damaged."""
        wish = _Wish(request_id, ask, Future())
        with self._lock:
            self._waiting.append(wish)
            self._serve()
        return wish.given

    def release(self, request_id: str) -> None:
        """A request is over, or gives up waiting. Requests without an adapter are ignored."""
        with self._lock:
            self._waiting = deque(w for w in self._waiting if w.request_id != request_id)
            name = self._place_of.pop(request_id, None)
            place = None if name is None else self._places.get(name)
            if name is not None and place is not None:
                place.users.discard(request_id)
                self._places[name] = self._places.pop(name)  # the one that was released last
            self._serve()

    def held(self) -> int:
        """How many adapters are in memory or on their way."""
        return len(self._places)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- inside, with the lock -----------------------------------------------------------------

    def _serve(self) -> None:
        """Give places to those who wait, the first of them first."""
        while self._waiting:
            wish = self._waiting[0]
            name = self._technique.version(wish.ask)
            place = self._places.get(name)
            if place is None or not place.users:
                if (
                    sum(bool(p.users) for p in self._places.values())
                    >= self._technique.most_running
                ):
                    return
                if place is None:
                    self._make_room()
                    place = _Place(self._thread.submit(self._load, wish.ask))
                    self._places[name] = place
            self._waiting.popleft()
            place.users.add(wish.request_id)
            self._place_of[wish.request_id] = name
            place.loading.add_done_callback(partial(self._loaded, name, wish))

    def _make_room(self) -> None:
        """Drop what nobody has used for longest, so that one more has room."""
        unused = [name for name, place in self._places.items() if not place.users]
        for name in unused[: len(self._places) + 1 - self._technique.most_held]:
            del self._places[name]

    def _loaded(self, name: str, wish: _Wish, loaded: Future[HeldAdapter]) -> None:
        closed = InvalidRequest("the engine was closed.")
        error: BaseException | None = closed if loaded.cancelled() else loaded.exception()
        if error is None:
            wish.given.set_result(loaded.result())
            return
        with self._lock:
            place = self._places.get(name)
            if place is not None and place.loading is loaded:
                del self._places[name]
            self._place_of.pop(wish.request_id, None)
            self._serve()
        wish.given.set_exception(error)

    # -- in the thread -------------------------------------------------------------------------

    def _load(self, ask: AdapterAsk) -> HeldAdapter:
        try:
            found = self._technique.find(ask)
            try:
                packed = self._pack(found.sums, found.dtype)
            finally:
                found.close()
            return HeldAdapter(ask.name, found.digest, packed, found.flops)
        except ModelError as error:
            raise InvalidRequest(str(error), "model") from error
        except MemoryError as error:
            raise InvalidRequest(
                f"there is no memory for the adapter {ask.name!r}; run fewer at once.", "model"
            ) from error
