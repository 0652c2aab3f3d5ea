"""The fields of requests by which techniques are asked for, whichever techniques there are.

A technique's `Ask` (see `core.asks`) says what the fields are called and of which type they are. A
body that holds one is read as its kind of request with that field beside the others, so that it is
checked, and refused, as they are.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from ockham.api.server.timings import AsksToSee
from ockham.core.errors import InvalidRequest
from ockham.core.registry import asked_by, asks_at, modules_of_techniques

NAMED = ("reuse",)
"""Fields that name a technique of the seam of that name; its ask's fields stand beside them."""


class TakesAsks(AsksToSee, kw_only=True, forbid_unknown_fields=True):
    """A request that may ask for techniques."""

    asking: ClassVar[tuple[str, ...]] = ()
    """The fields that it has of techniques."""

    def asks_by_name(self) -> dict[str, Any]:
        """What is asked of techniques by fields of their names."""
        return {
            name: getattr(self, name)
            for name in self.asking
            if getattr(self, name) is not None and asked_by(name) is not None
        }

    def asks_beside(self, named: str) -> dict[str, Any]:
        """The fields that stand beside `named`, which names a technique. Raises InvalidRequest if
        there are some, and it does not."""
        found = {
            name: getattr(self, name)
            for name in self.asking
            if getattr(self, name) is not None and asked_by(name) is None
        }
        if found and getattr(self, named) is None:
            name = next(iter(found))
            takers = " or ".join(
                f"{named}={technique!r}"
                for technique, kind in asks_at(named).items()
                if name in kind.settings()
            )
            raise InvalidRequest(f"{name} needs {takers} beside it.", name)
        return found


def with_asks(kind: type, names: Iterable[Any]) -> type:
    """The type of a request whose body holds fields of these names: `kind`, with those of them that
    techniques have."""
    if not issubclass(kind, TakesAsks):
        return kind
    own = _own(kind)
    if own.issuperset(names):
        return kind
    # A body may have any number of names: few of them are looked up.
    possible = modules_of_techniques().union(
        *(ask.settings() for seam in NAMED for ask in asks_at(seam).values())
    )
    found = sorted(name for name in (possible - own).intersection(names) if _type_of(name))
    return _widened(kind, tuple(found)) if found else kind


@lru_cache(maxsize=64)
def _own(kind: type[TakesAsks]) -> frozenset[str]:
    """What a request may hold of fields that are no technique's."""
    return frozenset((*kind.__struct_fields__, *getattr(kind, "neutral", {})))


@lru_cache(maxsize=64)
def _widened(kind: type[TakesAsks], names: tuple[str, ...]) -> type:
    return msgspec.defstruct(
        kind.__name__,
        [(name, _type_of(name), None) for name in names],
        bases=(kind,),
        namespace={"asking": names},
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _type_of(name: str) -> Any:
    """The type of a technique's field, or None; None if no technique has it."""
    found = asked_by(name)
    if found is not None:
        return bool | found[1] | None if found[1].settings() else bool | None
    for seam in NAMED:
        for kind in asks_at(seam).values():
            if name in kind.settings():
                return typing.get_type_hints(kind)[name] | None
    return None
