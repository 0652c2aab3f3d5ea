"""`ockham bench`: latency and throughput in this process, a server from outside, single kernels,
and random checkpoints to measure with. Every figure stands beside the limit of the machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ockham.cli.bench_cache import cache
from ockham.cli.bench_drafting import drafting
from ockham.cli.bench_guard import guard
from ockham.cli.bench_kernels import kernels
from ockham.cli.bench_model import model
from ockham.cli.bench_restart import restart
from ockham.cli.bench_reuse import reuse
from ockham.cli.bench_serve import serve
from ockham.cli.bench_simulation import simulation
from ockham.cli.bench_speculation import speculation
from ockham.cli.command import Group
from ockham.cli.options import engine_config, engine_options, option, unless_given
from ockham.cli.random_checkpoint import SHAPES, write_random_checkpoint
from ockham.cli.random_gguf import write_random_gguf
from ockham.cli.report import duration, quantity
from ockham.cli.spread import spread
from ockham.cli.startup import startup
from ockham.cli.value_types import Integer
from ockham.cli.workload_options import workload
from ockham.core.config import EngineConfig
from ockham.core.registry import find

if TYPE_CHECKING:
    from ockham.cli.machine import Limits
    from ockham.core.seams import Format
    from ockham.engine.engine import Engine

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Group)
def bench() -> None:
    """Measure, beside the limits of the machine."""


bench.add_command(cache)
bench.add_command(drafting)
bench.add_command(guard)
bench.add_command(kernels)
bench.add_command(model)
bench.add_command(restart)
bench.add_command(reuse)
bench.add_command(serve)
bench.add_command(simulation)
bench.add_command(speculation)
bench.add_command(startup)
bench.add_command(workload)


def _measurement_options(function: F) -> F:
    for decorate in (
        option(
            "--input-len", type=Integer(1), default=128, help="Prompt tokens.", show_default=True
        ),
        option(
            "--output-len", type=Integer(1), default=64, help="Generated tokens.", show_default=True
        ),
        option("--warmup", type=Integer(0), default=1, help="Runs not counted.", show_default=True),
        option("--json", "as_json", is_flag=True, help="Write one JSON object."),
    ):
        function = decorate(function)
    return function


@bench.command()
@option("--batch-size", type=Integer(1), default=1, help="Prompts at once.", show_default=True)
@option("--repeats", type=Integer(1), default=5, help="Runs to take.", show_default=True)
@_measurement_options
@engine_options
def latency(batch_size: int, repeats: int, **kwargs: Any) -> None:
    """Time one batch of random prompts from start to end, several times over."""
    _bench("latency", batch_size, repeats, **kwargs)


@bench.command()
@option("--num-prompts", type=Integer(1), default=64, help="Prompts in all.", show_default=True)
@option("--repeats", type=Integer(1), default=3, help="Runs to take.", show_default=True)
@_measurement_options
@engine_options
def throughput(num_prompts: int, repeats: int, **kwargs: Any) -> None:
    """Time many random prompts that are all there from the start."""
    _bench("throughput", num_prompts, repeats, **kwargs)


@bench.command("make-checkpoint")
@option("--shape", type=click.Choice(list(SHAPES)), required=True, help="Shape to write.")
@option("--seed", type=Integer(), default=0, help="Seed of the weights.", show_default=True)
@option("--gguf", is_flag=True, help="Write a GGUF file in Q4_0, with a made-up vocabulary.")
@click.argument("directory", type=click.Path(path_type=Path))
def make_checkpoint(shape: str, seed: int, gguf: bool, directory: Path) -> None:
    """Write a checkpoint with random weights of a real model's shape into DIRECTORY."""
    started = time.perf_counter()
    write = write_random_gguf if gguf else write_random_checkpoint
    size = write(shape, directory, seed)
    seconds = time.perf_counter() - started
    click.echo(f"wrote {quantity(size, 'B')} to {directory} in {duration(seconds)}", err=True)


