"""The engine's own process: `python -m ockham.engine.process FD`.

FD is one end of a socketpair. The first message on it is the `EngineConfig`; the answer is `Ready`,
or `Died` with the reason. From then on the process takes what has arrived, makes a step, and sends
what came of it, with no thread of its own: between two steps it looks at the socket without
waiting, and with nothing to do it sleeps on the socket and uses no CPU. An answer that the other
side does not read at once waits, merged, in a mailbox (`ockham.engine.mailbox`); a step never
waits for a reader. The process ends when the other side of the socket does.
"""

from __future__ import annotations

import errno
import gc
import logging
import socket
import sys
import time

from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError
from ockham.core.logs import set_up_like_parent
from ockham.core.parent import die_with_parent
from ockham.engine.channel import Channel
from ockham.engine.engine import Engine
from ockham.engine.idling import Idle, idle_of
from ockham.engine.intake import Held, Intake, describe
from ockham.engine.messages import (
    Died,
    FromEngine,
    Loading,
    ModelFacts,
    Ready,
    Refused,
    Shutdown,
    ToEngine,
)
from ockham.model.loading import LoadedModel

log = logging.getLogger("ockham.engine")

STATS_EVERY_S = 0.25
"""While the engine works. Once more when it becomes idle, so that the last figures are exact."""
INTAKE_SHARE_S = 0.01
"""How long requests are taken in between two steps. Each may have lists of thousands of ids."""
INTAKE_S = 0.01
"""With nothing else to do, how often to look whether requests need wait no longer."""
LAST_WORDS_S = 2.0


def main() -> int:
    """Serve one engine over the socket named on the command line; the exit status."""
    die_with_parent()
    set_up_like_parent()
    channel: Channel[ToEngine] = Channel(socket.socket(fileno=int(sys.argv[1])), ToEngine)
    try:
        config = channel.receive_first(EngineConfig)
        idle = _load(config, channel)
        if idle is None:
            return 1
        return serve(idle, channel)
    except EOFError:
        return 0


def _load(config: EngineConfig, channel: Channel[ToEngine]) -> Idle | None:
    begin_s = time.monotonic()
    try:
        engine = Engine(config, progress=lambda line: channel.send([Loading(line)]))
        idle = idle_of(engine)
    except OckhamError as error:
        channel.send([Died(str(error))])
        channel.drain(LAST_WORDS_S)
        return None
    except EOFError:
        raise  # nobody waits for the engine any more
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            reason = f"There is not enough memory to load the model ({describe(error)})."
        else:
            log.exception("The engine could not be loaded.")
            reason = f"The engine could not be loaded: {describe(error)}."
        channel.send([Died(reason)])
        channel.drain(LAST_WORDS_S)
        return None
    # What was loaded stays for good: later collections need not look at it.
    gc.collect()
    gc.freeze()
    channel.send([_ready(engine, time.monotonic() - begin_s)])
    return idle


def serve(idle: Idle, channel: Channel[ToEngine]) -> int:
    """Take, step, send, until told to stop. Raises `EOFError` when the other side is gone."""
    engine, held = idle.engine, Held()
    intake = Intake(idle, held)
    stats_sent_s = 0.0
    idle_reported = False
    while True:
        until_s = time.monotonic() + INTAKE_SHARE_S
        for message in channel.receive():
            if isinstance(message, Shutdown):
                return 0
            channel.send(intake.take(message))
            idle_reported = False
            if held and time.monotonic() > until_s:
                break  # the others come after the next step, which somebody waits for
        channel.send(intake.ready())
        if held:
            idle.give_way()
        if not engine.has_work and not idle.wake():
            channel.send([] if idle_reported else [idle.stats()])
            idle_reported = True
            channel.wait(INTAKE_S if intake.waiting else None)
            continue
        try:
            deltas = idle.after(engine.step())
        except Exception as error:
            _fail(error, held, channel)
            return 1
        held.update_from(deltas)
        idle_reported = False
        news: list[FromEngine] = [*deltas]
        now_s = time.monotonic()
        if now_s - stats_sent_s >= STATS_EVERY_S:
            stats_sent_s = now_s
            news.append(idle.stats())
        channel.send(news)


def _fail(error: Exception, held: Held, channel: Channel[ToEngine]) -> None:
    """A step that raises leaves state that nobody can vouch for: say so, and end the process."""
    log.error("The engine failed in a step.", exc_info=error)
    reason = f"The engine failed in a step and is being restarted: {describe(error)}."
    channel.send([Refused(request_id, reason, 500) for request_id in held])
    channel.send([Died(reason)])
    channel.drain(LAST_WORDS_S)


def _ready(engine: Engine, load_s: float) -> Ready:
    return Ready(
        model=engine.config.model,
        max_model_len=engine.max_model_len,
        context_limit=engine.context_limit,
        vocab_size=engine.vocabulary,
        memory_plan=engine.model.plan.numbers(),
        numerics_id=engine.model.numerics_id,
        load_s=load_s,
        eos_token_ids=engine.eos_token_ids,
        sampling_defaults=engine.model.sampling_defaults,
        drafters=tuple(engine.speculation.names),
        facts=_facts(engine.model),
        tasks=engine.tasks,
        pooled=engine.pooled_facts,
    )


def _facts(model: LoadedModel) -> ModelFacts:
    description = model.description
    return ModelFacts(
        path=str(model.directory),
        architecture=description.architecture.name,
        weight_format=model.weight_format,
        weight_bytes=model.weight_bytes,
        parameters=model.parameters,
        layers=description.layers,
        hidden_size=description.hidden_size,
        intermediate_size=description.intermediate_size,
        heads=description.heads,
        kv_heads=description.kv_heads,
        trained_length=description.max_position_embeddings,
    )


if __name__ == "__main__":
    sys.exit(main())
