"""Many requests through an engine at full batch, each handed over as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from ockham.core.outputs import RequestOutput
from ockham.core.seams import SearchState
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.messages import Request

AHEAD = 4
"""Requests handed to the engine for each sequence that may run: enough that it never idles, few
enough that thousands of prompts do not stand in its queue."""


def drive(
    engine: Engine,
    requests: Iterable[Request],
    done: Callable[[RequestOutput], None],
    searches: Mapping[str, SearchState] | None = None,
) -> None:
    """Run all requests; `done` gets each output when its last choice has ended. Those whose ids are
    in `searches`, which may grow as requests come, are answered by these.

    Raises InvalidRequest for a request that can never be served. Whatever is raised, the engine is
    left without work of this call.
    """
    waiting: dict[str, Collector] = {}
    source: Iterator[Request] = iter(requests)
    more = True
    try:
        while more or waiting:
            while more and len(waiting) < AHEAD * engine.config.max_num_seqs:
                request = next(source, None)
                if request is None:
                    more = False
                else:
                    engine.take(request, (searches or {}).get(request.request_id))
                    waiting[request.request_id] = Collector(request)
            for delta in engine.step():
                collector = waiting[delta.request_id]
                collector.add(delta)
                if collector.finished:
                    del waiting[delta.request_id]
                    done(collector.output())
    finally:
        for request_id in waiting:
            engine.abort(request_id)
