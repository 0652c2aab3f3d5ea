"""`ockham techniques advise`: which techniques can pay for a model on a machine."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option, unless_given
from ockham.cli.report import duration, quantity
from ockham.cli.value_types import Integer
from ockham.core.errors import ConfigError
from ockham.core.registry import SAVINGS

if TYPE_CHECKING:
    from ockham.lab.advice import Advice, Family

PAYS = {True: "pays", False: "no", None: "depends"}


@command()
@option("--context", type=Integer(1), default=2048, show_default=True, help="Seen by a step.")
@option("--batch", type=Integer(1), default=1, show_default=True, help="Answers at once.")
@option("--prompt", type=Integer(1), default=1024, show_default=True, help="Its tokens.")
@option("--output", type=Integer(1), default=128, show_default=True, help="Tokens of an answer.")
@option(
    "--machine",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="For the machine that `ockham doctor --json` described in this file: this one's rates, "
    "scaled by its limits.",
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def advise(
    context: int,
    batch: int,
    prompt: int,
    output: int,
    machine: Path | None,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Say which techniques can save time on MODEL here, and from which sizes on.

    Rates of this machine are probed first (seconds). The rest is arithmetic: what halving the bytes
    of weights, the state, attention and so on takes off a step or a prompt, and where that begins
    to be a twentieth. What a technique itself takes is not counted, and what it costs in quality is
    measured elsewhere.
    """
    from ockham.engine.engine import Engine
    from ockham.kernels.cores import allowed_cores
    from ockham.lab.advice import Load
    from ockham.lab.advice import advise as advice_for
    from ockham.lab.calibrate import calibrate
    from ockham.lab.kernels.limits import Limits
    from ockham.model.loading import plan_model
    from ockham.plan.machines import arithmetic_of_model, rates_on, read_machine

    load = Load(context, batch, prompt, output)
    other = read_machine(machine) if machine is not None else None
    config = engine_config(**unless_given(kwargs, speculative_config="none"))
    planned = plan_model(config)
    planned.source.close()
    if planned.description.pooling is not None:
        raise ConfigError(
            f"{config.model} makes vectors or scores of texts; there is advice for models that "
            "generate text only."
        )
    limits = Limits(config.threads or allowed_cores())
    engine = Engine(config, progress=lambda line: click.echo(line, err=True))
    try:
        rates = calibrate(engine.model.program, engine.model.state_dtype, limits)
        if other is not None:
            from ockham.kernels.native import core

            one_thread = max(Limits(1).arithmetic_rates(core.Rate.FP32))
            rates = rates_on(other, rates, arithmetic_of_model(config), one_thread)
            rates = replace(rates, cache_bytes=0)  # the file does not say what its caches hold
        found = advice_for(engine.cost, rates, engine.vocabulary, load)
    finally:
        engine.close()
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    threads = f"{limits.pool.size} thread{'s' * (limits.pool.size != 1)}"
    here = other.name if other is not None else f"this machine, {threads}"
    for line in told(found, f"{config.model} on {here}"):
        click.echo(line)


def told(found: Advice, what: str) -> list[str]:
    """The advice in lines, as wide as the terminal."""
    load, width = found.load, max(72, shutil.get_terminal_size((100, 24)).columns)
    lines = [
        f"{what} (predicted):",
        f"  a step of batch {load.batch:,} at {load.context:,} tokens of context: "
        f"{duration(found.step_s)}, {_shares(found.step_shares)}",
        f"  it reads {quantity(found.weight_bytes, 'B')} of weights and "
        f"{quantity(found.state_bytes, 'B')} of state",
        f"  a prompt of {load.prompt:,} tokens: {duration(found.prompt_s)}, "
        f"{_shares(found.prompt_shares)}",
    ]
    for when, families in groupby(found.families, key=lambda family: family.when):
        lines += ["", f"{when}:"]
        for family in families:
            lines += _family(family, width)
    return [*lines, "", "What they cost in quality: `ockham techniques measure NAME`."]


def _family(family: Family, width: int) -> list[str]:
    """What is saved, the verdict, and the techniques."""
    verdict = family.verdict.removeprefix("pays ") if family.pays else family.verdict
    said = [f"{PAYS[family.pays]:<8} {verdict}"]
    for kind in ("exact", "approximate"):
        names = getattr(family, kind)
        if names:
            said.append(f"{kind}: {', '.join(names)}")
    lines = [f"  {family.saves}: {SAVINGS[family.saves]}"]
    for each in said:
        lines += textwrap.wrap(
            each,
            width,
            initial_indent=" " * 4,
            subsequent_indent=" " * 13,
            break_on_hyphens=False,
        )
    return lines


def _shares(shares: dict[str, float]) -> str:
    """The parts that are at least a hundredth, the largest first."""
    parts = sorted(shares.items(), key=lambda part: -part[1])
    return ", ".join(f"{share:.0%} {name}" for name, share in parts if share >= 0.01)
