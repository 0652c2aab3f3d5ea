"""Flags of vLLM that mean nothing here: taken at the values that ask for nothing, else refused.

Their names and values are those that `LLM(...)` takes too (`api.settings.NEUTRAL`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ockham.api.settings import NEUTRAL
from ockham.core.config import EngineConfig

F = TypeVar("F", bound=Callable[..., Any])

_SHORT = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
}
ANY: tuple[Any, ...] = ()
"""Of what is found out here, whatever is said of it."""
ONLY_FLAGS: dict[str, tuple[Any, ...]] = {
    "api_server_count": (1,),
    "enable_auto_tool_choice": (False, True),
    "tool_call_parser": ANY,
    "reasoning_parser": ANY,
    "enable_log_requests": (False,),
    "enable_request_id_headers": (False,),
    "root_path": ("", None),
    "ssl_keyfile": ("", None),
    "ssl_certfile": ("", None),
    "ssl_ca_certs": ("", None),
}
"""The same for flags of vLLM's server that are no settings of an engine."""


def neutral_options(function: F) -> F:
    """Adds these flags to a command, hidden from its help, except those that it has itself. It
    receives none of them."""
    own = {flag for other in getattr(function, "__click_params__", ()) for flag in other.opts}
    for name, accepted in {**NEUTRAL, **ONLY_FLAGS}.items():
        flag = "--" + name.replace("_", "-")
        if name in EngineConfig.__struct_fields__ or flag in own:
            continue
        settings: dict[str, Any] = {
            "hidden": True,
            "expose_value": False,
            "default": None,
            "envvar": "OCKHAM_" + name.upper(),
            "callback": _checked(flag, accepted),
        }
        if all(value is None or isinstance(value, bool) for value in accepted) and any(
            isinstance(value, bool) for value in accepted
        ):
            decorate = click.option(f"{flag}/--no-{flag[2:]}", **settings)
        else:
            short = [_SHORT[name]] if name in _SHORT else []
            decorate = click.option(flag, *short, type=str, **settings)
        function = decorate(function)
    return function


def _checked(flag: str, accepted: tuple[Any, ...]) -> Callable[..., None]:
    spelt = [_spelt(value) for value in accepted]

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is None or accepted == ANY or _spelt(value) in spelt:
            return
        only = " or ".join(repr(each) for each in spelt if each)
        raise click.BadParameter(
            f"{value!r} is not supported: Ockham takes this flag of vLLM only as {only or 'empty'}."
            " Leave it out.",
            ctx,
            param,
            [flag],
        )

    return check


def _spelt(value: Any) -> str:
    """A value as a flag, a variable or a file may spell it."""
    text = "" if value is None else str(value).strip().lower()
    return "" if text == "none" else text
