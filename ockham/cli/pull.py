"""`ockham pull`: have a model on this machine before it is used."""

from __future__ import annotations

import click

from ockham.cli.options import option
from ockham.cli.value_types import ModelName
from ockham.core.units import readable


@click.command()
@click.argument("model", type=ModelName())
@option("--revision", default=None, help="Branch, tag or commit of a model on the hub.")
def pull(model: str, revision: str | None) -> None:
    """Download MODEL from the Hugging Face hub, or what is newer there than in the cache.

    MODEL is a short name such as qwen3:4b, owner/name, or owner/name:Q4_K_M. Of a repository of
    GGUF files the best that fits this machine's memory is taken. The path goes to stdout.
    """
    from ockham.model.checkpoint.gguf.names import part_name
    from ockham.model.hub import resolve

    path = resolve(model, revision, refresh=True)
    files = list(path.rglob("*")) if path.is_dir() else [path]
    part = part_name(path)
    if part is not None:
        files = list(path.parent.glob(f"{part[0]}-*-of-{part[2]:05}.gguf"))
    nbytes = sum(file.stat().st_size for file in files if file.is_file())
    click.echo(f"{model} is here: {path.name}, {readable(nbytes)}", err=True)
    click.echo(str(path))
