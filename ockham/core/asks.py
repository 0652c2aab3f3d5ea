"""`Ask`: what a request asks of one technique.

A technique that requests may ask for has a subclass of `Ask` as `Ask` in its class, as it has
`Options` for the engine: a typed field for each setting, each with a default. An ask is checked
when it is made. Its *key* is the seam and the technique, "search/best". Callers ask by the
technique's name (`registry.asked_by`), and nothing else of the package spells that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec

from ockham.core.errors import ConfigError, InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

NATURAL_BOUNDARY = "\n\n"
"""Where a text without other marks is cut."""


class Ask(
    msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What a request asks of one technique: only to be applied, unless a subclass has fields.

    A caller asks by a field that bears the technique's name: true, or an object of the fields.
    """

    named_at: ClassVar[str | None] = None
    """The request's field whose value is the technique's name, if there is one for its seam; the
    ask's own fields stand beside it then."""
    found: ClassVar[tuple[str, ...]] = ()
    """Fields that no caller sets: they are found in the prompt."""

    def check_params(self, params: Any) -> None:
        """Raise InvalidRequest for sampling parameters (`SamplingParams`) that this excludes."""

    def check_prompt(self, tokens: int) -> None:
        """Raise InvalidRequest unless this makes sense for a prompt of so many tokens."""

    def sequences(self, choices: int) -> int:
        """How many sequences run at once for a request of so many choices."""
        return choices

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """The fields that callers set."""
        return tuple(name for name in cls.__struct_fields__ if name not in cls.found)


def merged(options: T, ask: Ask) -> T:
    """A technique's options with what a request asks in their place, where it asks anything. Raises
    as making the options does."""
    given = {
        field: asked
        for field in options.__struct_fields__
        if (asked := getattr(ask, field, None)) is not None
    }
    return msgspec.structs.replace(options, **given)


class ReuseAsk(Ask, kw_only=True, frozen=True):
    """What a request asks of an approximate reuse: `reuse` names the technique."""

    named_at: ClassVar[str | None] = "reuse"


class ChunksAsk(ReuseAsk, kw_only=True, frozen=True):
    """What a request asks of a technique that takes over marked parts of a prompt, its chunks.

    `chunks` are runs [start, stop) of the prompt's tokens, in order and apart from one another, as
    `chunk_separator` and a chat's parts mark them in text: see `ockham.text.marking`.
    """

    found: ClassVar[tuple[str, ...]] = ("chunks",)

    chunk_separator: str = NATURAL_BOUNDARY
    chunks: list[tuple[int, int]] = []

    def __post_init__(self) -> None:
        if not self.chunk_separator:
            raise InvalidRequest("chunk_separator must not be empty.", "chunk_separator")

    def check_prompt(self, tokens: int) -> None:
        end = 0
        for start, stop in self.chunks:
            if not end <= start < stop <= tokens:
                raise InvalidRequest(
                    f"the chunk [{start}, {stop}) of a prompt of {tokens} tokens is empty, out of "
                    "order, or outside of it.",
                    "chunks",
                )
            end = stop


class AdapterAsk(Ask, kw_only=True, frozen=True):
    """What a request asks of a technique that adapts the model: the adapter of this name, whose
    files lie in the directory `path` of the engine's machine.

    A caller over HTTP names it as the model. Whoever serves the caller knows the path.
    """

    named_at: ClassVar[str | None] = "model"
    found: ClassVar[tuple[str, ...]] = ("name", "path")

    name: str = ""
    path: str = ""


class Asked(NamedTuple):
    """A technique's name, and what is asked of it."""

    name: str
    ask: Ask


def asked_at(seam: str, *asks: Mapping[str, Ask]) -> list[Asked]:
    """What is asked of the techniques of a seam."""
    return [
        Asked(key.partition("/")[2], ask)
        for each in asks
        for key, ask in each.items()
        if key.partition("/")[0] == seam
    ]


def ask_like(
    options: type[msgspec.Struct], name: str, methods: Mapping[str, Any] | None = None
) -> type[Ask]:
    """The `Ask` of the technique `name`, with the fields of its `options`. What a request leaves
    out is as the engine's options have it; what cannot be is refused as making the options refuses
    it. `methods` are those of `Ask` that the technique has its own of."""

    def check(self: Ask) -> None:
        try:
            merged(options(), self)
        except ConfigError as error:
            raise InvalidRequest(f"{name}: {error}", name) from None

    fields = [(field.name, field.type | None, None) for field in msgspec.structs.fields(options)]
    made = msgspec.defstruct(
        f"{options.__name__.removesuffix('Options')}Ask",
        fields,
        bases=(Ask,),
        namespace={"__post_init__": check, **(methods or {})},
        kw_only=True,
        frozen=True,
    )
    assert issubclass(made, Ask), "it is a base"
    return made
