"""`ockham list`: what models, packed weights and stores take on this machine."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from ockham.cli.options import option
from ockham.core.units import readable

NOTHING = "There is nothing yet; `ockham pull smollm2` brings a small model."


def places(function: Any) -> Any:
    """Adds the flags that say where caches are."""
    weight_cache = option(
        "--weight-cache",
        default=None,
        metavar="DIR",
        help="Where packed weights are kept, if not at the usual place.",
    )
    kv_store = option(
        "--kv-store",
        default=None,
        metavar="DIR",
        help="A directory of keys and values that engines were given by this flag.",
    )
    return kv_store(weight_cache(function))


@click.command(name="list")
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@places
def list_kept(as_json: bool, weight_cache: str | None, kv_store: str | None) -> None:
    """List what is kept on this machine, with sizes and when it was used last: models of the
    Hugging Face hub, models in packages, packed weights, and with --kv-store a store of prompts."""
    from ockham.cli.kept import everything

    kept = everything(weight_cache, kv_store)
    if as_json:
        entries = [
            {
                "name": each.name,
                "kind": each.kind,
                "model": each.model or None,
                "bytes": each.nbytes,
                "used": each.used_s,
                "path": str(each.path),
                "detail": each.detail or None,
            }
            for each in kept
        ]
        click.echo(json.dumps({"kept": entries}, indent=2))
        return
    if not kept:
        click.echo(NOTHING)
        return
    widest = max(len(each.name) for each in kept)
    for each in kept:
        used = "never" if each.used_s is None else f"{_age(time.time() - each.used_s)} ago"
        click.echo(
            f"{each.name:<{widest}}  {each.kind:<7}  {readable(each.nbytes):>10}  used {used:<15}"
            f"  {each.detail}".rstrip()
        )
    click.echo(f"{readable(sum(each.nbytes for each in kept))} in all")


def _age(seconds: float) -> str:
    """How long ago, in the unit that suits it."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' * (count > 1)}"
    return "a moment"
