"""`ockham bench kernels`: every kernel of a model beside the limits of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.value_types import Integer
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.lab.kernels.measure import Measured

HEADING = (
    f"{'kernel':22} {'shape':32} {'rows':>4} {'keys':>5} {'time':>11} "
    f"{'GB/s':>7} {'of':>5} {'GOP/s':>7} {'of':>5} {'limit':>6}"
)


@command()
@option("--rows", default="1,2,4,8,16,64,512", help="Rows of a step.", show_default=True)
@option("--contexts", default="512,2048", help="Keys of attention.", show_default=True)
@option("--only", default=None, help="products, experts, attention, rows, head: some of them.")
@option("--rounds", type=Integer(1), default=5, help="Bursts of a kernel.", show_default=True)
@option(
    "--quantile",
    type=click.FloatRange(0.0, 1.0),
    default=0.5,
    help="Which of the fastest counts: less than the median on a crowded machine.",
    show_default=True,
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def kernels(
    rows: str,
    contexts: str,
    only: str | None,
    rounds: int,
    quantile: float,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Time every kernel at MODEL's shapes: bytes, operations, and its share of the limit.

    The limit is the larger of bytes over the rate of reading memory and operations over the rate of
    arithmetic; both are probed between the bursts of each kernel. Weights and keys come from
    memory, not from caches; rows of activations do not, so that small kernels can pass their limit.
    """
    import msgspec

    from ockham.kernels.cores import allowed_cores
    from ockham.kernels.native import core
    from ockham.lab.kernels.all import KINDS, cases
    from ockham.lab.kernels.limits import Limits
    from ockham.lab.kernels.measure import measure
    from ockham.model.loading import load_model

    kinds = KINDS if only is None else tuple(only.split(","))
    if not set(kinds) <= set(KINDS):
        raise ConfigError(f"--only takes some of {', '.join(KINDS)}, not {only!r}.")
    counts, keys = _numbers("--rows", rows), _numbers("--contexts", contexts)
    config = engine_config(**{**kwargs, "skip_tokenizer_init": True})
    if config.backend not in ("auto", "cpu"):
        raise ConfigError(
            f"the kernels measured are those of the cpu backend, not of {config.backend!r}."
        )
    limits = Limits(config.threads or allowed_cores())
    model = load_model(config, lambda line: click.echo(line, err=True))
    left_out: list[str] = []
    found = []
    if not as_json:
        click.echo(f"{core.isa_name(limits.isa)}, {limits.pool.size} threads, {config.model}")
        click.echo(HEADING)
    every = cases(model.program, model.state_dtype, limits, counts, keys, kinds, left_out)
    for one in measure(every, limits, rounds, quantile):
        found.append(one)
        if not as_json:
            click.echo(_line(one))
    if not found:
        raise ConfigError(f"{config.model} has no kernels of the kind {only!r}; leave --only out.")
    if as_json:
        report = {
            "model": config.model,
            "weight_format": model.weight_format,
            "isa": core.isa_name(limits.isa),
            "threads": limits.pool.size,
            "kernels": found,
            "left_out": left_out,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    for what in left_out:
        click.echo(f"left out, as its keys and values take too much memory: {what}", err=True)


def _line(one: Measured) -> str:
    return (
        f"{one.kernel:22} {one.shape:32} {one.rows:4} {one.keys or '':>5} "
        f"{one.time_s * 1e6:8.1f} us {one.bytes / one.time_s / 1e9:7.1f} "
        f"{one.read_bytes_per_s / 1e9:5.1f} {one.operations / one.time_s / 1e9:7.1f} "
        f"{one.operations_per_s / 1e9:5.0f} {one.share:6.1%}"
    )


def _numbers(flag: str, text: str) -> list[int]:
    """Raises ConfigError unless `text` holds positive whole numbers, joined by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{flag} takes numbers above 0 joined by commas, not {text!r}.")
    return sorted({int(part) for part in parts})
