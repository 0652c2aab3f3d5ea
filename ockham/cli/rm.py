"""`ockham rm`: free what models, packed weights and stores take on this machine."""

from __future__ import annotations

import sys

import click

from ockham.cli.list import places
from ockham.cli.options import option
from ockham.cli.value_types import KeptName
from ockham.core.errors import ConfigError
from ockham.core.units import readable


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", type=KeptName())
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@places
def rm(names: tuple[str, ...], yes: bool, weight_cache: str | None, kv_store: str | None) -> None:
    """Remove what is kept under each NAME, as `ockham list` names it.

    A model's name removes its files from the Hugging Face hub's cache, where other programs find
    them too, and its packed weights. 'packed' removes all packed weights; 'store', with
    --kv-store, all prompts of that store. Files that are not known to be Ockham's, or the hub's,
    are never removed.
    """
    from ockham.cli.kept import Kept, meant, packages, packed, stores
    from ockham.model.hub import BUILT_IN

    kept = [*packages(), *packed(weight_cache), *stores(kv_store)]
    found: dict[tuple[str, str], Kept] = {}
    for name in names:
        if name in BUILT_IN:
            raise ConfigError(f"{name} is a part of Ockham: `pip uninstall ockham` removes it.")
        these = meant(name, kept)
        if not these:
            raise ConfigError(
                f"nothing is kept under the name {name!r}; `ockham list` shows what is."
            )
        found |= {(each.name, str(each.path)): each for each in these}
    for each in found.values():
        if each.remove is None:
            click.echo(f"{each.name} stays: {each.detail}.", err=True)
    removed = [each for each in found.values() if each.remove is not None]
    if not removed:
        return
    for each in removed:
        click.echo(f"{each.name}  {readable(each.nbytes)}  {each.path}", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                "nothing is removed unasked, and nobody can be asked here; give --yes."
            )
        click.confirm(f"Remove {'it' if len(removed) == 1 else 'these'}?", abort=True, err=True)
    freed = 0
    for each in removed:
        assert each.remove is not None, "only such are here"
        freed += each.remove()
    click.echo(f"freed {readable(freed)}")
