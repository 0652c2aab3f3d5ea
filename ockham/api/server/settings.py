"""How the server behaves, apart from the engine behind it."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.api.server.fields import UNKNOWN_FIELDS, UnknownFields
from ockham.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the HTTP side. Times are in seconds.

    `max_queue`: sequences (prompts times n) that may wait while the engine's `max_num_seqs` run;
    more are answered 429. `shutdown_timeout_s`: how long running requests may go on after SIGTERM.
    `keep_alive_s`: a stream that is silent for so long sends a comment. `stall_s`: `/health` fails
    when work waits and no step completes for so long. `cache_text`: whether `/v1/cache` shows the
    beginnings of cached prompts that have no `cache_salt`. `unknown_fields`: whether fields of a
    body that no request has are refused, passed over and named in the answer's header and the log,
    or passed over. `throughput_s`: how often the log says what the engine does, while it works.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_queue: int = 1024
    max_body_bytes: int = 16 << 20
    max_prompts: int = 1024
    request_timeout_s: float = 3600.0
    shutdown_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    stall_s: float = 30.0
    access_log: bool = True
    cache_text: bool = False
    unknown_fields: UnknownFields = "refuse"
    throughput_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must lie in [0, 65535], got {self.port}.")
        for name in (
            "max_body_bytes",
            "max_prompts",
            "request_timeout_s",
            "keep_alive_s",
            "throughput_s",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in ("max_queue", "shutdown_timeout_s", "stall_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.unknown_fields not in UNKNOWN_FIELDS:
            raise ConfigError(
                f"unknown_fields must be one of {', '.join(UNKNOWN_FIELDS)}, got "
                f"{self.unknown_fields!r}."
            )
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise ConfigError(
                    "An API key must be printable ASCII without spaces around it; one that was "
                    "given is not."
                )
