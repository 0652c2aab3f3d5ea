"""How the server behaves, apart from the engine behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ockham.api.server.fields import UNKNOWN_FIELDS, UnknownFields
from ockham.core.errors import ConfigError

MAX_JSON_DEPTH = 500
"""What Python's own recursion allows whoever walks through a body."""
_ABOVE_ZERO = (
    *("max_body_bytes", "max_bodies_bytes", "max_prompts", "max_messages", "max_connections"),
    *("max_json_items", "max_json_values", "max_json_depth", "header_timeout_s"),
    *("body_timeout_s", "idle_timeout_s", "request_timeout_s", "keep_alive_s"),
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the HTTP side. Times are in seconds.

    `adapters`: directories of the adapters that are served from the start, by name.
    `max_queue`: sequences (prompts times n) that may wait while the engine's `max_num_seqs` run;
    more are answered 429. `shutdown_timeout_s`: how long running requests may go on after SIGTERM.
    `keep_alive_s`: a stream that is silent for so long sends a comment. `stall_s`: `/health` fails
    when work waits and no step completes for so long. `cache_text`: whether `/v1/cache` shows the
    beginnings of cached prompts that have no `cache_salt`. Each of several `api_keys` is a tenant;
    `admin_api_key` opens everything too, and alone sees what is of all tenants. `unknown_fields`:
    whether fields of a body that no request has are refused, passed over and named in the answer's
    header and the log, or passed over. `log_requests`: a request's line in the log says its tokens
    and times as well. `normalize_prompts`: whether what an agent changes in each prompt, although
    it tells the model nothing, is left out of it. `throughput_s`: how often the log says what the
    engine does, while it works. `batch_dir`: where files and batches are kept,
    None where there are none; `batch_dir_bytes`: most bytes of all of them. `otlp_traces_endpoint`:
    where traces are sent, None for nowhere.

    What may come in (docs/limits.md says what is answered beyond): `max_connections`: requests that
    are served at a time, None for what the file descriptors allow; `header_timeout_s`,
    `body_timeout_s` and `idle_timeout_s`: for a request's head, for its body, and between two
    requests of one connection; `max_bodies_bytes`: bodies of all requests being served;
    `max_json_items`: texts (names of fields too), lists and objects of one body;
    `max_json_values`: entries of its lists and objects; `max_json_depth`: how deep they stand in
    one another.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    adapters: dict[str, str] = field(default_factory=dict)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_api_key: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    max_queue: int = 1024
    max_body_bytes: int = 16 << 20
    max_bodies_bytes: int = 256 << 20
    max_prompts: int = 1024
    max_messages: int = 4096
    max_json_items: int = 100_000
    max_json_values: int = 1_000_000
    max_json_depth: int = 100
    max_connections: int | None = None
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 30.0
    request_timeout_s: float = 3600.0
    shutdown_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    stall_s: float = 30.0
    access_log: bool = True
    log_requests: bool = False
    cache_text: bool = False
    unknown_fields: UnknownFields = "refuse"
    normalize_prompts: bool = True
    batch_dir: Path | None = None
    batch_dir_bytes: int = 4 << 30
    throughput_s: float = 10.0
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must lie in [0, 65535], got {self.port}.")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0, got {value}.")
        if self.max_json_depth > MAX_JSON_DEPTH:
            raise ConfigError(
                f"max_json_depth must be at most {MAX_JSON_DEPTH}, got {self.max_json_depth}."
            )
        for name in ("max_queue", "shutdown_timeout_s", "stall_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.unknown_fields not in UNKNOWN_FIELDS:
            raise ConfigError(
                f"unknown_fields must be one of {', '.join(UNKNOWN_FIELDS)}, got "
                f"{self.unknown_fields!r}."
            )
        admin = () if self.admin_api_key is None else (self.admin_api_key,)
        for key in (*self.api_keys, *admin):
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise ConfigError(
                    "An API key must be printable ASCII without spaces around it; one that was "
                    "given is not."
                )
        if self.admin_api_key in self.api_keys:
            raise ConfigError(
                "The administrator's key is one of the API keys too; give it to nobody else."
            )

    @property
    def tenant_keys(self) -> tuple[str, ...]:
        """The keys that are tenants, each once; none where there is nobody to keep apart by key."""
        keys = tuple(dict.fromkeys(self.api_keys))
        return keys if len(keys) > 1 else ()

    @property
    def has_admin(self) -> bool:
        """Whether what concerns all tenants is for the administrator alone."""
        return self.admin_api_key is not None or bool(self.tenant_keys)