@dataclass(slots=True)
class Measured:
    """One run of a batch. Seconds; `*_bytes` and `*_flops` are what the ledger booked in it."""

    total_s: float = 0.0
    prefill_s: float = 0.0
    """Until every prompt has its first token."""
    first_token_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_flops: int = 0
    decode_tokens: int = 0
    """Tokens generated after every prompt has its first one."""
    decode_bytes: int = 0
    """Weights and state that were read meanwhile."""
    overhead_s: float = 0.0
    """Mean seconds of a step outside the backend: scheduling and bookkeeping."""
    decode_outside_s: float = 0.0
    """Seconds of `decode_s` outside the backend."""

    @property
    def decode_s(self) -> float:
        return self.total_s - self.prefill_s


def _bench(
    kind: str,
    prompts: int,
    repeats: int,
    input_len: int,
    output_len: int,
    warmup: int,
    as_json: bool,
    **kwargs: Any,
) -> None:
    import msgspec

    from ockham.engine.engine import Engine

    # Prompts are token ids, so that any checkpoint can be measured, one without tokenizer too. What
    # follows random ones repeats itself as no text does: drafts are not measured here by accident.
    given = {**kwargs, "skip_tokenizer_init": True}
    config = engine_config(**unless_given(given, speculative_config="none"))
    if not as_json:
        click.echo(f"{kind}: {prompts} prompts of {input_len} + {output_len} tokens", err=True)
    engine = Engine(config, progress=lambda line: click.echo(line, err=True))
    runs = []
    for run in range(warmup + repeats):
        measured = measure_batch(engine, prompts, input_len, output_len, seed=run)
        if run >= warmup:
            runs.append(measured)
    report = {
        "kind": kind,
        "config": msgspec.to_builtins(config),
        "prompts": prompts,
        "input_len": input_len,
        "output_len": output_len,
        **_figures(runs, engine, config),
    }
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    for line in _lines(report):
        click.echo(line)


def measure_batch(
    engine: Engine, prompts: int, input_len: int, output_len: int, seed: int
) -> Measured:
    """Run a batch of random prompts to its end. Each has `output_len` tokens, whatever they are."""
    import random

    from ockham.core.sampling_params import SamplingParams
    from ockham.engine.messages import Request

    numbers = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    waiting = set()
    for index in range(prompts):
        tokens = [numbers.randrange(engine.vocabulary) for _ in range(input_len)]
        name = f"bench-{seed}-{index}"
        engine.add(Request(request_id=name, prompt_token_ids=tokens, params=params))
        waiting.add(name)
    measured = Measured(prompt_tokens=prompts * input_len)
    flops_before = engine.total.flops
    bytes_after_prefill = 0
    backend_after_prefill = engine.backend_s
    steps_before, backend_before = engine.scheduler.steps, engine.backend_s
    started = time.perf_counter()
    while engine.has_work:
        deltas = engine.step()
        now = time.perf_counter() - started
        for delta in deltas:
            measured.generated_tokens += len(delta.token_ids)
            if delta.token_ids and delta.request_id in waiting:
                waiting.remove(delta.request_id)
                measured.first_token_s.append(now)
                if not waiting:
                    measured.prefill_s = now
                    measured.prefill_flops = engine.total.flops - flops_before
                    bytes_after_prefill = _bytes_read(engine)
                    backend_after_prefill = engine.backend_s
                    measured.decode_tokens = -measured.generated_tokens
    measured.total_s = time.perf_counter() - started
    measured.decode_tokens += measured.generated_tokens
    measured.decode_bytes = _bytes_read(engine) - bytes_after_prefill
    measured.decode_outside_s = measured.decode_s - (engine.backend_s - backend_after_prefill)
    outside_s = measured.total_s - (engine.backend_s - backend_before)
    measured.overhead_s = outside_s / (engine.scheduler.steps - steps_before)
    return measured


