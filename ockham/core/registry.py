"""Where techniques register themselves; the CLI, the server and the docs list from here."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown

T = TypeVar("T", bound=type)


class Technique(msgspec.Struct, frozen=True):
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

    @property
    def options(self) -> type | None:
        """The structure of its options, which its class names `Options`; None if it has none."""
        kind: type | None = getattr(self.cls, "Options", None)
        return kind

    @property
    def forms(self) -> tuple[str, ...]:
        """How it may be named: by its name, and with the options that its class lists."""
        return (self.name, *getattr(self.cls, "forms", ()))

    @property
    def tried(self) -> tuple[str, ...]:
        """The forms that a planner tries: with the values that its options name as worth trying
        (`tries`), each with each; those that its class lists, where they name none."""
        tries: Mapping[str, tuple[Any, ...]] = getattr(self.options, "tries", {})
        forms: Iterable[str] = self.forms
        if tries:
            forms = (
                f"{self.name}:{','.join(map('='.join, zip(tries, map(str, values), strict=True)))}"
                for values in itertools.product(*tries.values())
            )
        by_options: dict[str, str] = {}
        for form in forms:  # "fp4" is "fp4:32"
            by_options.setdefault(repr(read_options(self, form)), form)
        return tuple(by_options.values())

    @property
    def saves(self) -> tuple[str, ...]:
        """What it saves, of `SAVINGS`: what its class says, else what its seam's techniques do."""
        said: tuple[str, ...] = getattr(self.cls, "saves", SEAMS[self.seam].saves or ())
        return said

    @property
    def ask(self) -> type[Ask] | None:
        """What a request may ask of it; None if it is not asked by requests."""
        return getattr(self.cls, "Ask", None)


class Seam(msgspec.Struct, frozen=True):
    """One extension point. `package` holds the modules that register its techniques; `setting` is
    the field of `EngineConfig` that names the techniques of an engine, None where no setting does
    (a request asks for one, or the engine cannot choose one yet). `several` says whether it may
    name more than one. A request may ask for one technique of a seam that is `asked`; where it is
    `offered` too, the setting says which one, and it applies to nobody who does not ask. Techniques
    that are not exact, at a seam that `alters_state`, leave other state than the model alone; at
    one that `chooses`, they take other tokens, and how likely the model finds each stays. `saves`
    is what its techniques save that do not say it themselves; None where each must."""

    package: str
    setting: str | None = None
    several: bool = False
    asked: bool = False
    offered: bool = False
    alters_state: bool = False
    chooses: bool = False
    saves: tuple[str, ...] | None = None


SAVINGS = {
    "weight bytes": "bytes of weights that a step reads",
    "rounding error": "what rounding weights to few bits costs in quality",
    "state bytes": "keys and values that are held or read",
    "attention": "work of attention while a prompt is read",
    "products": "products of the model, for rows that need fewer of them or a smaller model",
    "steps": "steps for as many tokens",
    "prompt rows": "rows of prompts whose state is known",
    "tokens": "tokens that are drawn for one answer",
    "queueing": "waiting behind other requests",
}
"""What a technique may save (`saves` of its class, a tuple; empty for what others are compared
with), in words."""

SEAMS = {
    "format": Seam("ockham.weights", "quantization", saves=("weight bytes",)),
    "transform": Seam("ockham.weights.transforms"),
    "correction": Seam("ockham.weights.corrections", saves=("rounding error",)),
    "reuse": Seam("ockham.cache.reuse", "reuse", several=True, asked=True, saves=("prompt rows",)),
    "keep": Seam(
        "ockham.cache.keep", "keep", asked=True, alters_state=True, saves=("state bytes",)
    ),
    "pattern": Seam("ockham.attention", "attention_pattern", asked=True, alters_state=True),
    "drafter": Seam("ockham.draft", "speculative_config", several=True, saves=("steps",)),
    "verifier": Seam(
        "ockham.draft.verifying", "verifier", asked=True, chooses=True, saves=("steps",)
    ),
    "gate": Seam("ockham.gate", "gate", asked=True, alters_state=True, saves=("products",)),
    "policy": Seam("ockham.schedule", "scheduling_policy"),
    "search": Seam("ockham.search", "search", asked=True, chooses=True),
    "adapter": Seam(
        "ockham.adapt",
        "adapter",
        asked=True,
        offered=True,
        alters_state=True,
        saves=("weight bytes",),
    ),
    "placement": Seam("ockham.place"),
}
"""Every seam, by the name that techniques register at."""


