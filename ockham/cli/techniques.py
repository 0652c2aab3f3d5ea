"""`ockham techniques`: what is registered at each seam."""

from __future__ import annotations

import json
from itertools import groupby

import click

from ockham.cli.options import option


@click.command()
@option("--json", "as_json", is_flag=True, help="Write a JSON list.")
def techniques(as_json: bool) -> None:
    """List the techniques by seam: whether each is exact, what it does, what it books."""
    from ockham.core import registry

    found = registry.techniques()
    if as_json:
        records = [
            {
                "seam": technique.seam,
                "name": technique.name,
                "exact": technique.exact,
                "summary": technique.summary,
                "books": list(technique.books),
                "paper": technique.paper,
            }
            for technique in found
        ]
        click.echo(json.dumps(records, indent=2))
        return
    for seam, group in groupby(found, key=lambda technique: technique.seam):
        click.echo(f"{seam}:")
        for technique in group:
            kind = "exact" if technique.exact else "approximate"
            click.echo(f"  {technique.name:<14} {kind:<12} {technique.summary}")
            details = [f"books {', '.join(technique.books)}"] if technique.books else []
            details += [f"paper {technique.paper}"] if technique.paper else []
            if details:
                click.echo(f"  {'':<14} {'':<12} {'; '.join(details)}")
