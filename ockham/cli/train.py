"""`ockham train`: learn what serves a model, from the model itself."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from ockham.cli.command import Group
from ockham.cli.options import option
from ockham.cli.report import duration
from ockham.cli.value_types import Integer

RULES = ("kvzap", "locret")


@click.group(cls=Group)
def train() -> None:
    """Learn what a model's state may be spared, from the model itself."""


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--rule",
    "method",
    type=click.Choice(RULES),
    default="kvzap",
    show_default=True,
    help="Linear heads (kvzap), or heads with an inner layer (locret).",
)
@option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help='Text, or .jsonl with "text" or "messages"; may be given more than once. The lab models '
    "need none.",
)
@option(
    "--rows", type=Integer(512), default=16_000, help="Tokens to learn from.", show_default=True
)
@option("--context", type=Integer(16), default=1000, help="Tokens of a text.", show_default=True)
@option(
    "--steps", type=Integer(1), default=1000, help="For each layer (locret).", show_default=True
)
@option("--seed", type=int, default=0, show_default=True)
@option("--threads", type=Integer(1), default=None, help="Of PyTorch.  [default: all cores]")
@option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
def keep(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Learn which tokens later ones of MODEL look at, and write that to OUT.

    MODEL (a directory, a GGUF file, a hub name, `lab` or `smollm2`) reads texts twice, by Ockham's
    engine; what it looks at to say a text again is what is learned. When it was interrupted, the
    same command goes on. It needs the extra: pip install 'ockham[train]'.
    """
    from ockham.training.keep import KeepSettings, check, train_keep

    chosen = KeepSettings(**settings)
    check(chosen)
    if threads is not None and chosen.method == "locret":
        import torch

        torch.set_num_threads(threads)
    trained = train_keep(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps({"rule": chosen.method, **trained.scores}, indent=2))
    else:
        for line in described(trained.scores):
            click.echo(line)
    use = f"--keep {chosen.method}:heads={chosen.out}"
    click.echo(f"wrote {chosen.out} in {duration(trained.seconds)}. Serve with {use}.", err=True)


def described(scores: dict[str, Any]) -> list[str]:
    """What was found, in words."""
    return [
        f"of {scores['held_out_tokens']:,} held-out tokens, the heads explain "
        f"{scores['explained']:.0%} of the variance of how much they are looked at"
    ]