def settings_that_alter_state() -> dict[str, str]:
    """The fields of `EngineConfig` that name one technique for all requests, which leaves other
    state than the model alone or reads less of it, and their seams."""
    return {
        each.setting: seam
        for seam, each in SEAMS.items()
        if each.alters_state and each.setting is not None and not each.offered
    }


_OPTION = re.compile(r"\s*\w+\s*=")
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
        unknown = set(getattr(cls, "saves", ())) - set(SAVINGS)
        if unknown:
            raise ConfigError(
                f"the technique {name!r} saves {', '.join(sorted(unknown))}; it may save "
                f"{', '.join(SAVINGS)}."
            )
        summary = _first_sentence(cls.__doc__ or "")
        _techniques[key] = Technique(seam, name, cls, exact, summary, books, paper)
        return cls

    return decorate


def _first_sentence(text: str) -> str:
    """However many lines it takes. A capital follows its end: "et al. 2024" does not end it."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph, maxsplit=1)[0]


@cache
def _load(seam: str) -> None:
    """Import the modules of a seam's package, the first time."""
    package = importlib.import_module(SEAMS[seam].package)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)


def techniques(seam: str | None = None) -> list[Technique]:
    """Every registered technique, or those of one seam, by seam and name."""
    for name in [seam] if seam else SEAMS:
        _load(name)
    found = [t for (s, _), t in _techniques.items() if seam in (None, s)]
    return sorted(found, key=lambda t: (list(SEAMS).index(t.seam), t.name))


def first(seam: str, suits: Callable[[Technique], bool]) -> Technique | None:
    """The first technique of a seam, by name, that `suits`; None if none does. Modules behind it
    are not imported, which would take a start as long as all that it needs."""
    for name in sorted(_modules(seam)):
        importlib.import_module(f"{SEAMS[seam].package}.{name}")
        technique = _techniques.get((seam, name))
        if technique is not None and suits(technique):
            return technique
    return None


def find(seam: str, name: str) -> Technique:
    """The technique called `name` at `seam`; raises ConfigError with the names that exist.

    A technique lives in the module that bears its name, so that finding one imports no other.
    """
    if (seam, name) not in _techniques:
        module = f"{SEAMS[seam].package}.{name}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    if (seam, name) not in _techniques:
        known = ", ".join(t.name for t in techniques(seam)) or "none yet"
        raise ConfigError(f"there is no {seam} called {name!r}; there is: {known}.")
    return _techniques[seam, name]


