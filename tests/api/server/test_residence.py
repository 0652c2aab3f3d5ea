"""Which models are in memory: who is let in, who waits, and who makes room. No engine runs here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ockham.api.server import residence as module
from ockham.api.server.residence import Residence
from ockham.api.server.resident import Resident
from ockham.core.errors import EngineDead, InvalidRequest, ModelError


class Shelf:
    """Loads names: each takes as many bytes as `sizes` says, and waits where it is told to."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.events: list[str] = []
        self.broken: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}
        self.deaths: dict[str, Callable[[], None]] = {}
        self.inside = 0

    async def plan(self, name: str) -> int:
        await asyncio.sleep(0)
        return self.sizes[name]

    async def load(self, name: str, died: Callable[[], None]) -> str:
        self.events.append(f"+{name}")
        self.inside += self.sizes[name]
        self.deaths[name] = died
        try:
            await asyncio.sleep(0)
            if name in self.gates:
                await self.gates[name].wait()
            if name in self.broken:
                raise ModelError("its file is damaged.")
        except BaseException:
            self.inside -= self.sizes[name]
            raise
        return name

    async def close(self, name: str, loaded: str) -> None:
        await asyncio.sleep(0)
        self.events.append(f"-{name}")
        self.inside -= self.sizes[name]


Check = Callable[[Shelf, "Residence[str]"], Awaitable[None]]


def run(check: Check, *, budget: int = 10, most: int | None = None, **sizes: int) -> Shelf:
    """Run a check over models of these sizes, which stay for ever; nothing may exceed the
    budget."""

    async def main() -> Shelf:
        shelf = Shelf(**sizes)
        residence = Residence(shelf, dict.fromkeys(sizes, float("inf")), budget, most)
        async with asyncio.timeout(20.0):
            await check(shelf, residence)
            await residence.shutdown()
        assert shelf.inside == 0, "everything was let go"
        return shelf

    return asyncio.run(main())


async def settled() -> None:
    """Let everything happen that can."""
    for _ in range(50):
        await asyncio.sleep(0)


def entering(residence: Residence[str], name: str, **more: Any) -> asyncio.Task[Resident[str]]:
    return asyncio.create_task(residence.enter(name, **more))


