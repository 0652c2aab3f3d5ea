"""`ockham serve [MODEL]...`: models behind a page and several APIs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ockham.api.adapters import read_modules
from ockham.cli.adapter_options import modules_option
from ockham.cli.auto import auto_option, with_plan
from ockham.cli.command import command
from ockham.cli.default_model import for_chats
from ockham.cli.model_table import model_options, read_table
from ockham.cli.options import Names, engine_config, engine_options_of_several, option
from ockham.cli.value_types import Integer, Text
from ockham.core import logs
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.api.server.fields import UnknownFields


@command(own="Server")
@auto_option
@engine_options_of_several
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@option("--port", type=Integer(), default=8000, show_default=True, help="0 takes a free one.")
@option(
    "--served-model-name",
    cls=Names,
    type=Text(),
    multiple=True,
    help="Names of the model in the API. [default: MODEL; of a .gguf file its name, too]",
)
@modules_option(option, Names)
@model_options
@option(
    "--api-key",
    type=Text(),
    multiple=True,
    show_envvar=True,
    help="Key that every route but /, /health, /ping, /docs and /openapi.json asks for; may be "
    "given more than once.",
)
@option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with one key a line, which keeps them out of the list of processes.",
)
@option(
    "--admin-api-key",
    type=Text(),
    show_envvar=True,
    help="Key of the administrator: opens every route, and alone sees and touches the cache of all "
    "tenants, and the metrics. Each of several API keys is a tenant.",
)
@option(
    "--cors-origin",
    "--allowed-origins",
    type=Text(),
    multiple=True,
    help="Origin whose pages may call the API, '*' for any; may be given more than once, or as a "
    "JSON list. [default: none]",
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
    "--max-bodies-bytes",
    type=Integer(),
    default=256 << 20,
    show_default=True,
    help="Bytes of the bodies of all requests that are served at a time; more are answered 503.",
)
@option(
    "--max-prompts",
    type=Integer(),
    default=1024,
    show_default=True,
    help="Most prompts of one completions request.",
)
@option(
    "--max-messages",
    type=Integer(),
    default=4096,
    show_default=True,
    help="Most messages of one chat.",
)
@option(
    "--max-json-items",
    type=Integer(),
    default=100_000,
    show_default=True,
    help="Most texts, lists and objects of one request body; names of fields count as texts.",
)
@option(
    "--max-json-values",
    type=Integer(),
    default=1_000_000,
    show_default=True,
    help="Most entries of all lists and objects of one request body, such as token ids.",
)
@option(
    "--max-json-depth",
    type=Integer(),
    default=100,
    show_default=True,
    help="How deep lists and objects of a request body may stand in one another.",
)
@option(
    "--max-connections",
    type=Integer(),
    default=None,
    help="Requests that are served at a time; more are answered 503, except /health, /ping and "
    "/metrics. [default: 4096, or what 'ulimit -n' allows]",
)
@option(
    "--header-timeout",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds in which a connection's request must begin and its headers arrive.",
)
@option(
    "--body-timeout",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds in which a request's body must arrive; then it is answered 408.",
)
@option(
    "--idle-timeout",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds that a connection is kept open for the client's next request.",
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
    "--normalize-prompts/--no-normalize-prompts",
    default=True,
    show_default=True,
    help="Whether prompts in /v1/messages lose what Claude Code changes in each of them: a line of "
    "accounting, and a countdown of tokens. The cache finds their beginnings again without these.",
)
@option(
    "--batch-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for uploaded files and batches (/v1/files, /v1/batches), which go on after a "
    "restart. [default: none, and no such routes]",
)
@option(
    "--batch-dir-bytes",
    type=Integer(),
    default=4 << 30,
    show_default=True,
    help="Most bytes of all files there.",
)
@option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
    help="What the log says at least; lines of single requests are of level info.",
)
@option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object a line: time, level, logger, message, request_id "
    "and fields.",
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
@option(
    "--log-requests/--no-log-requests",
    default=False,
    show_default=True,
    help="Whether that line also says the request's tokens (prompt, cached, generated, drafted), "
    "the time to the first, tokens per second, and how it ended.",
)
@option(
    "--otlp-traces-endpoint",
    type=Text(),
    default=None,
    metavar="URL",
    help="OpenTelemetry collector that gets a span for each request, by OTLP over HTTP: "
    "http://127.0.0.1:4318. Needs the packages of the extra 'otel'.",
)
def serve(
    *,
    auto: bool,
    host: str,
    port: int,
    served_model_name: tuple[str, ...],
    lora_modules: tuple[str, ...],
    embedding: tuple[str, ...],
    models: Any,
    keep_alive: float,
    models_max: int | None,
    models_memory_bytes: int | None,
    more_models: tuple[str, ...],
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    admin_api_key: str | None,
    cors_origin: tuple[str, ...],
    max_queue: int,
    max_body_bytes: int,
    max_bodies_bytes: int,
    max_prompts: int,
    max_messages: int,
    max_json_items: int,
    max_json_values: int,
    max_json_depth: int,
    max_connections: int | None,
    header_timeout: float,
    body_timeout: float,
    idle_timeout: float,
    request_timeout: float,
    shutdown_timeout: float,
    sse_keep_alive: float,
    stall_timeout: float,
    cache_text: bool,
    unknown_fields: UnknownFields,
    normalize_prompts: bool,
    batch_dir: Path | None,
    batch_dir_bytes: int,
    log_level: str,
    log_format: str,
    uvicorn_log_level: str,
    access_log: bool,
    log_requests: bool,
    otlp_traces_endpoint: str | None,
    **engine: Any,
) -> None:
    """Serve models: a page to chat on at /, and the APIs of OpenAI, Anthropic and Ollama.

    Each engine runs in a process of its own and is restarted if it dies. One model stays loaded; of
    several, each is loaded when a request names it. SIGTERM and Ctrl-C let running requests finish;
    a second one does not.

    \b
    Examples:
      ockham serve path/to/model.gguf --port 8000
      ockham serve owner/name --api-key-file keys.txt --host 0.0.0.0
      ockham serve small.gguf large.gguf --embedding path/to/encoder --keep-alive 10m
    """
    from ockham.api.server.run import serve as run
    from ockham.api.server.settings import ServerSettings

    _set_up_logging(log_format, log_level)
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
        adapters=read_modules(lora_modules),
        api_keys=(*api_key, *_read_keys(api_key_file)),
        admin_api_key=admin_api_key,
        cors_origins=_read_origins(cors_origin),
        max_queue=max_queue,
        max_body_bytes=max_body_bytes,
        max_bodies_bytes=max_bodies_bytes,
        max_prompts=max_prompts,
        max_messages=max_messages,
        max_json_items=max_json_items,
        max_json_values=max_json_values,
        max_json_depth=max_json_depth,
        max_connections=max_connections,
        header_timeout_s=header_timeout,
        body_timeout_s=body_timeout,
        idle_timeout_s=idle_timeout,
        request_timeout_s=request_timeout,
        shutdown_timeout_s=shutdown_timeout,
        keep_alive_s=sse_keep_alive,
        stall_s=stall_timeout,
        cache_text=cache_text,
        unknown_fields=unknown_fields,
        normalize_prompts=normalize_prompts,
        batch_dir=batch_dir,
        batch_dir_bytes=batch_dir_bytes,
        access_log=access_log,
        log_requests=log_requests,
        otlp_traces_endpoint=otlp_traces_endpoint,
    )
    table = read_table(
        engine,
        more_models=more_models,
        embedding=embedding,
        models=models,
        keep_alive=keep_alive,
        models_max=models_max,
        models_memory_bytes=models_memory_bytes,
        served_model_name=served_model_name,
        lora_modules=lora_modules,
    )
    if auto and table is not None:
        raise ConfigError(
            "--auto takes the plan of one model, and several are served; give each its plan's "
            "settings in the table of --models."
        )
    config = engine_config(**with_plan(for_chats(engine), auto)) if table is None else None
    # A key has no business in the environment of the engine, or of what that may start.
    for name in ("OCKHAM_API_KEY", "OCKHAM_ADMIN_API_KEY"):
        os.environ.pop(name, None)
    if table is not None:
        from ockham.api.server.run_several import serve_several

        asyncio.run(serve_several(table, settings))
    elif config is not None:
        asyncio.run(run(config, settings))


def _read_origins(given: tuple[str, ...]) -> tuple[str, ...]:
    """Origins one by one, and as the JSON list that vLLM's --allowed-origins takes."""
    origins: list[str] = []
    for text in given:
        try:
            origins += msgspec.json.decode(text, type=list[str]) if text[:1] == "[" else [text]
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"--cors-origin {text!r} is no JSON list of origins ({error})."
            ) from error
    return tuple(origins)


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


def _set_up_logging(form: str, level: str) -> None:
    """Lines on stderr, of this level and above, the engine's too; stdout stays empty."""
    least = logging.getLevelNamesMapping()[level.upper()]
    others = max(least, logging.WARNING)
    logs.set_up(form, {"ockham": least, "uvicorn": others, "opentelemetry": others})
    logs.leave_word(form, level)
