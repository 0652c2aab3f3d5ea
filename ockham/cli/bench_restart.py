"""`ockham bench restart`: what a prompt costs after a restart, with its state on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.report import duration
from ockham.cli.spread import spread
from ockham.cli.value_types import Integer


@command()
@option("--input-len", type=Integer(16), default=2000, help="Prompt tokens.", show_default=True)
@option("--rounds", type=Integer(1), default=5, help="Restarts.", show_default=True)
@option(
    "--directory",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=None,
    help="Where to make the store, on the disk to be measured; by default among temporary files.",
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def restart(
    input_len: int, rounds: int, directory: Path | None, as_json: bool, **kwargs: Any
) -> None:
    """Time to the first token of a prompt: computed, from the pool, and after a restart from disk.

    A restart is a new engine in this process, which has answered a prompt of five tokens.
    """
    from ockham.lab.restart import measure_restart

    config = engine_config(**kwargs)
    if config.kv_store is not None:
        raise click.UsageError("the store is made for the measurement; use --directory.")
    with tempfile.TemporaryDirectory(prefix="ockham-kv-", dir=directory) as made:
        result = measure_restart(config, Path(made), input_len, rounds)
    cold, cold_interval = result.ratio(result.cold_s, result.disk_bytes_per_s)
    cached, cached_interval = result.ratio(result.cached_s, result.cached_bytes_per_s)
    if as_json:
        report = {
            **msgspec.to_builtins(result),
            "cold_ratio": [cold, cold_interval],
            "cached_ratio": [cached, cached_interval],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    rows = [
        ("computed, once", [result.computed_s]),
        ("warm hit, from the pool", result.warm_s),
        ("after a restart, from disk", result.cold_s),
        ("the same, files still in memory", result.cached_s),
    ]
    click.echo(f"prompt of {input_len} tokens; {result.pages} pages, {result.nbytes / 1e6:.1f} MB")
    for what, seconds in rows:
        values = spread(seconds)
        click.echo(
            f"{what:<34} {duration(values['median'])} "
            f"({duration(values['min'])} to {duration(values['max'])})"
        )
    for what, ratio, interval, rates in (
        ("from disk", cold, cold_interval, result.disk_bytes_per_s),
        ("files in memory", cached, cached_interval, result.cached_bytes_per_s),
    ):
        between = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        click.echo(
            f"{what}: {ratio:.2f}{between} times a warm hit and its bytes at "
            f"{spread(rates)['median'] / 1e9:.2f} GB/s"
        )
