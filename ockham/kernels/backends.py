"""The backends by name."""

from __future__ import annotations

from ockham.core.errors import ConfigError
from ockham.core.seams import Layout
from ockham.kernels.base import Backend
from ockham.kernels.native import core, reason

BACKENDS = ("cpu", "reference")
"""Best first: "auto" takes the first that runs on this machine."""


def find_layout_of(name: str = "auto") -> Layout:
    """How the backend of this name lays out weights. Raises as `find_backend` does."""
    _check(name)
    if name != "reference" and core is not None:
        from ockham.kernels.cpu import CpuBackend

        return CpuBackend.layout
    from ockham.kernels.reference.backend import ReferenceBackend

    return ReferenceBackend.layout


def find_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """A backend by name, with so many threads (by default one for each allowed core).

    Raises ConfigError with the names that exist, or with what keeps the named one from running
    here."""
    _check(name)
    if name != "reference" and core is not None:
        from ockham.kernels.cpu import CpuBackend

        return CpuBackend(threads)
    if threads is not None:
        raise ConfigError(
            "threads is a setting of the backend 'cpu'; the reference backend takes NumPy's, which "
            "OMP_NUM_THREADS or OPENBLAS_NUM_THREADS sets. Leave threads out."
        )
    from ockham.kernels.reference.backend import ReferenceBackend

    return ReferenceBackend()


def _check(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        raise ConfigError(f"there is no backend {name!r}; there is: auto, {', '.join(BACKENDS)}.")
    if name == "cpu" and core is None:
        raise ConfigError(f"the backend 'cpu' does not run here: {reason}")