def split(given: str) -> list[str]:
    """A list of techniques, each with its options: "prefix,chunk:min_tokens=8,share=0.5" is two. A
    comma before `option=` separates options, any other one techniques."""
    found: list[str] = []
    for piece in given.split(","):
        if found and _OPTION.match(piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return [each.strip() for each in found]


def name_of(given: str) -> str:
    """The name of a technique that is given with its options."""
    return given.partition(":")[0].strip()


def make(seam: str, given: str, options: Mapping[str, Any] | None = None) -> Any:
    """One object of a technique, from its name and options: "chunk:min_tokens=8,share=0.5".

    Options are the fields of the technique's `Options`, a msgspec structure or a dataclass; one
    value without a name is the first of them ("chunk:8"). They may be separated by colons, too.
    `options` are further ones, whose values are typed already. A technique that has `Options` is
    called with one, another with nothing. Raises ConfigError for a name or an option that does not
    exist, or a value of the wrong kind.
    """
    technique = find(seam, name_of(given))
    read = read_options(technique, given, options)
    return technique.cls() if read is None else technique.cls(read)


def read_options(
    technique: Technique, given: str, options: Mapping[str, Any] | None = None
) -> Any | None:
    """The `Options` of a technique as `make` reads them; None if it has none."""
    _, colon, text = (part.strip() for part in given.partition(":"))
    seam, name, kind = technique.seam, technique.name, technique.options
    if kind is None:
        unknown = ", ".join([*([text] if colon else ()), *(options or ())])
        if unknown or colon:
            raise ConfigError(f"the {seam} {name!r} has no options, got {unknown!r}.")
        return None
    values = {**(_named(text, technique) if colon else {}), **(options or {})}
    for option in values:
        if option not in option_names(kind):
            raise ConfigError(
                f"the {seam} {name!r} has no option {option!r}; it has "
                f"{', '.join(option_names(kind))}."
            )
    try:
        return msgspec.convert(values, kind, strict=not colon)
    except msgspec.ValidationError as error:
        told = text or ", ".join(f"{key}={value!r}" for key, value in values.items())
        reason = _with_choices(str(error).rstrip("."), kind)
        raise ConfigError(f"the options {told!r} of {name!r}: {reason}.") from error


def _with_choices(reason: str, kind: type) -> str:
    """msgspec's reason; of a value that is none of those allowed, it says which are."""
    found = re.fullmatch(r"Invalid enum value (.*) - at `\$\.(\w+)`", reason)
    if found is None:
        return reason
    hint = get_type_hints(kind)[found[2]]
    literals = [each for each in (hint, *get_args(hint)) if get_origin(each) is Literal]
    allowed = [repr(value) for literal in literals for value in get_args(literal)]
    return f"{found[2]} must be one of {', '.join(allowed)}, got {found[1]}" if allowed else reason


def option_names(kind: type | None) -> list[str]:
    """The fields of an `Options`, in order; none of None."""
    if kind is None:
        return []
    if issubclass(kind, msgspec.Struct):
        return list(kind.__struct_fields__)
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} is no structure of options"
    return [field.name for field in dataclasses.fields(kind)]


SEPARATOR = r",|:(?=\s*\w+\s*=)"
"""Of options. A colon that no `name=` follows is part of a value ("pattern=2:4")."""


def _named(text: str, technique: Technique) -> dict[str, str]:
    """Options as text, by name."""
    values: dict[str, str] = {}
    for number, piece in enumerate(re.split(SEPARATOR, text)):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals and number == 0 and name:
            name, value = option_names(technique.options)[0], name
        elif not equals:
            raise ConfigError(
                f"the options {text!r} of {technique.name!r}: {piece!r} is none; write name=value."
            )
        if name in values:
            raise ConfigError(f"the options {text!r} of {technique.name!r}: {name} is given twice.")
        values[name] = value
    return values


@cache
def _modules(seam: str) -> frozenset[str]:
    """The modules of a seam's package: where a technique may live, found without importing one."""
    package = importlib.import_module(SEAMS[seam].package)
    return frozenset(module.name for module in pkgutil.iter_modules(package.__path__))


def ask_of(seam: str, name: str) -> type[Ask] | None:
    """What a request may ask of a technique, whose name may be anything that a caller sent; None if
    there is none of that name, or it is not asked by requests."""
    if seam not in SEAMS or name not in _modules(seam):
        return None
    try:
        return find(seam, name).ask
    except ConfigError:  # a module that is no technique
        return None


def modules_of_techniques() -> frozenset[str]:
    """The names that techniques may have, found without importing one."""
    return frozenset[str]().union(*map(_modules, SEAMS))


