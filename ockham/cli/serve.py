"""`ockham serve [MODEL]`: a model behind the OpenAI API."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from ockham.cli.command import command
from ockham.cli.options import Integer, Names, Text, engine_config, engine_options, option
from ockham.core.errors import ConfigError


@command(own="Server")
@engine_options
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@option("--port", type=Integer(), default=8000, show_default=True, help="0 takes a free one.")
@option(
    "--served-model-name",
    cls=Names,
    type=Text(),
    multiple=True,
    help="Names of the model in the API. [default: MODEL; of a .gguf file its name, too]",
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
    "--uvicorn-log-level",
    type=click.Choice(("debug", "info", "warning", "error", "critical")),
    default="warning",
    show_default=True,
    help="What the HTTP library itself logs.",
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
    uvicorn_log_level: str,
    access_log: bool,
    **engine: Any,
) -> None:
    """Serve a model behind the OpenAI API: /v1/completions, /v1/chat/completions and more.

    The engine runs in a process of its own and is restarted if it dies. SIGTERM and Ctrl-C let
    running requests finish; a second one does not.

    \b
    Examples:
      ockham serve path/to/model.gguf --port 8000
      ockham serve owner/name --api-key-file keys.txt --host 0.0.0.0
    """
    from ockham.api.server.run import serve as run
    from ockham.api.server.settings import ServerSettings

    _set_up_logging()
    logging.getLogger("uvicorn").setLevel(uvicorn_log_level.upper())
    if os.environ.get("OCKHAM_API_KEY") == "":
        raise ConfigError(
            "OCKHAM_API_KEY is empty, as of a variable that is not set; give it a key, or unset it "
            "to let everybody in."
        )
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


def _set_up_logging() -> None:
    """Short lines on stderr; stdout stays empty."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    for name, level in (("ockham", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
