"""`ockham serve [MODEL]`: a model behind the OpenAI API."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.options import Integer, Text, engine_config, engine_options, option
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.api.server.fields import UnknownFields


@click.command()
@engine_options
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@option("--port", type=Integer(), default=8000, show_default=True, help="0 takes a free one.")
@option(
    "--served-model-name",
    type=Text(),
    multiple=True,
    help="Name of the model in the API; may be given more than once. [default: MODEL]",
)
@option(
    "--api-key",
    type=Text(),
    multiple=True,
    show_envvar=True,
    help="Key that every route but /health asks for; may be given more than once.",
)
@option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with one key a line, which keeps them out of the list of processes.",
)
@option(
    "--cors-origin",
    type=Text(),
    multiple=True,
    help="Origin whose pages may call the API; may be given more than once. [default: none]",
)
@option(
    "--max-queue",
    type=Integer(),
    default=1024,
    show_default=True,
    help="Completions that may wait for a place; more are answered 429.",
)
@option(
    "--max-body-bytes",
    type=Integer(),
    default=16 << 20,
    show_default=True,
    help="Largest request body; a larger one is answered 413.",
)
@option(
    "--max-prompts",
    type=Integer(),
    default=1024,
    show_default=True,
    help="Most prompts of one completions request.",
)
@option(
    "--request-timeout",
    type=float,
    default=3600.0,
    show_default=True,
    help="Seconds that one request may take; then it is answered 408.",
)
@option(
    "--shutdown-timeout",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds that running requests may go on after SIGTERM or Ctrl-C.",
)
@option(
    "--sse-keep-alive",
    type=float,
    default=15.0,
    show_default=True,
    help="Seconds of silence after which a stream sends a comment.",
)
@option(
    "--stall-timeout",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds without a step, while requests wait, after which /health fails.",
)
@option(
    "--cache-text/--no-cache-text",
    default=False,
    show_default=True,
    help="Whether 'ockham cache show' may show the beginnings of cached prompts.",
)
@option(
    "--unknown-fields",
    type=click.Choice(("refuse", "warn", "ignore")),
    default="refuse",
    show_default=True,
    help="What becomes of a field of a request that nobody here knows or supports; 'warn' passes "
    "it over and names it in the log and in the header X-Ockham-Ignored-Fields.",
)
@option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
    help="What the log says at least; lines of single requests are of level info.",
)
@option(
    "--access-log/--no-access-log", default=True, show_default=True, help="One line per request."
)
def serve(
    *,
    host: str,
    port: int,
    served_model_name: tuple[str, ...],
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    cors_origin: tuple[str, ...],
    max_queue: int,
    max_body_bytes: int,
    max_prompts: int,
    request_timeout: float,
    shutdown_timeout: float,
    sse_keep_alive: float,
    stall_timeout: float,
    cache_text: bool,
    unknown_fields: UnknownFields,
    log_level: str,
    access_log: bool,
    **engine: Any,
) -> None:
    """Serve a model behind the OpenAI API: /v1/completions, /v1/chat/completions and more.

    The engine runs in a process of its own and is restarted if it dies. SIGTERM and Ctrl-C let
    running requests finish; a second one does not.
    """
    from ockham.api.server.run import serve as run
    from ockham.api.server.settings import ServerSettings

    _set_up_logging(log_level)
    settings = ServerSettings(
        host=host,
        port=port,
        served_model_names=served_model_name,
        api_keys=(*api_key, *_read_keys(api_key_file)),
        cors_origins=cors_origin,
        max_queue=max_queue,
        max_body_bytes=max_body_bytes,
        max_prompts=max_prompts,
        request_timeout_s=request_timeout,
        shutdown_timeout_s=shutdown_timeout,
        keep_alive_s=sse_keep_alive,
        stall_s=stall_timeout,
        cache_text=cache_text,
        unknown_fields=unknown_fields,
        access_log=access_log,
    )
    config = engine_config(**engine)
    # A key has no business in the environment of the engine, or of what that may start.
    os.environ.pop("OCKHAM_API_KEY", None)
    if not settings.api_keys and host not in ("127.0.0.1", "localhost", "::1"):
        logging.getLogger("ockham.server").warning(
            "Listening on %s without --api-key: whoever reaches this machine can use the model.",
            host,
        )
    asyncio.run(run(config, settings))


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file {path} cannot be read ({error}).") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key; write one on each line.")
    return keys


def _set_up_logging(level: str) -> None:
    """Short lines on stderr, of this level and above; stdout stays empty."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    least = logging.getLevelNamesMapping()[level.upper()]
    for name, lowest in (("ockham", least), ("uvicorn", max(least, logging.WARNING))):
        logger = logging.getLogger(name)
        logger.setLevel(lowest)
        logger.addHandler(handler)
        logger.propagate = False
