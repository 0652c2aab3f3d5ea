"""Commands and groups whose help is in sections, and which guess what was misspelt."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

SECTIONS = (
    "Sampling",
    "Model",
    "Adapters",
    "Speculation",
    "Cache",
    "Memory",
    "Scheduling",
    "Search",
)
"""Of the flags that several commands have, in the order in which a help shows them."""
OTHER = "Other"
"""Section of the engine's flags that have none of these."""

WIDEST_HELP = 160
"""Columns of a help, at most; a narrower terminal gives fewer."""


class Option(click.Option):
    """An option with the section of the help that it stands in; None is the command's own.

    Its help may be a function, which is called when the help is shown: what it lists may be slow to
    find.
    """

    def __init__(
        self,
        *args: Any,
        section: str | None = None,
        help: str | Callable[[], str] | None = None,
        **settings: Any,
    ) -> None:
        self._listing = help if callable(help) else None
        settings["help"] = None if callable(help) else help
        super().__init__(*args, **settings)
        self.section = section

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if self._listing is not None:
            self.help = self._listing()
        return super().get_help_record(ctx)


class Command(click.Command):
    """A command whose help shows its own flags first, then those of the engine by section."""

    def __init__(self, *args: Any, own: str = "Options", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.own = own

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", None) or self.own
                records.setdefault(section, []).append(record)
        for section in (self.own, *SECTIONS, OTHER):
            if section in records:
                with formatter.section(section):
                    formatter.write_dl(records[section])


class Group(click.Group):
    """A group that names the command that was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        known = self.list_commands(ctx)
        if name and not name.startswith("-") and name not in known:
            ctx.fail(
                f"there is no command {name!r}.{did_you_mean(name, known)} "
                f"'{ctx.command_path} --help' lists them."
            )
        return super().resolve_command(ctx, args)


command = functools.partial(click.command, cls=Command)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A sentence that begins with a space and names the nearest of the known words, or nothing."""
    near = difflib.get_close_matches(word, known, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""