@pytest.fixture(autouse=True)
def nobody_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be asked to make room as soon as it is loaded."""
    monkeypatch.setattr(module, "LONGEST_STAY_S", 0.0)
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)


def test_two_requests_at_once_load_a_model_once() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        first, second = await asyncio.gather(residence.enter("a"), residence.enter("a"))
        assert first is second
        assert first.uses == 2

    assert run(check, a=5).events == ["+a", "-a"]


def test_who_was_used_least_recently_makes_room_first() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        for name in ("a", "b", "a"):
            residence.leave(await residence.enter(name))
            await asyncio.sleep(0.001)
        residence.leave(await residence.enter("c"))
        assert shelf.events == ["+a", "+b", "-b", "+c"]
        assert residence.state("a") == "loaded"
        assert residence.state("b") == "unloaded"

    run(check, a=4, b=4, c=4)


def test_no_more_models_are_loaded_than_may_be() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        for name in ("a", "b", "c"):
            residence.leave(await residence.enter(name))
            await asyncio.sleep(0.001)
        assert shelf.events == ["+a", "+b", "-a", "+c"]

    run(check, most=2, a=1, b=1, c=1)


def test_a_model_that_is_used_makes_room_when_its_users_have_left() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        inside = [await residence.enter("a"), await residence.enter("a")]
        waiting = entering(residence, "b")
        await settled()
        late = entering(residence, "a")  # behind the one for b
        await settled()
        assert not waiting.done()
        assert not late.done()
        residence.leave(inside[0])
        await settled()
        assert shelf.events == ["+a"]
        residence.leave(inside[1])
        b = await waiting
        await settled()
        assert shelf.events == ["+a", "-a", "+b"]
        assert not late.done()
        residence.leave(b)
        await late
        assert shelf.events == ["+a", "-a", "+b", "-b", "+a"]

    run(check, a=6, b=6)


def test_nobody_starves_where_two_do_not_fit_together() -> None:
    """Users of two models come again as soon as they are done: all get their turns."""

    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        turns = {f"{name}{number}": 0 for name in "ab" for number in range(5)}

        async def user(who: str) -> None:
            while turns[who] < 20:
                resident = await residence.enter(who[0])
                await asyncio.sleep(0)
                turns[who] += 1
                residence.leave(resident)
                if min(turns.values()) < 15:
                    assert max(turns.values()) - min(turns.values()) <= 3, turns

        await asyncio.gather(*(user(who) for who in turns))
        assert set(turns.values()) == {20}

    run(check, a=6, b=6)


def test_a_model_that_was_just_loaded_takes_requests_for_a_time() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a = await residence.enter("a")
        residence._entries["a"].settled_s = asyncio.get_running_loop().time() + 0.2
        waiting = entering(residence, "b")
        await settled()
        residence.leave(await residence.enter("a"))
        await asyncio.sleep(0.3)
        late = entering(residence, "a")
        await settled()
        assert not late.done(), "now it is to make room"
        residence.leave(a)
        residence.leave(await waiting)
        await late
        assert shelf.events == ["+a", "-a", "+b", "-b", "+a"]

    run(check, a=6, b=6)


def test_the_patient_make_nobody_leave_and_wait_behind_the_others() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a = await residence.enter("a")
        batch = entering(residence, "b", patient=True)
        await settled()
        residence.leave(await residence.enter("a"))  # is not held up
        other = entering(residence, "c")
        await settled()
        residence.leave(a)
        residence.leave(await other)
        await batch
        assert shelf.events == ["+a", "-a", "+c", "-c", "+b"]

    run(check, a=6, b=6, c=6)


def test_a_model_that_was_used_just_now_makes_no_room_for_the_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)

    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        residence.leave(await residence.enter("a"))
        batch = entering(residence, "b", patient=True)
        await settled()
        assert shelf.events == ["+a"]
        await batch
        assert shelf.events == ["+a", "-a", "+b"]

    run(check, a=6, b=6)


def test_a_small_model_goes_ahead_only_into_room_that_nobody_before_it_needs() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a = await residence.enter("a")  # 4 of 10 are free
        big = entering(residence, "big")  # waits for a, and then leaves 2
        await settled()
        small, middle = entering(residence, "small"), entering(residence, "middle")
        await settled()
        assert small.done()
        assert not middle.done()
        residence.leave(a)
        await big
        assert shelf.events == ["+a", "+small", "-a", "+big"]
        residence.leave(small.result())
        residence.leave(big.result())
        await middle

    run(check, a=6, big=8, small=2, middle=3)


def test_what_can_never_fit_is_refused_before_anything_is_let_go() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        residence.leave(await residence.enter("a"))
        with pytest.raises(InvalidRequest, match="all models together may take"):
            await residence.enter("huge")
        assert shelf.events == ["+a"]

    run(check, a=6, huge=11)


def test_a_model_that_cannot_be_loaded_fails_all_who_wait_and_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        shelf.broken.add("a")
        waiting = [entering(residence, "a") for _ in range(5)]
        for each in waiting:
            with pytest.raises(EngineDead, match="a cannot be loaded: its file is damaged"):
                await each
        with pytest.raises(EngineDead, match="damaged"):
            await residence.enter("a")
        assert shelf.events == ["+a"], "tried once"
        assert "damaged" in str(residence.failed("a"))
        residence.leave(await residence.enter("b"))  # nobody else is concerned
        shelf.broken.clear()
        monkeypatch.setattr(residence._entries["a"], "retry_s", 0.0)  # the pause is over
        residence.leave(await residence.enter("a"))
        assert residence.failed("a") is None

    run(check, a=5, b=5)


def test_who_leaves_while_its_model_waits_or_is_loaded_takes_nothing_with_it() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a = await residence.enter("a")
        gone = entering(residence, "b")
        await settled()
        gone.cancel()
        await asyncio.wait({gone})
        residence.leave(await residence.enter("a"))  # a need not make room any more
        assert shelf.events == ["+a"]
        residence.leave(a)
        shelf.gates["b"] = asyncio.Event()
        gone = entering(residence, "b")
        await settled()
        gone.cancel()
        await asyncio.wait({gone})
        shelf.gates["b"].set()
        await settled()
        b = residence.resident("b")
        assert b is not None
        assert b.uses == 0

    run(check, a=6, b=6)


def test_a_model_that_dies_is_loaded_again_by_the_next_request() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a, b = await residence.enter("a"), await residence.enter("b")
        shelf.deaths["a"]()
        assert residence.state("a") == "unloaded"
        again = await residence.enter("a")
        assert again is not a
        residence.leave(a)  # who had the dead one
        await settled()
        assert again.uses == 1
        assert b.uses == 1
        assert shelf.events == ["+a", "+b", "+a", "-a"]
        shelf.deaths["a"]()  # a second time within a minute: there is a pause
        with pytest.raises(EngineDead, match="ended by itself"):
            await residence.enter("a")
        residence.leave(again)

    run(check, budget=20, a=6, b=6)


def test_unloading_waits_for_those_inside_and_who_comes_meanwhile_loads_it_again() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        assert residence.unload("a") == "unloaded"
        a = await residence.enter("a")
        assert residence.unload("a") == "unloading"
        late = entering(residence, "a")
        await settled()
        assert shelf.events == ["+a"]
        residence.leave(a)
        residence.leave(await late)
        assert shelf.events == ["+a", "-a", "+a"]
        assert residence.state("a") == "loaded"

    run(check, a=5)


def test_a_model_that_nobody_uses_goes_after_its_time() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a = await residence.enter("a")
        residence.stay("a", 0.01)
        await asyncio.sleep(0.05)
        assert shelf.events == ["+a"], "it is used"
        residence.leave(a)
        while residence.state("a") != "unloaded":
            await asyncio.sleep(0.01)
        a = await residence.enter("a")
        assert residence.expires_in_s("a") is None
        residence.stay("a", 0.0)
        residence.leave(a)
        await settled()
        assert shelf.events == ["+a", "-a", "+a", "-a"]
        residence.leave(await residence.enter("a"))
        assert residence.expires_in_s("a") is None, "what a request asked for is over with it"

    run(check, a=5)


def test_those_who_wait_are_told_that_the_server_ends() -> None:
    async def check(shelf: Shelf, residence: Residence[str]) -> None:
        a = await residence.enter("a")
        waiting = entering(residence, "b")
        await settled()
        residence.close()
        with pytest.raises(EngineDead, match="shutting down"):
            await waiting
        with pytest.raises(EngineDead, match="shutting down"):
            await residence.enter("b")
        residence.leave(a)

    run(check, a=6, b=6)
