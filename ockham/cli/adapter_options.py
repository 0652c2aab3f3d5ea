"""vLLM's flags of adapters, as settings of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ockham.api.adapters import ENABLED, OPTIONS, own_adapter_setting
from ockham.cli.command import Option
from ockham.cli.value_types import Integer, Text

F = TypeVar("F", bound=Callable[..., Any])

SECTION = "Adapters"
MODULES = "lora_modules"
_HELP = {
    "max_loras": "Different adapters that the requests which run at once may use. [default: 8]",
    "max_cpu_loras": "Adapters that are kept in memory. [default: those of --max-loras]",
    "max_lora_rank": "Largest rank of an adapter. [default: 16]",
}


def adapter_options(option: Callable[..., Callable[[F], F]]) -> Callable[[F], F]:
    """Adds the flags, by `option`, to a command. It receives them by vLLM's names, and
    `with_adapter_setting` takes them in."""

    def decorate(function: F) -> F:
        for name, help_text in reversed(_HELP.items()):
            flag = "--" + name.replace("_", "-")
            function = option(flag, type=Integer(), section=SECTION, help=help_text)(function)
        return option(
            "--enable-lora/--no-enable-lora",
            default=False,
            section=SECTION,
            help="Let each request have a LoRA adapter of its own.",
        )(function)

    return decorate


def modules_option(
    option: Callable[..., Callable[[F], F]], names: type[Option]
) -> Callable[[F], F]:
    """Adds `--lora-modules` to a command."""
    return option(
        "--lora-modules",
        cls=names,
        type=Text(),
        multiple=True,
        section=SECTION,
        help="Adapters that requests may name as the model: name=path, or JSON "
        '{"name": ..., "path": ...}; the path is a directory of PEFT\'s.',
    )


def with_adapter_setting(settings: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters with the setting that the flags make. Raises ConfigError."""
    own = own_adapter_setting({name: settings.get(name) for name in (ENABLED, *OPTIONS, "adapter")})
    rest = {name: value for name, value in settings.items() if name not in (ENABLED, *OPTIONS)}
    return {**rest, "adapter": own.get("adapter")}
