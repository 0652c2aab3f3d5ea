"""Running batches behind what callers ask for themselves.

A batch is answered by an application like the server's, without a socket, under its owner's name
and in turns of its own. While anybody is served, one request of all batches is under way; else as
many as there are seats. Results are on the disk when they are counted, so that a batch goes
on after a restart where it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Literal

import msgspec
from starlette.types import ASGIApp

from ockham.api.batch_file import BatchError, BatchInput, BatchOutput
from ockham.api.batch_lines import answer
from ockham.api.server.batches.store import (
    RUNNING,
    Batch,
    Fault,
    Store,
    StoredFile,
    new_batch_id,
    now_s,
)
from ockham.api.server.caller import Caller
from ockham.api.server.house import Models
from ockham.core.errors import ConfigError, InvalidRequest, OckhamError

log = logging.getLogger("ockham.server")

MOST_REQUESTS = 50_000
"""Of one batch, as at OpenAI."""
WINDOW_S = 24 * 3600

End = Literal["completed", "expired", "cancelled", "failed"]


class _Line(msgspec.Struct):
    """What decides to which file a result goes."""

    error: BatchError | None = None


class Batches:
    """The batches of a server; one runs at a time, the oldest first."""

    def __init__(
        self, store: Store, app: ASGIApp, models: Models, seats: int, owners: int = 1
    ) -> None:
        """`app` answers the lines; `models` are those of the callers that go first."""
        self.store = store
        self._app, self._models = app, models
        self._seats, self._owners = seats, owners
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._current: str | None = None
        self._changed = asyncio.Event()
        """Set to have those that work look whether they may go on."""

    def start(self) -> None:
        """Go on with what was not done when the server ended."""
        for batch in sorted(self.store.batches.values(), key=lambda each: each.created_at):
            if batch.status in RUNNING:
                self._queue.put_nowait(batch.id)
        self._task = asyncio.create_task(self._run(), name="ockham batches")

    async def close(self) -> None:
        """Stop where it is. What was answered is kept."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.store.close()

    def add(self, batch: Batch) -> None:
        self.store.save(batch)
        self._queue.put_nowait(batch.id)

    def cancel(self, batch: Batch) -> None:
        """Begin no further request of a batch; those under way are given up."""
        if batch.status not in ("validating", "in_progress"):
            return
        batch.status, batch.cancelling_at = "cancelling", now_s()
        if batch.id != self._current and not self.store.path(batch.results).exists():
            batch.status, batch.cancelled_at = "cancelled", now_s()
        self.store.save(batch)
        self._changed.set()

    async def _run(self) -> None:
        while True:
            batch = self.store.batches.get(await self._queue.get())
            if batch is None or batch.status not in RUNNING:
                continue  # it was cancelled while it waited
            self._current = batch.id
            try:
                await self._one(batch)
            except ConfigError as error:
                await self._fail(batch, Fault("invalid_input", str(error)))
            except InvalidRequest as error:
                await self._fail(batch, Fault("no_room", str(error)))
            except Exception:
                log.exception("Batch %s met a fault.", batch.id)
                said = "The server could not go on with it; its log says why."
                await self._fail(batch, Fault("not_finished", said))
            finally:
                self._current = None

    async def _fail(self, batch: Batch, fault: Fault) -> None:
        """End a batch; what was answered of it is given to the caller."""
        batch.errors = [fault]
        log.warning("Batch %s failed: %s", batch.id, fault.message)
        try:
            await self._finish(batch, "failed")
        except (OSError, OckhamError) as error:
            log.error("The results of batch %s stay in %s (%s).", batch.id, batch.results, error)

    async def _one(self, batch: Batch) -> None:
        """Everything that is left to do of a batch."""
        path = self.store.path(f"{batch.input_file_id}.data")
        given = await asyncio.to_thread(BatchInput, path, batch.input_file_id, MOST_REQUESTS)
        output = await asyncio.to_thread(BatchOutput, self.store.path(batch.results), given)
        self.store.grow(self.store.path(batch.results).stat().st_size)
        try:
            counts = batch.request_counts
            counts.total, counts.failed = len(given), output.done.failed
            counts.completed = len(output.done) - output.done.failed
            if batch.status == "validating":
                batch.in_progress_at = now_s()
            if batch.status != "cancelling":  # it may have been about to end when it was killed
                batch.status = "in_progress"
            await asyncio.to_thread(self.store.save, batch)
            lines = given.lines(output.done)
            end = await self._answer(batch, lines, output)
        finally:
            output.close()
            given.close()
        await self._finish(batch, end)

    async def _answer(
        self, batch: Batch, lines: Iterator[tuple[int, bytes]], output: BatchOutput
    ) -> End:
        """Answer what is left, as far as cancelling and the time allow."""
        caller = Caller(batch.owner, owners=self._owners, in_batch=True)
        running: set[asyncio.Task[None]] = set()

        async def one(number: int, line: bytes) -> None:
            result = await answer(
                self._app,
                self._models.recovered,
                number,
                line,
                caller=caller,
                urls=(batch.endpoint,),
            )
            self.store.grow(output.write(result))
            counts = batch.request_counts
            if result.error is None:
                counts.completed += 1
            else:
                counts.failed += 1

        try:
            while batch.status == "in_progress" and now_s() < batch.expires_at:
                while len(running) < self._most_under_way(running):
                    if (following := next(lines, None)) is None:
                        break
                    running.add(asyncio.create_task(one(*following)))
                if not running:
                    return "completed"
                running = await self._wait(running, batch.expires_at)
            return "cancelled" if batch.status == "cancelling" else "expired"
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    def _most_under_way(self, running: set[asyncio.Task[None]]) -> int:
        return 1 if self._models.requests else self._seats

    async def _wait(
        self, running: set[asyncio.Task[None]], until_s: int
    ) -> set[asyncio.Task[None]]:
        """Wait until one is done, there is room for more, or the batch is cancelled or expires;
        those that are not done. Raises what one met."""
        changed = asyncio.create_task(self._changed.wait())
        quiet = asyncio.create_task(self._models.quiet()) if self._models.requests else None
        others = {changed} | ({quiet} if quiet is not None else set())
        left_s = max(0.0, until_s - now_s())
        try:
            await asyncio.wait(
                {*running, *others}, return_when=asyncio.FIRST_COMPLETED, timeout=left_s
            )
        finally:
            self._changed.clear()
            for task in others:
                task.cancel()
        done = {task for task in running if task.done()}
        for task in done:
            task.result()
        return running - done

    async def _finish(self, batch: Batch, end: End) -> None:
        """Give the results to the caller, as a file of answers and one of errors."""
        if end == "completed":
            batch.status, batch.finalizing_at = "finalizing", now_s()
        path = self.store.path(batch.results)
        if path.is_file():
            await asyncio.to_thread(self._divide, batch)
        batch.status = end
        setattr(batch, f"{end}_at", now_s())
        batch.results = ""
        await asyncio.to_thread(self.store.save, batch)
        if path.is_file():
            self.store.grow(-path.stat().st_size)
            path.unlink()
        counts = batch.request_counts
        log.info(
            "Batch %s %s: %d of %d requests answered, %d failed.",
            batch.id,
            end,
            counts.completed,
            counts.total,
            counts.failed,
        )

    def _divide(self, batch: Batch) -> None:
        """The files of answers and errors, of the results. One that would be empty is not made."""
        made: dict[bool, tuple[str, int]] = {}
        names = {
            failed: f"{batch.id}_{'errors' if failed else 'output'}.jsonl" for failed in (0, 1)
        }
        for file in list(self.store.files.values()):
            if file.purpose == "batch_output" and file.filename in names.values():
                self.store.discard(file.id)  # of an end that a kill cut short
        try:
            with self.store.path(batch.results).open("rb") as results:
                for line in results:
                    failed = msgspec.json.decode(line, type=_Line).error is not None
                    if failed not in made:
                        made[failed] = self.store.create()
                    os.write(made[failed][1], line)
            for _, descriptor in made.values():
                os.fsync(descriptor)
        finally:
            for _, descriptor in made.values():
                os.close(descriptor)
        for failed, (file_id, _) in made.items():
            self.store.add(
                StoredFile(
                    id=file_id,
                    bytes=self.store.path(f"{file_id}.data").stat().st_size,
                    created_at=now_s(),
                    filename=names[failed],
                    purpose="batch_output",
                    owner=batch.owner,
                )
            )
            if failed:
                batch.error_file_id = file_id
            else:
                batch.output_file_id = file_id


def new_batch(
    endpoint: str, file_id: str, window: str, metadata: dict[str, str] | None, owner: str
) -> Batch:
    """A batch that has not begun."""
    batch_id, created_at = new_batch_id(), now_s()
    return Batch(
        id=batch_id,
        endpoint=endpoint,
        input_file_id=file_id,
        completion_window=window,
        created_at=created_at,
        expires_at=created_at + WINDOW_S,
        metadata=metadata,
        owner=owner,
        results=f"{batch_id}.results",
    )
