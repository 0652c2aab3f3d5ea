"""`ockham calibrate`: find a technique's settings for each head of a model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from ockham.cli.command import Command
from ockham.cli.options import option
from ockham.cli.report import duration
from ockham.cli.value_types import Integer


@click.command(cls=Command)
@click.argument("technique")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help='Text, or .jsonl with "text" or "messages", of the kind that will be read; may be given '
    "more than once. By default, reports in English; for the lab models, their tasks.",
)
@option("--texts", type=Integer(1), default=4, help="How many are read.", show_default=True)
@option("--context", type=Integer(512), default=4096, help="Tokens of a text.", show_default=True)
@option("--seed", type=int, default=0, show_default=True)
@option("--threads", type=Integer(1), default=None, help="[default: all cores]")
@option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
def calibrate(as_json: bool, **settings: Any) -> None:
    """Find what TECHNIQUE should do with each head of MODEL, and write that to the file OUT.

    TECHNIQUE is a name, with options behind it if need be (`ockham techniques` lists them all).
    MODEL (a directory, a GGUF file, a hub name, `lab` or `smollm2`) reads texts with full
    attention, and what each head looks at there is compared with what the technique would let it
    see. Nothing is trained.
    """
    from ockham.training.calibrate import CalibrateSettings
    from ockham.training.calibrate import calibrate as run

    chosen = CalibrateSettings(**settings)
    done = run(chosen, partial(click.echo, err=True))
    if as_json:
        found = json.loads(done.found.result({}))
        click.echo(json.dumps({"setting": done.setting, "found": found}, indent=2))
    else:
        for line in done.found.described():
            click.echo(line)
    click.echo(f"wrote {chosen.out} in {duration(done.seconds)}. Use {done.setting}.", err=True)
