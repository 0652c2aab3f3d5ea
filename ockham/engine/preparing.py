"""What a request needs before it can be taken: the grammar of its output, and its adapter."""

from __future__ import annotations

from concurrent.futures import Future, wait
from typing import Any

import msgspec

from ockham.core.seams import SearchState
from ockham.engine.adapters import HeldAdapter
from ockham.engine.structured.grammar import Grammar


class Prepared(msgspec.Struct, frozen=True):
    """What was made ready for a request; None for what it does not need. `search` answers it in
    place of what the request or the engine's setting names: that of a caller who measures, and
    says himself what the sequences are told."""

    grammar: Grammar | None = None
    adapter: HeldAdapter | None = None
    search: SearchState | None = None


NOTHING_PREPARED = Prepared()


class Preparation(msgspec.Struct, frozen=True):
    """The same on its way, made in threads. An adapter may have to wait until another request ends,
    so only callers that go on stepping may wait for it."""

    grammar: Future[Grammar] | None = None
    adapter: Future[HeldAdapter] | None = None

    def done(self) -> bool:
        return all(each is None or each.done() for each in (self.grammar, self.adapter))

    def wait(self, longest_s: float) -> None:
        """Sleep until it is done, but no longer than so."""
        coming: list[Future[Any]] = [
            each for each in (self.grammar, self.adapter) if each is not None
        ]
        wait(coming, longest_s)

    def result(self) -> Prepared:
        """Waits. Raises InvalidRequest if the request can never be served."""
        return Prepared(
            None if self.grammar is None else self.grammar.result(),
            None if self.adapter is None else self.adapter.result(),
        )
