"""`ockham bench simulation`: how well whole workloads are predicted, here and now."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.report import duration
from ockham.cli.value_types import Integer
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.plan.agreement import Agreement

HEADING = (
    f"{'workload':10} {'configuration':24} {'tokens/s':>9} {'predicted':>9} {'error':>7} "
    f"{'TTFT p50':>9} {'error':>7} {'TTFT p95':>9} {'error':>7} {'faster':>7}"
)


@command()
@option(
    "--workloads",
    default=None,
    metavar="NAMES",
    help="Kinds of traffic, joined by commas; see `ockham bench workload`.",
)
@option(
    "--variant",
    "variants",
    multiple=True,
    metavar="SETTINGS",
    help="A configuration: settings to change, such as 'reuse=none max_num_seqs=2'; may be given "
    "more than once.",
)
@option(
    "--load",
    type=click.FloatRange(min=0.0, min_open=True),
    default=0.7,
    show_default=True,
    help="How fast sessions come, as a share of what each configuration is predicted to sustain.",
)
@option("--workload-seed", type=Integer(), default=0, show_default=True, help="Of workloads.")
@option(
    "--processor-time",
    is_flag=True,
    help="Time runs by processor time and skip waits: for machines that are not quiet, with one "
    "thread.",
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def simulation(
    workloads: str | None,
    variants: tuple[str, ...],
    load: float,
    workload_seed: int,
    processor_time: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Run workloads on MODEL under some configurations, and simulate them.

    Tokens a second are those of all sessions at once, times to the first token those of sessions
    that come at random times. Rates of this machine are probed first (seconds).
    """
    import msgspec

    from ockham.plan.agreement import (
        APART,
        DEFAULT_WORKLOADS,
        VARIANTS,
        Comparing,
        agreements,
        sized,
    )

    config = engine_config(**kwargs)
    names = DEFAULT_WORKLOADS if workloads is None else tuple(workloads.split(","))
    requests = {name.strip(): sized(name.strip(), workload_seed) for name in names}
    chosen = {text: dict(map(_setting, text.split())) for text in variants} or VARIANTS
    how = Comparing(load, workload_seed, processor_time)
    found: list[Agreement] = []
    if not as_json:
        click.echo(HEADING)
    for one in agreements(config, requests, chosen, how, lambda t: click.echo(t, err=True)):
        found.append(one)
        if not as_json:
            click.echo(_line(one))
    report = {"model": config.model, "threads": config.threads, **_summary(found), "runs": found}
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    click.echo(
        f"median error: tokens/s {report['tokens_per_s_error']:.1%}, TTFT p50 "
        f"{report['ttft_p50_error']:.1%}, p95 {report['ttft_p95_error']:.1%}; all "
        f"{report['median_error']:.1%}"
    )
    for name, correlation in report["rank_correlation"].items():
        click.echo(f"rank correlation of configurations, {name}: {correlation:.2f}")
    right, pairs = report["pairs_in_order"]
    click.echo(f"pairs more than {APART:.0%} apart in tokens/s: {right} of {pairs} in order")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--variant: {text!r} is no setting; write name=value.")
    return name.replace("-", "_"), value


def _line(one: Agreement) -> str:
    measured, predicted, errors = one.measured, one.predicted, one.errors
    return (
        f"{one.workload:10} {one.variant[:24]:24} {measured['tokens_per_s']:9.1f} "
        f"{predicted['tokens_per_s']:9.1f} {errors['tokens_per_s']:+7.1%} "
        f"{duration(measured['ttft_p50']):>9} {errors['ttft_p50']:+7.1%} "
        f"{duration(measured['ttft_p95']):>9} {errors['ttft_p95']:+7.1%} "
        f"{one.simulated_per_real_s:6.0f}x"
    )


def _summary(found: list[Agreement]) -> dict[str, Any]:
    from ockham.plan.agreement import FIGURES, pairs_in_order, rank_correlation

    errors = {f"{name}_error": median(abs(one.errors[name]) for one in found) for name in FIGURES}
    every = [abs(error) for one in found for error in one.errors.values()]
    correlations, right, pairs = {}, 0, 0
    for workload in dict.fromkeys(one.workload for one in found):
        own = [one for one in found if one.workload == workload]
        measured = [one.measured["tokens_per_s"] for one in own]
        predicted = [one.predicted["tokens_per_s"] for one in own]
        value = rank_correlation(measured, predicted)
        ordered = pairs_in_order(measured, predicted)
        right, pairs = right + ordered[0], pairs + ordered[1]
        if not math.isnan(value):
            correlations[workload] = value
    return {
        **errors,
        "median_error": median(every),
        "rank_correlation": correlations,
        "pairs_in_order": (right, pairs),
    }
