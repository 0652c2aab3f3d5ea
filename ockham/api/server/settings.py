"""How the server behaves, apart from the engine behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ockham.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the HTTP side. Times are in seconds.

    `max_queue`: sequences (prompts times n) that may wait while the engine's `max_num_seqs` run;
    more are answered 429. `shutdown_timeout_s`: how long running requests may go on after SIGTERM.
    `keep_alive_s`: a stream that is silent for so long sends a comment. `stall_s`: `/health` fails
    when work waits and no step completes for so long. `cache_text`: whether `/v1/cache` shows the
    beginnings of cached prompts that have no `cache_salt`. Each of several `api_keys` is a tenant;
    `admin_api_key` opens everything too, and alone sees what is of all tenants.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_api_key: str | None = field(default=None, repr=False)
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

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must lie in [0, 65535], got {self.port}.")
        for name in ("max_body_bytes", "max_prompts", "request_timeout_s", "keep_alive_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in ("max_queue", "shutdown_timeout_s", "stall_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}.")
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
