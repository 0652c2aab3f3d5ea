"""Flags that choose a workload, and `ockham bench workload`, which writes one to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ockham.cli.options import option, overwrite_option
from ockham.cli.value_types import Integer
from ockham.core.errors import ConfigError
from ockham.core.owned_files import check_output

if TYPE_CHECKING:
    from ockham.lab.workloads import Request

F = TypeVar("F", bound=Callable[..., Any])


def workload_options(function: F) -> F:
    """Adds `--workload`, `--set` and `--vocab-size`; `chosen_workload` takes them in."""
    for decorate in (
        option(
            "--workload",
            default=None,
            metavar="NAME|FILE",
            help="Traffic of a kind (see `ockham bench workload`), or from a file of requests or a "
            "trace of Mooncake's.",
        ),
        option(
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=COUNT",
            help="A setting of the workload, such as sessions=4; may be given more than once.",
        ),
        option(
            "--vocab-size",
            type=Integer(),
            default=1000,
            show_default=True,
            help="Random token ids are below this; no more than the model's vocabulary.",
        ),
    ):
        function = decorate(function)
    return function


def chosen_workload(
    workload: str, settings: tuple[str, ...], vocab_size: int, seed: int, **_: Any
) -> tuple[list[Request], bool]:
    """The requests that the flags choose, and whether they come from a file with its own times.

    Raises ConfigError for what is neither a kind nor a file, and for unknown settings.
    """
    from ockham.lab.workloads import make_workload, read_requests, workloads

    if workload not in workloads() and Path(workload).is_file():
        if settings:
            raise ConfigError("--set changes a generated workload, and a file is what it is.")
        return read_requests(Path(workload), vocab_size), True
    if workload not in workloads():
        raise ConfigError(
            f"{workload!r} is neither a workload ({', '.join(workloads())}) nor a file."
        )
    return make_workload(workload, dict(map(_setting, settings))).requests(seed), False


def _setting(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    try:
        return name.strip().replace("-", "_"), int(value)
    except ValueError:
        raise ConfigError(f"--set {text!r}: write NAME=COUNT, such as sessions=4.") from None


@click.command()
@click.argument("name", required=False)
@option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@overwrite_option
@option(
    "--set", "settings", multiple=True, metavar="NAME=COUNT", help="A setting, such as turns=8."
)
@option(
    "--seed", type=Integer(), default=0, show_default=True, help="The same seed, the same file."
)
def workload(
    name: str | None, output: Path | None, overwrite: bool, settings: tuple[str, ...], seed: int
) -> None:
    """Write the workload NAME, a JSON object per request; without NAME, list what there is."""
    from ockham.lab.workloads import workloads, write_requests

    if name is None:
        for kind_name, kind in workloads().items():
            click.echo(f"{kind_name:<10} {kind.summary()}")
            defaults = zip(kind.__struct_fields__, kind.__struct_defaults__, strict=True)
            click.echo(f"{'':<10} {', '.join(f'{field}={value}' for field, value in defaults)}")
        return
    if output is None:
        raise click.UsageError("name the file to write with --output.")
    if name not in workloads():
        raise ConfigError(f"there is no workload {name!r}; there are {', '.join(workloads())}.")
    check_output(output, overwrite)
    requests, _ = chosen_workload(name, settings, 0, seed)
    click.echo(f"{write_requests(output, requests, overwrite)} requests in {output}", err=True)
