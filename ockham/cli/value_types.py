"""Values of flags: what they are read as, and what a shell completes."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from ockham.core.durations import duration_s
from ockham.core.errors import ConfigError
from ockham.core.state_dtype import CODED, PLAIN, canonical


def quantizations() -> list[str]:
    """The forms that `--quantization` takes for any model."""
    from ockham.model.packed.packing import quantizations as all_forms

    return all_forms()


class Integer(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """An integer, which may be short for a large one: 1k is 1,000 and 1K is 1,024, as in vLLM."""

    name = "integer"
    _units: typing.ClassVar = {
        letter: base**power
        for letters, base in (("kmgt", 1000), ("KMGT", 1024))
        for power, letter in enumerate(letters, 1)
    }

    def __init__(self, minimum: int | None = None) -> None:
        self.minimum = minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = self._number(value, param, ctx)
        if self.minimum is not None and number < self.minimum:
            self.fail(f"it must be at least {self.minimum}, got {value!r}.", param, ctx)
        return number

    def _number(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        text = str(value).strip().replace("_", "")
        unit = self._units.get(text[-1:])
        try:
            if unit is None:
                return int(text)
            scaled = float(text[:-1]) * unit
            if not scaled.is_integer():
                raise ValueError
            return int(scaled)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not an integer; write 4096, 4k (4,000) or 4K (4,096).", param, ctx
            )


class ModelName(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """A model's directory, file or name. A shell completes files, names of the hub's models that
    are on this machine, and names that are known."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from ockham.model.hub import BUILT_IN, cached_names
        from ockham.model.known_models import EMBEDDING, KNOWN

        known = (*cached_names(), *BUILT_IN, *KNOWN, *EMBEDDING)
        names = [name for name in known if name.startswith(incomplete)]
        if not names:
            return [CompletionItem(incomplete, type="file")]
        # A shell shows either the words that it is given or files, so that these are words too.
        files = [
            f"{path}/" if path.is_dir() else str(path)
            for path in sorted(Path().glob(incomplete + "*"))
            if not path.name.startswith(".")
        ]
        return [CompletionItem(word) for word in (*names, *files)]


class KeptName(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """The name of something that `ockham list` lists. A shell completes models of the hub, and what
    stands for all of a kind."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from ockham.model.hub import cached_names

        names = (*cached_names(), "packed", "store")
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Quantization(ModelName):
    """The name of a weight format, which a shell completes. `named_format` checks it."""

    name = "format"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in quantizations() if name.startswith(incomplete)]


class Dtype(click.Choice[str]):
    """A dtype. vLLM's other names are taken for the one here that holds all their values."""

    _same: typing.ClassVar = {"float16": "float32", "half": "float32", "float": "float32"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        taken = self._same.get(value, value)
        if value in ("float16", "half"):
            click.echo(
                f"ockham: {value} has no kernels of its own: its values are held in float32, "
                "exactly.",
                err=True,
            )
        return super().convert(taken, param, ctx)


class StateDtype(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """A type of keys and values, or one for each as in k=int8,v=int4."""

    name = "dtype"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return "auto" if value == "auto" else canonical(str(value))
        except ConfigError as error:
            self.fail(f"{error}", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = ("auto", *PLAIN, *CODED)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class TokenIds(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """Token ids as '1,2,3', or a list in a configuration file."""

    name = "ids"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        parts = value if isinstance(value, list) else str(value).strip("[] ").split(",")
        try:
            return [int(part) for part in parts]
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a list of token ids; write 1,2,3.", param, ctx)


class Shares(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """Numbers as '0.25,0.5', or a list in a configuration file; none of ''."""

    name = "shares"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            return tuple(float(part) for part in parts if part != "")
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a list of numbers; write 0.25,0.5.", param, ctx)


class LogitBias(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """Token id -> bias as a JSON object, or a mapping in a configuration file."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[int, float]:
        try:
            biases = value if isinstance(value, Mapping) else json.loads(value)
            return {int(token): float(bias) for token, bias in biases.items()}
        except (AttributeError, TypeError, ValueError):
            self.fail(
                f'{value!r} does not give token ids their biases; write {{"42": -100}}.', param, ctx
            )


class Json(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """An object of a structure's fields as JSON, or a mapping in a configuration file."""

    name = "json"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, self.kind):
            return value
        try:
            if isinstance(value, str):
                return msgspec.json.decode(value, type=self.kind)
            return msgspec.convert(value, self.kind)
        except (msgspec.MsgspecError, ValueError) as error:
            self.fail(f"{value!r} cannot be used: {str(error).rstrip('.')}.", param, ctx)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """Seconds, as a number or as a duration like 5m or 1h30m; infinite for what is below 0."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value) if isinstance(value, (int, float)) else duration_s(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        return math.inf if seconds < 0 else seconds


class Text(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """A string of a flag that may be repeated. Its environment variable is one string, or a JSON
    list of them: text to stop at may well hold spaces, at which click would split it."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def split_envvar_value(self, rv: str) -> list[str]:
        if rv.lstrip().startswith("["):
            try:
                return [str(value) for value in json.loads(rv)]
            except ValueError:
                pass
        return [rv]


class TextOrMapping(Text):
    """Text as it is, or a mapping in a configuration file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, dict) else str(value)