def _bytes_read(engine: Engine) -> int:
    return engine.total.weight_bytes + engine.total.state_read_bytes


def _figures(runs: list[Measured], engine: Engine, config: EngineConfig) -> dict[str, Any]:
    """Rates with their spread, and what share they are of what the machine can do."""
    from ockham.cli.machine import allowed_cores, measure_limits

    limits = measure_limits(allowed_cores())
    arithmetic, rate = _arithmetic(engine, limits)
    decoded = [run for run in runs if run.decode_tokens > 0 and run.decode_s > 0]
    return {
        "model_weight_bytes": engine.model.weight_bytes,
        "limit_read_bytes_per_s": limits.read_bytes_per_s,
        "limit_arithmetic": arithmetic,
        "limit_arithmetic_per_s": rate,
        "total_s": spread([run.total_s for run in runs]),
        "step_overhead_s": spread([run.overhead_s for run in runs]),
        "decode_overhead_share": spread([run.decode_outside_s / run.decode_s for run in decoded]),
        "time_to_first_token_s": spread([s for run in runs for s in run.first_token_s]),
        "output_tokens_per_s": spread([run.generated_tokens / run.total_s for run in runs]),
        "total_tokens_per_s": spread(
            [(run.prompt_tokens + run.generated_tokens) / run.total_s for run in runs]
        ),
        "decode_tokens_per_s": spread([run.decode_tokens / run.decode_s for run in decoded]),
        "decode_share_of_memory_limit": spread(
            [run.decode_bytes / run.decode_s / limits.read_bytes_per_s for run in decoded]
        ),
        "prefill_share_of_arithmetic_limit": spread(
            [run.prefill_flops / run.prefill_s / rate for run in runs if run.prefill_s > 0]
        ),
    }


def _arithmetic(engine: Engine, limits: Limits) -> tuple[str, float]:
    """The arithmetic that most of the model's products can use, and its rate here."""
    name = engine.model.weight_format.partition("+")[0]
    weight_format: type[Format] = find("format", name).cls
    arithmetic = weight_format.arithmetic
    native = engine.model.backend.name == "cpu"
    if native and arithmetic == "bf16" and limits.bf16_flops_per_s:
        return "bf16", limits.bf16_flops_per_s
    if native and arithmetic != "fp32" and limits.int8_ops_per_s:
        return "int8", limits.int8_ops_per_s
    return "fp32", limits.fp32_flops_per_s


def _lines(report: dict[str, Any]) -> list[str]:
    def figure(name: str, show: Callable[[float], str]) -> str:
        values = report[name]
        if math.isnan(values["median"]):
            return "not measured: no token was decoded alone"
        return f"{show(values['median'])} ({show(values['p10'])} to {show(values['p90'])})"

    def rate(value: float) -> str:
        return f"{value:.1f} tokens/s"

    def share(value: float) -> str:
        return f"{value:.1%}"

    return [
        "median (p10 to p90)",
        f"batch, start to end    {figure('total_s', duration)}",
        f"time to first token    {figure('time_to_first_token_s', duration)}",
        f"output                 {figure('output_tokens_per_s', rate)}",
        f"prompt and output      {figure('total_tokens_per_s', rate)}",
        f"decode alone           {figure('decode_tokens_per_s', rate)}",
        f"  of the memory limit  {figure('decode_share_of_memory_limit', share)}: "
        f"{quantity(report['model_weight_bytes'], 'B')} of weights, memory reads "
        f"{quantity(report['limit_read_bytes_per_s'], 'B/s')}",
        f"a step's bookkeeping   {figure('step_overhead_s', duration)}, outside the backend",
        f"  of decoding's time   {figure('decode_overhead_share', share)}",
        f"prefill, of arithmetic {figure('prefill_share_of_arithmetic_limit', share)} of "
        f"{quantity(report['limit_arithmetic_per_s'], 'OP/s')} in {report['limit_arithmetic']}",
    ]
