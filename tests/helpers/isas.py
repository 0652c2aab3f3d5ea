"""Which instruction sets the tests may use: what the processor has, up to what OCKHAM_ISA names.

A test that runs for several instruction sets goes through this module, so that it is skipped, not
failed, where the processor lacks one. `OCKHAM_ISA=avx2` before a whole run hides the better ones,
as if the processor lacked them.
"""

from __future__ import annotations

import os

import pytest

from ockham.kernels.native import core

NAMES = ("portable", "avx2", "avx512")
_CEILING = os.environ.get("OCKHAM_ISA", "")  # before any test sets the variable for itself

AVAILABLE: tuple[str, ...] = ()
"""The names of those that run here, the least first; none where the native core was not built."""
if core is not None:
    AVAILABLE = tuple(core.isa_name(isa) for isa in core.Isa if core.supported(isa))


def need(name: str) -> None:
    """Skips the running test where the instruction set `name` cannot run."""
    if name not in NAMES:
        raise ValueError(f"no instruction set is called {name!r}")
    if core is None:
        pytest.skip("the native core was not built")
    if name not in AVAILABLE:
        hidden = f" or OCKHAM_ISA={_CEILING} hides it" if _CEILING else ""
        pytest.skip(f"this processor lacks {name}{hidden}")


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backends that are made in this test run `name`; skips the test where it cannot run."""
    need(name)
    monkeypatch.setenv("OCKHAM_ISA", name)
    return name


def params() -> list[object]:
    """A parameter of `parametrize` for each `core.Isa`; those that cannot run here are skipped."""
    if core is None:
        return []
    return [
        pytest.param(
            core.parse_isa(name),
            id=name,
            marks=pytest.mark.skipif(name not in AVAILABLE, reason="not on this processor"),
        )
        for name in NAMES
    ]
