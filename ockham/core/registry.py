"""Where techniques register themselves; the CLI, the server and the docs list from here."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ockham.core.errors import ConfigError

T = TypeVar("T", bound=type)


@dataclass(frozen=True, slots=True)
class Technique:
    """One registered technique: a class behind a seam, and what it says of itself.

    `exact` techniques never change an output within one numerics id. `books` names the ledger
    entries that it writes. `paper` is the number in the mission's list, or None.
    """

    seam: str
    name: str
    cls: type
    exact: bool
    summary: str
    books: tuple[str, ...] = ()
    paper: str | None = None


SEAMS = {
    "format": "ockham.weights",
    "reuse": "ockham.cache.reuse",
    "keep": "ockham.cache.keep",
    "pattern": "ockham.attention",
    "drafter": "ockham.draft",
    "gate": "ockham.gate",
    "policy": "ockham.schedule",
    "search": "ockham.search",
    "placement": "ockham.place",
}
"""Seam -> the package whose modules register its techniques."""

_techniques: dict[tuple[str, str], Technique] = {}


def register(
    seam: str,
    name: str,
    *,
    exact: bool,
    books: tuple[str, ...] = (),
    paper: str | None = None,
) -> Callable[[T], T]:
    """Class decorator: register a technique. Its summary is the first sentence of its docstring."""
    if seam not in SEAMS:
        raise ConfigError(f"unknown seam {seam!r}; the seams are {', '.join(SEAMS)}.")

    def decorate(cls: T) -> T:
        key = (seam, name)
        if key in _techniques:
            raise ConfigError(f"two techniques call themselves {name!r} at the seam {seam!r}.")
        summary = _first_sentence(cls.__doc__ or "")
        _techniques[key] = Technique(seam, name, cls, exact, summary, books, paper)
        return cls

    return decorate


def _first_sentence(text: str) -> str:
    """However many lines it takes. A capital follows its end: "et al. 2024" does not end it."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph, maxsplit=1)[0]


def _load(seam: str) -> None:
    package = importlib.import_module(SEAMS[seam])
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)


def techniques(seam: str | None = None) -> list[Technique]:
    """Every registered technique, or those of one seam, by seam and name."""
    for name in [seam] if seam else SEAMS:
        _load(name)
    found = [t for (s, _), t in _techniques.items() if seam in (None, s)]
    return sorted(found, key=lambda t: (list(SEAMS).index(t.seam), t.name))


def find(seam: str, name: str) -> Technique:
    """The technique called `name` at `seam`; raises ConfigError with the names that exist.

    A technique lives in the module that bears its name, so that finding one imports no other.
    """
    if (seam, name) not in _techniques:
        module = f"{SEAMS[seam]}.{name}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    if (seam, name) not in _techniques:
        known = ", ".join(t.name for t in techniques(seam)) or "none yet"
        raise ConfigError(f"there is no {seam} called {name!r}; there is: {known}.")
    return _techniques[seam, name]


def make(seam: str, given: str) -> tuple[Technique, Any]:
    """A technique and one object of it, from its name and options: "chunk:recompute_fraction=0.2".

    Options are the fields of its `Options` structure. Raises ConfigError for a name or an option
    that does not exist, or a value of the wrong kind.
    """
    name, *options = given.split(":")
    technique = find(seam, name)
    kind = getattr(technique.cls, "Options", None)
    if kind is None:
        if options:
            raise ConfigError(f"the {seam} {name!r} has no options, got {':'.join(options)!r}.")
        return technique, technique.cls()
    values = dict(option.partition("=")[::2] for option in options)
    known = kind.__struct_fields__
    for option in values:
        if option not in known:
            raise ConfigError(
                f"the {seam} {name!r} has no option {option!r}; it has {', '.join(known)}."
            )
    try:
        return technique, technique.cls(msgspec.convert(values, kind, strict=False))
    except msgspec.ValidationError as error:
        reason = str(error).rstrip(".")
        raise ConfigError(f"the options {':'.join(options)!r} of {name!r}: {reason}.") from error
