"""The engine's share of one HTTP request: some requests to the engine, a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from ockham.api.async_llm import AsyncLLM, Kind
from ockham.api.server.gate import Gate
from ockham.core.errors import InvalidRequest, RequestTimeout
from ockham.core.outputs import RequestOutput
from ockham.engine.messages import Request

Item = tuple[int, RequestOutput]


class Job:
    """Runs requests beside one another. Closing a generator frees what still runs."""

    def __init__(
        self, llm: AsyncLLM, gate: Gate, requests: Sequence[Request], timeout_s: float
    ) -> None:
        """`requests` are of one tenant, at least one."""
        self._llm = llm
        self._gate = gate
        self._requests = requests
        self._timeout_s = timeout_s

    async def end_thoughts(self) -> None:
        """Let the thoughts of whatever runs end. Raises `InvalidRequest` if nothing thinks now."""
        wrong: InvalidRequest | None = None
        ended = 0
        for request in self._requests:
            try:
                await self._llm.end_thought(request.request_id)
            except InvalidRequest as error:
                wrong = error
            else:
                ended += 1
        if wrong is not None and not ended:
            raise wrong

    async def finals(self) -> list[RequestOutput]:
        """The finished outputs, in the order of the requests."""
        outputs: dict[int, RequestOutput] = {}
        async with aclosing(self._run("final")) as items:
            async for index, output in items:
                outputs[index] = output
        return [outputs[index] for index in range(len(self._requests))]

    def deltas(self) -> AsyncGenerator[Item, None]:
        """(number of the request, what is new of it), as it comes."""
        return self._run("delta")

    async def _run(self, kind: Kind) -> AsyncGenerator[Item, None]:
        """Raises `Overloaded`, `RequestTimeout`, or what the engine refuses a prompt with."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        sequences = sum(request.params.sequences for request in self._requests)
        with self._gate.admit(sequences, self._requests[0].tenant, self._requests):
            async with aclosing(self._merged(kind)) as items:
                while True:
                    try:
                        # Entered anew for each item: a timeout belongs to the task that waits.
                        async with asyncio.timeout_at(deadline):
                            item = await anext(items)
                    except StopAsyncIteration:
                        return
                    except TimeoutError as error:
                        raise RequestTimeout(
                            f"The request did not finish within {self._timeout_s:g} s and was "
                            "given up; ask for fewer tokens, or start the server with a longer "
                            "--request-timeout."
                        ) from error
                    yield _checked(item)

    async def _merged(self, kind: Kind) -> AsyncGenerator[Item, None]:
        """The outputs of all prompts as they come; an error of one ends them all."""
        if len(self._requests) == 1:
            async with aclosing(self._generate(0, kind)) as items:
                async for item in items:
                    yield item
            return
        # Room for one item: what comes faster than it is taken waits, merged, in its stream.
        queue: asyncio.Queue[Item | None] = asyncio.Queue(1)

        async def pump(index: int) -> None:
            async with aclosing(self._generate(index, kind)) as items:
                async for item in items:
                    await queue.put(item)

        async def pump_all() -> None:
            async with asyncio.TaskGroup() as group:
                for index in range(len(self._requests)):
                    group.create_task(pump(index))
                    await asyncio.sleep(0)  # others have their turn between two prompts
            await queue.put(None)

        pumping = asyncio.create_task(pump_all())
        try:
            while (item := await _first(queue.get(), pumping)) is not None:
                yield item
        except BaseExceptionGroup as errors:
            raise _one_of(errors) from errors
        finally:
            pumping.cancel()
            await asyncio.wait({pumping})

    async def _generate(self, index: int, kind: Kind) -> AsyncGenerator[Item, None]:
        outputs = self._llm.run(self._requests[index], kind=kind)
        with naming(index, len(self._requests)):
            async with aclosing(outputs):
                async for output in outputs:
                    yield index, output


@contextmanager
def naming(index: int, count: int) -> Iterator[None]:
    """Where there are several prompts, whatever one is refused for says which one that is."""
    try:
        yield
    except InvalidRequest as error:
        if count < 2:
            raise
        raise InvalidRequest(f"prompt[{index}]: {error}", error.param) from error


def _checked(item: Item) -> Item:
    """A choice that ended in an error (its masks left no token) fails its request."""
    for choice in item[1].outputs:
        if choice.finish_reason == "error":
            reason = str(choice.stop_reason)
            remedy = "Loosen allowed_token_ids, bad_words, logit_bias or structured_outputs."
            if reason.startswith("the grammar"):
                remedy = "Make what structured_outputs or response_format asks for simpler."
            raise InvalidRequest(f"No token could be chosen: {reason}. {remedy}")
    return item


async def _first(getting: Coroutine[Any, Any, Item | None], pumping: asyncio.Task[None]) -> Any:
    """The next item, or the error that the pumps ended with."""
    getter = asyncio.ensure_future(getting)
    try:
        await asyncio.wait({getter, pumping}, return_when=asyncio.FIRST_COMPLETED)
        if not getter.done() and pumping.done():
            pumping.result()
        return await getter
    finally:
        getter.cancel()


def _one_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of a group that failed together: they mostly say the same."""
    first = errors.exceptions[0]
    return _one_of(first) if isinstance(first, BaseExceptionGroup) else first
