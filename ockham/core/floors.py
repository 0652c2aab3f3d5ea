"""Floors of quality: what an approximate configuration must keep of the exact one."""

from __future__ import annotations

import re

import msgspec

from ockham.core.errors import ConfigError

DEFAULT_FLOORS = "agreement>=0.97, kl<=0.02"
_TERM = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([0-9.eE+-]+)\s*")
_SIDES = {"agreement": ">=", "kl": "<="}


class Floors(msgspec.Struct, frozen=True):
    """`agreement` is the least share of positions where the exact model gives the same token, `kl`
    the largest mean divergence from it, in nats. None: nothing is asked of it."""

    agreement: float | None = None
    kl: float | None = None

    @property
    def text(self) -> str:
        """As it may be given."""
        terms = [
            f"{name}{side}{value:g}"
            for name, side in _SIDES.items()
            if (value := getattr(self, name)) is not None
        ]
        return ", ".join(terms)


def parse_floors(given: str) -> Floors:
    """The floors that a text such as "agreement>=0.97, kl<=0.02" states, in any order, each at most
    once. Raises ConfigError."""
    found: dict[str, float] = {}
    for term in given.split(","):
        match = _TERM.fullmatch(term)
        if match is None or match[1] not in _SIDES:
            raise ConfigError(
                f"the floor {given!r}: {term.strip()!r} is none; write agreement>=SHARE, kl<=NATS, "
                "or both with a comma between them."
            )
        name, side, number = match[1], match[2], match[3]
        if side != _SIDES[name]:
            raise ConfigError(f"the floor {given!r}: write {name}{_SIDES[name]}{number}.")
        if name in found:
            raise ConfigError(f"the floor {given!r} states {name} twice; leave one out.")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"the floor {given!r}: {number!r} is no number.") from None
        low, high = (0.5, 0.999) if name == "agreement" else (0.0001, 0.5)
        if not low <= value <= high:
            raise ConfigError(
                f"the floor {given!r}: {name} must lie in [{low:g}, {high:g}], got {number}."
            )
        found[name] = value
    return Floors(**found)
