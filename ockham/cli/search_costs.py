"""`ockham techniques budget` and `price`: what searches should spend, and what they will."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option, unless_given
from ockham.cli.report import duration, quantity
from ockham.cli.value_types import Integer
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.lab.allocation import Way


@command()
@click.argument("model", default="lab")
@option("--task", default="steps", show_default=True, help="Whose items are answered.")
@option("--items", type=Integer(8), default=120, show_default=True, help="Half of them judge.")
@option("--samples", type=Integer(2), default=16, show_default=True, help="Of each, at most.")
@option("--first", type=Integer(2), default=4, show_default=True, help="That tell the difficulty.")
@option("--loss", type=float, default=0.0, show_default=True, help="Of right answers, at most.")
@option(
    "--extract", default="Answer: (.+)", show_default=True, help="What of a text is its answer."
)
@option("--temperature", type=float, default=1.0, show_default=True)
@option("--lora", default=None, metavar="ADAPTER", help="An adapter that is applied to MODEL.")
@option("--seed", type=int, default=0, show_default=True)
@option("--threads", type=Integer(1), default=None)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def budget(model: str, lora: str | None, threads: int | None, as_json: bool, **given: Any) -> None:
    """Learn how many samples a problem needs, by how many of the first few agree: the table that
    the search `allocate` reads.
    """
    import msgspec

    from ockham.lab.allocation import learn
    from ockham.lab.probing import probe_settings

    if not given["temperature"] > 0.0:
        raise ConfigError(f"temperature must be above 0, got {given['temperature']}.")
    if not 0.0 <= given["loss"] < 1.0:
        raise ConfigError(f"loss must be at least 0 and below 1, got {given['loss']}.")
    config, adapter = probe_settings(model, lora)
    config = msgspec.structs.replace(config, threads=threads)
    began = time.monotonic()
    found = learn(config, adapter=adapter, tell=partial(click.echo, err=True), **given)
    search = {"method": "allocate", "extract": given["extract"], "table": found.table}
    if as_json:
        told = {**msgspec.to_builtins(found), "search": search}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{'of the first, agree':>20} {'items':>6} {'samples':>8}")
    for agree, (count, samples) in enumerate(zip(found.groups, found.table, strict=True), 1):
        click.echo(f"{agree:>20} {count:>6.1f} {samples:>8}")
    click.echo("on the other half of the items:")
    for name, way in (("one", found.one), ("all", found.every), ("by the table", found.allocated)):
        click.echo(f"{name:>20} {_told(way)}")
    click.echo(f'send "search": {json.dumps(search)}')
    click.echo(f"took {duration(time.monotonic() - began)}.", err=True)


@command()
@option(
    "--of",
    "searches",
    multiple=True,
    metavar="SEARCH",
    help="A search with its options; may be given repeatedly.",
)
@option("--prompt", type=Integer(1), default=256, show_default=True, help="Its tokens.")
@option("--tokens", type=Integer(1), default=256, show_default=True, help="Of each answer.")
@option("--measure", is_flag=True, help="Run each, too, on a random prompt.")
@option("--json", "as_json", is_flag=True, help="Write a JSON list.")
@engine_options
def price(
    searches: tuple[str, ...],
    prompt: int,
    tokens: int,
    measure: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Predict what searches on MODEL take at most, before they run: operations, bytes, seconds.

    Rates of this machine are probed first (seconds). Without --of it is one answer, and
    samples, trees and votes of common sizes.
    """
    from ockham.engine.engine import Engine
    from ockham.kernels.cores import allowed_cores
    from ockham.lab.calibrate import calibrate
    from ockham.lab.kernels.limits import Limits
    from ockham.lab.prices import COMMON, measured, priced, works

    chosen = searches or COMMON
    for spec in chosen:  # what has no price is said before anything is loaded
        works(spec, prompt, tokens, prompt)
    config = engine_config(**unless_given(kwargs, speculative_config="none"))
    limits = Limits(config.threads or allowed_cores())
    engine = Engine(config, progress=lambda line: click.echo(line, err=True))
    rates = calibrate(engine.model.program, engine.model.state_dtype, limits)
    rows: list[dict[str, Any]] = []
    if not as_json:
        taken = f" {'measured':>9} {'error':>6}" if measure else ""
        click.echo(f"{'search':28} {'work':>10} {'weights':>9} {'state':>9} {'seconds':>9}{taken}")
    for spec in chosen:
        found = priced(engine, rates, spec, prompt, tokens)
        ran = measured(engine, spec, prompt, tokens) if measure else None
        cost = found.cost
        state_bytes = cost.state_read_bytes + cost.state_written_bytes
        row = {
            "search": spec,
            "flops": cost.flops,
            "weight_bytes": cost.weight_bytes,
            "state_bytes": state_bytes,
            "seconds": found.seconds,
        }
        rows.append(row if ran is None else {**row, "measured_s": ran.seconds})
        if not as_json:
            line = (
                f"{spec:28} {quantity(cost.flops, 'FLOP'):>10} "
                f"{quantity(cost.weight_bytes, 'B'):>9} {quantity(state_bytes, 'B'):>9} "
                f"{duration(found.seconds):>9}"
            )
            if ran is not None:
                line += f" {duration(ran.seconds):>9} {found.seconds / ran.seconds - 1.0:>+6.0%}"
            click.echo(line)
    if as_json:
        click.echo(json.dumps(rows, indent=2))


def _told(way: Way) -> str:
    return f"{way.right:.1%} right, {way.samples:.1f} samples, {way.tokens:.0f} tokens"
