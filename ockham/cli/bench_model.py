"""`ockham bench model`: how well the cost model predicts the seconds of a step, here and now."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option, unless_given
from ockham.cli.report import duration, quantity
from ockham.cli.spread import percentile
from ockham.cli.value_types import Integer

if TYPE_CHECKING:
    from ockham.lab.steps import Prediction

HEADING = (
    f"{'rows':>5} {'seqs':>5} {'context':>7} {'measured':>11} {'predicted':>11} {'error':>7} "
    f"{'roofline':>9}  mostly"
)


@command()
@option("--samples", type=Integer(2), default=7, help="Of a step, at most.", show_default=True)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def model(samples: int, as_json: bool, **kwargs: Any) -> None:
    """Predict the seconds of steps of 1 to 2,048 rows of MODEL, and measure them.

    Rates are probed first (seconds); each measurement then stands between samples of the memory's
    and the cores' speed, which its prediction is made with. 'roofline' is the share of the measured
    time that bytes or FLOPs alone, at the limits, would take.
    """
    import msgspec

    from ockham.engine.engine import Engine
    from ockham.kernels.cores import allowed_cores
    from ockham.lab.calibrate import arithmetic_of, calibrate
    from ockham.lab.kernels.limits import Limits
    from ockham.lab.steps import SHAPES, fits, predictions

    # Steps of given shapes: what one computed, the next must compute again.
    fixed = {"skip_tokenizer_init": True, "enable_prefix_caching": False}
    most_rows = max(shape.sequences * shape.rows for shape in SHAPES)
    given = unless_given({**kwargs, **fixed}, max_num_batched_tokens=most_rows)
    config = engine_config(**{**given, "speculative_config": "none"})
    limits = Limits(config.threads or allowed_cores())
    engine = Engine(config, progress=lambda line: click.echo(line, err=True))
    rates = calibrate(engine.model.program, engine.model.state_dtype, limits)
    shapes = [shape for shape in SHAPES if fits(engine, shape)]
    for shape in set(SHAPES) - set(shapes):
        click.echo(f"left out, as it does not fit into the engine: {shape}", err=True)
    if not as_json:
        click.echo(f"{config.model}, {engine.model.weight_format}, {limits.pool.size} threads")
        click.echo(HEADING)
    found: list[Prediction] = []
    arithmetic = arithmetic_of(engine.model.program)
    for one in predictions(engine, rates, limits, arithmetic, shapes, samples):
        found.append(one)
        if not as_json:
            click.echo(_line(one))
    errors = [abs(one.error) for one in found]
    report = {
        "model": config.model,
        "weight_format": engine.model.weight_format,
        "threads": limits.pool.size,
        "median_error": median(errors),
        "p90_error": percentile(errors, 90),
        "largest_error": max(errors),
        "rates": rates,
        "steps": found,
    }
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    click.echo(
        f"error: median {report['median_error']:.1%}, 90% of the steps below "
        f"{report['p90_error']:.1%}, largest {report['largest_error']:.1%}"
    )
    disturbed = sum(one.disturbed for one in found)
    if disturbed:
        click.echo(f"{disturbed} steps were disturbed by other programs and measured again")
    click.echo(
        f"probed: memory reads {quantity(rates.read_bytes_per_s, 'B/s')}; a step's bookkeeping "
        f"{duration(rates.step_s)}, and {rates.sequence_s * 1e6:.1f} us for each sequence"
    )


def _line(one: Prediction) -> str:
    most = max(one.by, key=lambda name: one.by[name])
    share = one.by[most] / one.predicted_s
    return (
        f"{one.rows:5} {one.sequences:5} {one.context:7} {duration(one.measured_s):>11} "
        f"{duration(one.predicted_s):>11} {one.error:+7.1%} "
        f"{one.roofline_s / one.measured_s:9.1%}  {most} {share:.0%}"
    )