@cache
def asks_at(seam: str) -> dict[str, type[Ask]]:
    """The techniques of a seam that requests may ask for."""
    return {t.name: t.ask for t in techniques(seam) if t.ask is not None}


def asked_by(field: str) -> tuple[str, type[Ask]] | None:
    """The key and the ask of the technique that a request asks for by a field of its name."""
    for seam in SEAMS:
        kind = ask_of(seam, field)
        if kind is not None and kind.named_at is None:
            return f"{seam}/{field}", kind
    return None


def asks_by_name(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of techniques by fields of their names, by key. Fields of other names, and
    those that are None, are left out."""
    found = {name: asked_by(name) for name, value in given.items() if value is not None}
    return {asked[0]: given[name] for name, asked in found.items() if asked is not None}


def asks_by_method(seam: str, given: Any) -> dict[str, Any]:
    """What is asked of one technique of a seam by a field of the seam's name, by key: the
    technique's name, or an object with it as `method` and its settings beside it. Nothing if
    `given` is None. Raises InvalidRequest for anything else, or a technique that requests cannot
    ask for."""
    if given is None:
        return {}
    method, settings = given, {}
    if isinstance(given, Mapping):
        settings = {name: value for name, value in given.items() if name != "method"}
        method = given.get("method")
    known = ", ".join(asks_at(seam))
    if not isinstance(method, str):
        raise InvalidRequest(
            f'{seam} must be a name, or an object with one as "method", of: {known}; got '
            f"{shown(given)}.",
            seam,
        )
    if ask_of(seam, method) is None:
        raise InvalidRequest(f"there is no {seam} {shown(method)}; there is: {known}.", seam)
    return {f"{seam}/{method}": settings or True}


def make_ask(key: str, value: Any) -> Ask:
    """What a request asks of the technique of a key, from true, or an object of its ask's fields.

    A technique that does not exist is left to the engine to refuse, which knows those that it has.
    Raises InvalidRequest for a field that does not exist, or has a wrong value.
    """
    if isinstance(value, Ask):
        return value
    seam, _, name = key.partition("/")
    kind = ask_of(seam, name)
    if kind is None:
        return Ask()
    said = f"{kind.named_at}={name!r}" if kind.named_at else name
    if value is True:
        return kind()
    if not isinstance(value, Mapping):
        fields = f", or an object of {', '.join(kind.settings())}" if kind.settings() else ""
        raise InvalidRequest(f"{name} must be true or false{fields}, got {shown(value)}.", name)
    for field in value:
        if field not in kind.__struct_fields__:
            within = str(field) if kind.named_at else f"{name}.{field}"
            raise InvalidRequest(f"{said} takes no {field}; leave it out.", within)
    try:
        return msgspec.convert(dict(value), kind)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, InvalidRequest):
            own = kind.named_at or cause.param is None
            raise (cause if own else _within(name, cause)) from None
        reason, _, field = str(error).replace("`", "'").partition(" - at '$.")
        field = field.rstrip("'")
        if field and not kind.named_at:
            field = f"{name}.{field}"
        raise InvalidRequest(
            f"{field or said} is wrong: {reason[:1].lower()}{reason[1:].rstrip('.')}.",
            field or name,
        ) from error


def _within(name: str, error: InvalidRequest) -> InvalidRequest:
    """The error of a field that stands in the object of a technique."""
    text, param = str(error), str(error.param)
    said = f"{name}.{text}" if text.startswith(f"{param} ") else f"{name}: {text}"
    return InvalidRequest(said, f"{name}.{param}", error.code)


def make_asks(given: Mapping[str, Any]) -> dict[str, Ask]:
    """What a request asks of techniques, by key. False and None ask for nothing. Raises
    InvalidRequest."""
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InvalidRequest(
            f"asks must map techniques to what is asked of them, got {shown(given)}.", "asks"
        )
    return {
        key: make_ask(key, value)
        for key, value in given.items()
        if value is not None and value is not False
    }
