"""Other machines for `ockham plan`: their rates, and the cheapest mix of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.core.config import EngineConfig
    from ockham.core.rates import Rates
    from ockham.lab.workloads import Request
    from ockham.plan.floors import Floors
    from ockham.plan.machines import Machine


def rates_there(machine: Machine, base: EngineConfig) -> Callable[[Rates], Rates]:
    """Makes this machine's rates those of another."""
    from ockham.cli.machine import measure_limits
    from ockham.plan.machines import arithmetic_of_model, rates_on

    arithmetic = arithmetic_of_model(base)
    one_thread_flops_per_s = measure_limits(1).fp32_flops_per_s
    return lambda rates: rates_on(machine, rates, arithmetic, one_thread_flops_per_s)


def tell_mix(
    base: EngineConfig,
    requests: list[Request],
    floors: Floors,
    rate: float | None,
    prices: str,
    machine_file: Path | None,
    as_json: bool,
) -> None:
    """Tell the cheapest mix of machines."""
    import msgspec

    from ockham.cli.machine import measure_limits
    from ockham.plan.machines import cheapest_mix, check_target, parse_machines
    from ockham.plan.simulation import measured_rates, prompted

    if machine_file is not None:
        raise ConfigError("--machine plans for one machine, --machines for a mix; give one.")
    if rate is None:
        raise ConfigError("--machines serve a load: give its requests in a second with --rate.")
    target = {floor.metric: floor.value for floor in floors.every}
    machines = parse_machines(prices)
    check_target(target)
    mix = cheapest_mix(
        base,
        machines,
        prompted(base, requests),
        rate,
        target,
        rates=measured_rates(base),
        one_thread_flops_per_s=measure_limits(1).fp32_flops_per_s,
        seed=base.seed,
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(mix), indent=2))
        return
    for line in mix.lines():
        click.echo(line)
