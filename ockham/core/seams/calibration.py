"""What a technique learns of a model's heads from texts that the model reads: `Calibration`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from ockham.core.arrays import Floats


class QueryBlock(msgspec.Struct, frozen=True):
    """64 neighbouring rows of a text in one layer without a window, which begin at a multiple of
    64, and all that they see."""

    layer: int
    queries: Floats
    """(64, heads, head_dim), rotated and scaled."""
    keys: Floats
    """(n, kv_heads, head_dim), rotated, up to the key of the last of the rows."""


class Calibration(Protocol):
    """Measures what a technique's settings would do to each head of one model."""

    least_tokens: int = 0
    """So many tokens of texts, in whole blocks of 64, it must see at least."""

    def saw(self, block: QueryBlock) -> None:
        """The model has read these rows, with full attention."""
        ...

    def result(self, about: Mapping[str, Any]) -> bytes:
        """The file that the technique reads; `about` says what was read, for people."""
        ...

    def described(self) -> list[str]:
        """What was found, in words: one line each."""
        ...


class Calibrated(Protocol):
    """A technique whose settings for a model are found by `ockham calibrate`: one that has this
    method, whatever its seam."""

    def calibration(self) -> Calibration:
        """One that has seen nothing yet, of this object's options."""
        ...

    def setting(self, file: str) -> str:
        """The technique with the options that read a file which was written."""
        ...
