"""Cells that change places once, so that keys that are alike stand side by side."""

from __future__ import annotations

import hashlib

from ockham.core.arrays import Ints
from ockham.core.seams import Keeping
from ockham.core.state_key import altered


class Reordering(Keeping):
    """All cells stay; those of `reorders` stand in another order once the last of them is computed.

    What stands there then is a function of the tokens up to there. It is kept for all who ask for
    the same cells of the same tokens, whole or not at all: under a key of its own, `key`.
    """

    def __init__(self, name: str, cells: range) -> None:
        self.name = name
        self._cells = cells

    @property
    def reorders(self) -> range | None:
        """See `Keeping`."""
        return self._cells

    def border(self, tokens: int) -> int | None:
        """See `Keeping`."""
        return self._cells.stop if tokens < self._cells.stop else None

    def most_cells(self, tokens: int) -> int:
        """See `Keeping`."""
        return tokens

    def keep(self, group: int, places: Ints) -> Ints | None:
        """See `Keeping`: all."""
        return None


def key(salt: str, cells: range, tokens: Ints) -> str:
    """Under which reordered cells are kept, of state that has the key `salt`: no two texts share
    the beginning of what is kept, since the order of its cells is of all of it."""
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()
    return altered(salt, f"alike/{cells.start}-{cells.stop}/{digest}")
