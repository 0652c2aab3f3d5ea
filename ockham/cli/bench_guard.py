"""`ockham bench guard`: how soon the quality guard finds a loss, how often it is wrong, and what it
costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ockham.cli.command import command
from ockham.cli.options import option
from ockham.cli.value_types import Integer

if TYPE_CHECKING:
    from ockham.lab.guard_trials import Service, Trial

HEADING = (
    f"{'floor':>6} {'before':>7} {'after':>6} {'spread':>6} | {'delay':>6} {'p90':>6} "
    f"{'theory':>6} {'in 500':>7} | {'false at floor':>14} {'theory':>6} {'before':>7}"
)


@command()
@option(
    "--services",
    type=Integer(1),
    default=2000,
    show_default=True,
    help="Services to simulate, of each case.",
)
@option(
    "--requests",
    type=Integer(0),
    default=150,
    show_default=True,
    help="Requests of each kind to send to the model; 0 for none.",
)
@option("--model", default="lab", show_default=True, help="The model that is sent requests.")
@option(
    "--keep",
    default="recent:window=192",
    show_default=True,
    help="Which state stays: the technique that is guarded.",
)
@option("--guard", "share", type=float, default=1.0, show_default=True, help="The guard's share.")
@option("--seed", type=Integer(0), default=0, show_default=True, help="Of all that is drawn.")
@option("--threads", "-t", type=Integer(1), help="Threads that compute.")
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def guard(
    services: int,
    requests: int,
    model: str,
    keep: str,
    share: float,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Simulate services whose technique goes bad, then serve a model whose traffic changes.

    Of each simulated case: scored positions until the technique is switched off, beside what the
    theory says; and the share of services with a false alarm in 10,000 positions, at the floor
    itself and at the agreement before. The model is asked for words of lists, short ones first and
    then longer ones, of which a window forgets the beginning.
    """
    import json

    import msgspec

    from ockham.core.config import EngineConfig
    from ockham.lab.guard_trials import CASES, serve, trial

    trials = []
    if not as_json:
        click.echo(HEADING)
    for case in CASES:
        trials.append(trial(case, services, seed))
        if not as_json:
            click.echo(_row(trials[-1]))
    served = None
    if requests:
        config = EngineConfig(model=model, keep=keep, guard=share, threads=threads)
        served = serve(config, requests, seed)
    if as_json:
        report = {"trials": trials, "service": served}
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    elif served is not None:
        click.echo(_served(served))


def _row(found: Trial) -> str:
    case = found.case
    return (
        f"{case.floor:>6.2f} {case.good:>7.2f} {case.bad:>6.2f} {case.spread:>6.1f} | "
        f"{found.delay_mean:>6.0f} {found.delay_p90:>6.0f} {found.expected:>6.0f} "
        f"{found.found:>7.1%} | {found.false_alarms_at_floor:>14.2%} {found.claimed:>6.2%} "
        f"{found.false_alarms_good:>7.2%}"
    )


def _served(found: Service) -> str:
    lines = [f"\n{found.model}, {found.technique}, floor {found.floor}"]
    for phase in found.phases:
        agreement = "-" if phase.agreement is None else f"{phase.agreement:.4f}"
        kl = "-" if phase.kl is None else f"{phase.kl:.4g}"
        lines.append(
            f"prompts of up to {phase.prompt_tokens} tokens: {phase.requests} requests, "
            f"{phase.texts} texts and {phase.positions} positions scored, agreement {agreement}, "
            f"kl {kl}"
        )
    if found.switched is None:
        lines.append("not switched off")
    else:
        lines.append(
            f"switched off after {found.switched} positions of the longer ones; "
            f"{found.left_out} requests were answered exactly"
        )
    lines.append(
        f"rows: {found.rows} for the guard, {found.rows / max(1, found.traffic_rows):.1%} of the "
        f"{found.traffic_rows} of requests (its share is {found.share:g}); at most "
        f"{found.longest_step_rows} in one of its steps"
    )
    return "\n".join(lines)
