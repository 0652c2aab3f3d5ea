"""`--config FILE.yaml`: the flags of a command in a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ockham.cli.command import did_you_mean


def read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make a file's values the command's defaults; refuse keys that are no flag of the command."""
    if path is None:
        return
    import yaml

    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{path} cannot be read ({reason}).", ctx, param) from error
    if content is None:
        return
    if not isinstance(content, dict):
        raise click.BadParameter(f"{path} must hold 'flag: value' lines.", ctx, param)
    # By the spelling of the flag itself: `--json` is `json`, whatever its parameter is called.
    flags = {
        spelling.removeprefix("--").replace("-", "_"): other
        for other in ctx.command.params
        if isinstance(other, click.Option) and other.name not in (None, "config", "help")
        for spelling in other.opts
        if spelling.startswith("--")
    }
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in flags:
            known = sorted(flag.replace("_", "-") for flag in flags if not flags[flag].hidden)
            raise click.BadParameter(
                f"{path} sets {key!r}, which is no flag of '{ctx.command_path}'."
                f"{did_you_mean(name.replace('_', '-'), known)} '{ctx.command_path} --help' lists "
                "them.",
                ctx,
                param,
            )
        several = flags[name].multiple and isinstance(value, (str, dict))
        values[str(flags[name].name)] = [value] if several else value
    ctx.default_map = {**(ctx.default_map or {}), **values}


def parse_yaml(text: str) -> Any:
    """The content of YAML 1.2, in which `off`, `no` and `12:30` are the words that they look like
    (YAML 1.1 has them as false, false and 750). Raises ValueError or yaml.YAMLError."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}

    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
        (
            "float",
            r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            list("-+0123456789."),
        ),
    ):
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})\\Z"), first
        )
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
