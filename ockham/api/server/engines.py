"""The engines of several models: planned, loaded and let go, each a process of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ockham.api.async_llm import AsyncLLM
from ockham.api.server.adapters import check_modules
from ockham.api.server.chat_facts import ChatFacts, chat_facts, report_chat_template
from ockham.api.server.kept import KeptPrefixes
from ockham.api.server.metrics import Families, Metrics, ModelMetrics
from ockham.api.server.serving import Serving
from ockham.api.server.settings import ServerSettings
from ockham.api.server.specs import ModelSpec
from ockham.api.server.throughput import report
from ockham.core.errors import DoesNotFit, ModelError
from ockham.core.units import readable
from ockham.engine.client import child_environment
from ockham.engine.messages import Delta, Question, Ready, Stats, Survey
from ockham.engine.stream import Stream

log = logging.getLogger("ockham.server")

PROCESS_BYTES = 160 << 20
"""What an engine's process takes beside its plan, and its tokenizer and template worker."""


@dataclass(slots=True, eq=False)
class Engine:
    """A model that is loaded: its engine and what goes with it."""

    llm: AsyncLLM
    kept: KeptPrefixes
    telling: asyncio.Task[None]
    servings: dict[object, Serving] = field(default_factory=dict)
    """The model as each of the server's applications serves it."""


class _Watch:
    """Tells the metrics what an engine does, and who loaded it that it died."""

    def __init__(self, metrics: Metrics, died: Callable[[], None]) -> None:
        self._metrics, self._died = metrics, died

    def started(self, ready: Ready) -> None:
        self._metrics.started(ready)

    def stats(self, stats: Stats) -> None:
        self._metrics.stats(stats)

    def delta(self, stream: Stream, delta: Delta, now_s: float) -> None:
        self._metrics.delta(stream, delta, now_s)

    def aborted(self, stream: Stream) -> None:
        self._metrics.aborted(stream)

    def died(self) -> None:
        self._metrics.died()
        self._died()


class Engines:
    """Implements `ockham.api.server.resident.Loader`, for models by their first names."""

    def __init__(
        self, specs: Sequence[ModelSpec], settings: ServerSettings, budget_bytes: int
    ) -> None:
        """`budget_bytes` are those of all models together."""
        self._specs = {spec.name: spec for spec in specs}
        self._settings = settings
        self._budget_bytes = budget_bytes
        self._shares: dict[str, int] = {}
        self._reported: set[str] = set()
        self._looks = {name: asyncio.Lock() for name in self._specs}
        self._found: dict[str, tuple[str, ...]] = dict.fromkeys(self._specs, ())
        """The tasks of models whose checkpoints were looked at."""
        self._surveys: dict[str, Survey] = {}
        """What was found of models that were looked at, until one is planned."""
        self.families = Families()
        self.metrics = {spec.name: Metrics(spec.name, self.families) for spec in specs}
        self._counted = {spec.name: ModelMetrics(spec.name, self.families) for spec in specs}
        self.ready: dict[str, Ready] = {}
        """What each engine said of itself when it was loaded last."""
        self.chat: dict[str, ChatFacts] = {}

    def tasks(self, name: str) -> tuple[str, ...]:
        """What requests may ask of a model, as far as that is known: of one that was never loaded,
        what its settings say, or else its checkpoint, where somebody had it looked at."""
        ready = self.ready.get(name)
        return ready.tasks if ready is not None else self._specs[name].tasks or self._found[name]

    async def find_tasks(self, name: str) -> tuple[str, ...]:
        """The same, after a look at the checkpoint where nothing else tells. Nothing for a model
        that cannot be loaded: who loads it is told why."""
        async with self._looks[name]:  # one look is enough for all who ask at once
            if not self.tasks(name) and name not in self._surveys:
                self._surveys[name] = found = await self._survey(name)
                self._found[name] = found.tasks
        return self.tasks(name)

    async def plan(self, name: str) -> int:
        found = self._surveys.pop(name, None) or await self._survey(name)
        if found.error is not None:
            self._counted[name].failed()
            raise (ModelError if found.fits else DoesNotFit)(found.error)
        self._shares[name] = found.memory_bytes
        return found.memory_bytes + PROCESS_BYTES

    async def _survey(self, name: str) -> Survey:
        share = self._budget_bytes // len(self._specs) - PROCESS_BYTES
        most = max(1, self._budget_bytes - PROCESS_BYTES)
        return await _survey(Question(self._specs[name].config, max(1, share), most))

    async def load(self, name: str, died: Callable[[], None]) -> Engine:
        spec, begin_s = self._specs[name], time.monotonic()
        llm = AsyncLLM.from_config(
            msgspec.structs.replace(spec.config, memory_bytes=self._shares[name]),
            stall_s=self._settings.stall_s,
            observer=_Watch(self.metrics[name], died),
            restarts=False,
        )
        log.info("Loading %s.", name)
        try:
            await llm.start()
            await check_modules(llm, spec.adapters, spec.names)
            if name not in self.chat:
                self.chat[name] = await asyncio.to_thread(chat_facts, llm.tokenizer)
        except BaseException:
            self._counted[name].failed()
            await asyncio.shield(llm.shutdown())
            raise
        self.ready[name] = llm.ready
        self._counted[name].loaded()
        log.info(
            "Loaded %s in %.2f s: context %d tokens, at most %s of memory.",
            name,
            time.monotonic() - begin_s,
            llm.ready.max_model_len,
            readable(self._shares[name] + PROCESS_BYTES),
        )
        if name not in self._reported:
            self._reported.add(name)
            await report_chat_template(llm)
        telling = asyncio.create_task(
            report(lambda: llm.client.stats, self._settings.throughput_s, f"{name}: ")
        )
        return Engine(llm, KeptPrefixes(llm), telling)

    async def close(self, name: str, loaded: Engine) -> None:
        loaded.telling.cancel()
        await loaded.llm.shutdown()
        self._counted[name].let_go()
        self.metrics[name].let_go()
        log.info("Let go of %s.", name)


async def _survey(question: Question) -> Survey:
    """Ask a process of its own. Raises `ModelError` if it ends without an answer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ockham.engine.survey"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate(msgspec.json.encode(question))
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    try:
        return msgspec.json.decode(said, type=Survey)
    except msgspec.DecodeError as error:
        raise ModelError(
            f"its memory could not be planned: the process that reads its files ended with "
            f"{process.returncode}."
        ) from error
