"""Which configurations a plan may choose: settings of the engine, and values for each.

Nothing is listed here. Techniques say which values of their options are worth trying
(`Technique.tried`), the engine's config which of its own (`EngineConfig.tries`), and the measured
matrix of pairs (`refused.json`) says what cannot be together.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import SEAMS, find, name_of, techniques
from ockham.weights.block_format import BlockFormat

Value = str | int | float | bool

REFUSED = "refused.json"
"""Pairs of techniques that an engine or a request cannot have together, and why:
`ockham techniques compose --pairs` writes it."""


class Choice(msgspec.Struct, frozen=True):
    """One value of one setting. `technique` is "seam/name" of the one that it names, or None."""

    setting: str
    value: Value
    exact: bool
    technique: str | None = None

    @property
    def chooses(self) -> bool:
        """Whether it takes other tokens and leaves distributions as they are: what a divergence
        between distributions does not see."""
        seam = (self.technique or "").partition("/")[0]
        return not self.exact and seam in SEAMS and SEAMS[seam].chooses


class Point(msgspec.Struct, frozen=True, order=True):
    """A configuration: what it changes of the one that a plan begins with, by setting's name."""

    changes: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, changes: Mapping[str, Value]) -> Point:
        return cls(tuple(sorted(changes.items(), key=lambda pair: pair[0])))

    @property
    def settings(self) -> dict[str, Value]:
        return dict(self.changes)

    def without(self, setting: str) -> Point:
        return Point(tuple(pair for pair in self.changes if pair[0] != setting))

    @property
    def parts(self) -> list[Point]:
        """Each of its changes alone."""
        return [Point((pair,)) for pair in self.changes]

    def config(self, base: EngineConfig) -> EngineConfig:
        """The whole configuration. Raises ConfigError where values contradict each other."""
        fields = {**msgspec.structs.asdict(base), **self.settings}
        try:
            return msgspec.convert(fields, EngineConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{self}: {str(error).rstrip('.')}.") from error

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.changes) or "the default"


class Space(msgspec.Struct, frozen=True):
    """Every choice beside the configuration that a plan begins with, by setting."""

    choices: dict[str, tuple[Choice, ...]]
    refused: dict[tuple[str, str], str]

    @property
    def size(self) -> int:
        """How many choices there are."""
        return sum(map(len, self.choices.values()))

    def choice(self, setting: str, value: Value) -> Choice:
        """The choice of a change. Raises KeyError for one that the space does not have."""
        for each in self.choices.get(setting, ()):
            if each.value == value:
                return each
        raise KeyError(f"{setting}={value}")

    def exact(self, point: Point) -> bool:
        """Whether it never changes an output."""
        return all(self.choice(*pair).exact for pair in point.changes)

    def refusal(self, point: Point) -> str | None:
        """Why some two of its changes cannot be together; None if the matrix knows of no reason."""
        named = [self.choice(*pair).technique for pair in point.changes]
        for one, other in itertools.combinations(sorted(filter(None, named)), 2):
            if (one, other) in self.refused:
                return self.refused[one, other]
        return None

    def products(self, of: Iterable[Point], most: int | None = None) -> Iterator[Point]:
        """Every combination of single choices of different settings that compose, the plain
        configuration first; of at most so many changes."""
        by_setting: dict[str, list[tuple[str, Value]]] = {}
        for single in of:
            for pair in single.changes:
                by_setting.setdefault(pair[0], []).append(pair)
        settings = list(by_setting)
        for size in range(len(settings) + 1 if most is None else min(most, len(settings)) + 1):
            for chosen in itertools.combinations(settings, size):
                for pairs in itertools.product(*(by_setting[name] for name in chosen)):
                    point = Point.of(dict(pairs))
                    if self.refusal(point) is None:
                        yield point

    def only(self, settings: Sequence[str]) -> Space:
        """The space of some settings. Raises ConfigError for one that has no choices."""
        for name in settings:
            if name not in self.choices:
                raise ConfigError(
                    f"a plan does not vary {name!r}; it varies {', '.join(self.choices)}."
                )
        kept = {name: own for name, own in self.choices.items() if name in settings}
        return msgspec.structs.replace(self, choices=kept)

    def exact_only(self) -> Space:
        """The space of what never changes an output."""
        kept = {
            name: tuple(each for each in own if each.exact) for name, own in self.choices.items()
        }
        return msgspec.structs.replace(self, choices={k: own for k, own in kept.items() if own})


def space_of(
    base: EngineConfig,
    *,
    cores: int = 1,
    also: Mapping[str, Sequence[Value]] | None = None,
) -> Space:
    """What may be chosen beside `base`: every technique that one setting names for all requests,
    values of the engine's own settings, fewer threads, and `also`, by setting.

    Searches are not among them, since what they take depends on what is said; nor is what only
    requests ask for, as no configuration turns it on. Raises ConfigError for a setting of `also`
    that does not exist.
    """
    found: dict[str, list[Choice]] = {}
    for seam, own in SEAMS.items():
        if own.setting is None or own.offered or seam == "search":
            continue
        for technique in techniques(seam):
            if own.several and not technique.exact:
                continue
            if issubclass(technique.cls, BlockFormat):
                continue
            exact = technique.exact and own.setting not in base.decide_bits
            label = f"{seam}/{technique.name}"
            found.setdefault(own.setting, []).extend(
                Choice(own.setting, form, exact, label) for form in technique.tried
            )
    for setting, values in base.tries.items():
        exact = setting not in base.decide_bits
        found[setting] = [Choice(setting, value, exact) for value in values]
    threads = base.threads or cores
    found["threads"] = [Choice("threads", n, True) for n in range(1, threads)]
    for setting, given in (also or {}).items():
        if setting not in EngineConfig.__struct_fields__:
            raise ConfigError(
                f"{setting!r} is no setting; there are {', '.join(EngineConfig.__struct_fields__)}."
            )
        found.setdefault(setting, []).extend(_given(base, setting, value) for value in given)
    stands = msgspec.structs.asdict(base)
    kept: dict[str, tuple[Choice, ...]] = {}
    for setting, choices in found.items():
        own_choices = {c.value: c for c in choices if not _same(setting, c.value, stands[setting])}
        if own_choices:
            kept[setting] = tuple(own_choices.values())
    return Space(kept, dict(refused_pairs()))


def _given(base: EngineConfig, setting: str, value: Value) -> Choice:
    """A choice that the user adds: exact only if all that it names is."""
    seam = next((seam for seam, own in SEAMS.items() if own.setting == setting), None)
    if seam is None or not isinstance(value, str) or value.lstrip().startswith("{"):
        exact = setting not in base.decide_bits and (seam is not None or setting in base.tries)
        return Choice(setting, value, exact)
    technique = find(seam, name_of(value))
    exact = technique.exact and setting not in base.decide_bits
    return Choice(setting, value, exact, f"{seam}/{technique.name}")


def _same(setting: str, value: Value, stands: Any) -> bool:
    """Whether a choice is what stands already."""
    return value == stands or (setting == "threads" and stands is None and value == 0)


@cache
def refused_pairs() -> Mapping[tuple[str, str], str]:
    """The pairs that cannot be together, each in the order of its names, with the reason."""
    text = (resources.files(__package__) / REFUSED).read_text("utf-8")
    return {(one, other): why for one, other, why in json.loads(text)}
