"""Running a server of several models."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace

from ockham.api.server.engines import Engines
from ockham.api.server.house import House, Models
from ockham.api.server.many_models import ManyModels
from ockham.api.server.residence import Residence
from ockham.api.server.run import bind, open_batches, open_traces, room_for, run, warn_of_strangers
from ockham.api.server.service_manager import ServiceManager
from ockham.api.server.settings import ServerSettings
from ockham.api.server.specs import ModelSpec, Table
from ockham.api.threads import Threads
from ockham.core.units import readable

log = logging.getLogger("ockham.server")


async def serve_several(table: Table, settings: ServerSettings) -> None:
    """Serve several models until SIGTERM or SIGINT, each of which is loaded when it is asked for.
    Raises `ConfigError` if the address cannot be had."""
    seats = sum(spec.config.max_num_seqs for spec in table.specs)
    room = room_for(seats + len(table.specs) * settings.max_queue, settings)
    manager = ServiceManager()
    sock = manager.socket or bind(settings.host, settings.port)
    warn_of_strangers(sock, settings)
    threads = Threads()
    budget = table.memory_bytes
    engines = Engines(table.specs, settings, budget)
    stays_s = {spec.name: spec.stay_s for spec in table.specs}
    residence = Residence(engines, stays_s, budget, table.most)
    models = ManyModels(table.specs, engines, residence, settings)
    house = House(settings, models, threads, engines.families.registry)
    house.traces = open_traces(settings)
    preloading: list[asyncio.Task[None]] = []
    try:
        most = max(spec.config.max_num_seqs for spec in table.specs)

        def behind(inner: ServerSettings) -> Models:
            own = replace(inner, max_queue=most)
            return ManyModels(table.specs, engines, residence, own, patient=True)

        house.batches = open_batches(house, behind, most)
        log.info(
            "Serving %s, each loaded when it is asked for; together they may take %s.",
            ", ".join(spec.name for spec in table.specs),
            readable(budget),
        )
        for spec in table.specs:
            _warn_of_missing(spec)
        preloading = [
            asyncio.create_task(models.preload(spec)) for spec in table.specs if spec.preload
        ]
        await run(house, room, sock, manager)
    finally:
        for task in preloading:
            task.cancel()
        await models.shutdown()
        threads.shutdown()
        sock.close()


def _warn_of_missing(spec: ModelSpec) -> None:
    """Log it if a model is named by a path where nothing is: it may be there when it is asked
    for."""
    path = os.path.expanduser(spec.config.model)
    if path.startswith(("/", "./", "../")) and not os.path.exists(path):
        log.warning("%s cannot be loaded as things are: there is no %s.", spec.name, path)
