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
"""Those with kernels of their own for everything."""
EVERY = (*NAMES, "amx")
"""With amx, which has products of its own alone, and is what runs by default where there is one.
Those of bf16 have bits of their own, all else has the bits of avx512."""
_CEILING = os.environ.get("OCKHAM_ISA", "")  # before any test sets the variable for itself

HERE: tuple[str, ...] = ()
"""Which of EVERY run here, the least first; none where the native core was not built."""
if core is not None:
    HERE = tuple(name for name in EVERY if core.supported(core.parse_isa(name)))
AVAILABLE = tuple(name for name in NAMES if name in HERE)
"""Which of NAMES run here."""


def need(name: str) -> None:
    """Skips the running test where the instruction set `name` cannot run."""
    if name not in EVERY:
        raise ValueError(f"no instruction set is called {name!r}")
    if core is None:
        pytest.skip("the native core was not built")
    if name not in HERE:
        hidden = f" or OCKHAM_ISA={_CEILING} hides it" if _CEILING else ""
        pytest.skip(f"this processor lacks {name}{hidden}")


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backends that are made in this test run `name`; skips the test where it cannot run."""
    need(name)
    monkeypatch.setenv("OCKHAM_ISA", name)
    return name


def params() -> list[object]:
    """A parameter of `parametrize` for each `core.Isa` of NAMES, skipped where it cannot run."""
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
