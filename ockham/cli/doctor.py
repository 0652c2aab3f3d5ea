"""`ockham doctor`: what this machine and this build can do, and whether a model fits."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from typing import Any

import click

from ockham.cli.command import command
from ockham.cli.machine import (
    allowed_cores,
    instruction_sets,
    measure_limits,
    memory_bytes,
    processor,
)
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.report import quantity
from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError

PACKAGES = ("numpy", "tokenizers", "msgspec", "huggingface-hub", "torch", "triton")
NOTES = {
    "cpu": "compiled kernels; equal bits whatever the batch",
    "reference": "plain NumPy: it defines what is right, and is slow, because every operation "
    "passes through Python and through memory on its own",
}


@command()
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@option(
    "--measure/--no-measure",
    default=True,
    help="Measure memory bandwidth and arithmetic rates (a few seconds).",
)
@engine_options
def doctor(as_json: bool, measure: bool, **kwargs: Any) -> None:
    """Show the machine, what is built for it, and the memory plan of MODEL."""
    report = examine(engine_config(**kwargs), measure)
    _tell(report, as_json)
    if "error" in report["memory_plan"]:
        sys.exit(1)


def _tell(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    for line in _lines(report):
        click.echo(line)


def examine(config: EngineConfig, measure: bool) -> dict[str, Any]:
    """Everything that `ockham doctor` says, as plain data; sizes in bytes, rates in a second."""
    from ockham import __version__
    from ockham.kernels.backends import BACKENDS, find_backend
    from ockham.model.machine_memory import available_bytes

    cores = allowed_cores()
    threads = sorted({1, cores}) if measure else []
    return {
        "ockham": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "processor": processor(),
        "machine": platform.machine(),
        "cores_allowed": cores,
        "instruction_sets": instruction_sets(),
        "memory_bytes": memory_bytes(),
        "memory_allowed_bytes": available_bytes(),
        "backends": {name: _note(name) for name in BACKENDS},
        "backend_chosen": find_backend(config.backend, config.threads).numerics(),
        "tiles": _tiles(),
        "limits": [asdict(measure_limits(count)) for count in threads],
        "model": config.model,
        "memory_plan": _plan(config),
    }


def _note(backend: str) -> str:
    from ockham.kernels.native import core, reason

    return reason if backend == "cpu" and core is None else NOTES[backend]


def _tiles() -> bool:
    """Whether the native core multiplies on AMX tiles: bf16's and int8's rates are theirs then."""
    from ockham.kernels.native import chosen_isa, core

    return core is not None and chosen_isa() == core.Isa.AMX


def _plan(config: EngineConfig) -> dict[str, Any]:
    """The memory plan, or why there is none. A model that does not fit is a finding, no failure."""
    from ockham.model.loading import plan_model

    try:
        planned = plan_model(config)
    except OckhamError as error:
        return {"error": str(error)}
    planned.source.close()
    return {**planned.plan.numbers(), "summary": planned.plan.describe()}


def _narrow(limits: dict[str, Any]) -> str:
    """The rates of narrower types, where the native core could measure them."""
    if limits["int8_ops_per_s"] is None:
        return ""
    return (
        f", bf16 {quantity(limits['bf16_flops_per_s'], 'FLOP/s')}"
        f", int8 {quantity(limits['int8_ops_per_s'], 'OP/s')}"
    )


def _versions() -> dict[str, str | None]:
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _lines(report: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version or '-'}" for name, version in report["packages"].items())
    plan = report["memory_plan"]
    lines = [
        f"ockham       {report['ockham']}, Python {report['python']}, {report['platform']}",
        f"packages     {packages}",
        f"processor    {report['processor']} ({report['machine']})",
        f"cores        {report['cores_allowed']} allowed",
        f"vectors      {', '.join(report['instruction_sets']) or 'unknown'}",
        f"memory       {quantity(report['memory_bytes'], 'B')}, of which "
        f"{quantity(report['memory_allowed_bytes'], 'B')} may be taken now",
    ]
    lines += [
        f"limits       {limits['threads']} thread{'s' if limits['threads'] > 1 else ''}: "
        f"reads {quantity(limits['read_bytes_per_s'], 'B/s')}, "
        f"fp32 {quantity(limits['fp32_flops_per_s'], 'FLOP/s')}" + _narrow(limits)
        for limits in report["limits"]
    ]
    lines += [f"backend      {name}: {note}" for name, note in report["backends"].items()]
    on_tiles = "; products of bf16, and of many rows with 8-bit inputs, on AMX tiles"
    tiles = on_tiles if report["tiles"] else ""
    lines += [f"in use       {report['backend_chosen']}{tiles}"]
    lines += [f"model        {report['model']}: {plan.get('error') or plan['summary']}"]
    if sys.platform != "linux" or report["machine"] != "x86_64":
        lines.append("note         only Linux on x86-64 is tested; this platform is not")
    return lines
