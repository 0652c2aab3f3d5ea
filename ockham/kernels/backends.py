"""The backends by name."""

from __future__ import annotations

from ockham.core.errors import ConfigError
from ockham.kernels.base import Backend

BACKENDS = ("reference",)
"""Best first: "auto" takes the first that runs on this machine."""


def find_backend(name: str = "auto") -> Backend:
    """A backend by name; raises ConfigError with the names that exist."""
    if name not in ("auto", *BACKENDS):
        raise ConfigError(f"there is no backend {name!r}; there is: auto, {', '.join(BACKENDS)}.")
    from ockham.kernels.reference import ReferenceBackend

    return ReferenceBackend()
