"""What all generated workloads are: settings with defaults, and requests made from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, ClassVar, TypeVar

import msgspec

from ockham.core.errors import ConfigError
from ockham.lab.workloads.request import Request, check_order

_kinds: dict[str, type[Workload]] = {}
T = TypeVar("T", bound="type[Workload]")


class Workload(msgspec.Struct):
    """A kind of traffic. Its fields are its settings, all of them counts of at least 1.

    The first requests of its sessions have `arrival_s` 0: who sends them spreads them out, at a
    rate that belongs to the measurement.
    """

    name: ClassVar[str]

    def requests(self, seed: int) -> list[Request]:
        """The requests; the same seed gives the same ones."""
        return check_order(self._requests(Random(f"{self.name} {seed}")), self.name)

    def _requests(self, rng: Random) -> Iterator[Request]:
        raise NotImplementedError

    @classmethod
    def summary(cls) -> str:
        """One line for people."""
        return (cls.__doc__ or "").partition("\n")[0]


def workload(cls: T) -> T:
    """Class decorator: makes a kind known by its name."""
    _kinds[cls.name] = cls
    return cls


def workloads() -> dict[str, type[Workload]]:
    """Every kind by its name."""
    return dict(_kinds)


def make_workload(name: str, settings: dict[str, Any] | None = None) -> Workload:
    """A kind of workload with some settings changed. Raises ConfigError for an unknown name or
    setting, or a value that is no count."""
    kind = _kinds.get(name)
    if kind is None:
        raise ConfigError(f"there is no workload {name!r}; there are {', '.join(_kinds)}.")
    settings = settings or {}
    for key, value in settings.items():
        if key not in kind.__struct_fields__:
            raise ConfigError(
                f"the workload {name!r} has no setting {key!r}; it has "
                f"{', '.join(kind.__struct_fields__)}."
            )
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} of the workload {name!r} must be at least 1, got {value!r}.")
    return kind(**settings)
