"""`ockham bench serve`: load an OpenAI-compatible server with requests and time the answers."""

from __future__ import annotations

import asyncio
import io
import math
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ockham.cli.options import config_file, option, overwrite_option
from ockham.cli.report import duration
from ockham.cli.spread import spread
from ockham.cli.value_types import Integer
from ockham.cli.workload_options import chosen_workload, workload_options
from ockham.core.errors import ConfigError
from ockham.core.owned_files import check_output, write_output

if TYPE_CHECKING:
    from ockham.lab.traffic import Answer, Sending, Server, Traffic
    from ockham.lab.workloads import Request

ERRORS_SHOWN = 5
DEFAULT_INPUT_LEN = 128
LATENCIES = {
    "ttft": "time_to_first_token_s",
    "tpot": "time_per_output_token_s",
    "e2el": "end_to_end_s",
}
"""Names of latencies in a target of goodput (vLLM's), and in the report."""
BUSY_SHARE = 0.8
"""Share of a core from which on the client may have been what was slow."""


class Rates(click.ParamType):  # type: ignore[type-arg]  # generic only in stubs
    """Requests a second: one number, or several as '1,2,4'; 'inf' for all at once."""

    name = "rates"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        if isinstance(value, list) and all(isinstance(rate, int | float) for rate in value):
            rates = [float(rate) for rate in value]
        else:
            try:
                rates = [float(part) for part in str(value).split(",")]
            except ValueError:
                self.fail(f"{value!r} is no rate; write 2, or 1,2,4, or inf.", param, ctx)
        if not all(rate > 0 for rate in rates):
            self.fail(f"a rate must be above 0, got {value!r}.", param, ctx)
        return rates


@click.command()
@option(
    "--base-url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is."
)
@option("--model", default=None, help="Model to ask for; the server's first by default.")
@option("--api-key", default=None, help="Key, if the server wants one.")
@workload_options
@option(
    "--num-prompts",
    type=Integer(),
    default=None,
    help="Requests to send at most. [default: all of the workload; 100 without one]",
)
@option(
    "--request-rate",
    "--rate",
    "rates",
    type=Rates(),
    default=None,
    help="Sessions (or single requests) that begin in a second on average, at random (Poisson) "
    "times; several as '1,2,4' are measured one after another; 'inf' begins all at once. "
    "[default: the times in the workload's file, else inf]",
)
@option("--max-concurrency", type=Integer(), default=64, show_default=True, help="Most at once.")
@option("--prompt", default=None, help="Prompt of every request, instead of random token ids.")
@option("--input-len", type=Integer(), default=None, help="Random tokens. [default: 128]")
@option(
    "--output-len",
    type=Integer(),
    default=None,
    help="Tokens to generate. [default: 64, or as the workload says]",
)
@option(
    "--ignore-eos/--no-ignore-eos",
    default=None,
    help="Generate all tokens, whatever the model says. [default: only without a workload]",
)
@option(
    "--recorded-answers",
    is_flag=True,
    help="Continue chats with the workload's recorded answers, not the server's.",
)
@option(
    "--pauses/--no-pauses",
    default=True,
    show_default=True,
    help="Whether sessions wait between requests as the workload says.",
)
@option(
    "--extra-body",
    default="{}",
    metavar="JSON",
    help='Further fields of each request, such as \'{"reuse": "chunk"}\'.',
)
@option(
    "--goodput",
    "targets",
    multiple=True,
    metavar="NAME:MS",
    help="Count requests within a latency: 'ttft:500', 'tpot:50', 'e2el:2000'; of several, all "
    "must hold.",
)
@option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Draw latency against rate (.svg, .png); needs matplotlib.",
)
@overwrite_option
@option("--seed", type=Integer(), default=0, show_default=True, help="Seed of workload and times.")
@option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for one answer.")
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@config_file
def serve(
    base_url: str,
    model: str | None,
    api_key: str | None,
    rates: list[float] | None,
    prompt: str | None,
    input_len: int | None,
    ignore_eos: bool | None,
    recorded_answers: bool,
    pauses: bool,
    extra_body: str,
    targets: tuple[str, ...],
    plot: Path | None,
    overwrite: bool,
    timeout: float,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Send a workload to a running server and report latencies and throughput.

    Without --workload, every request has random token ids (--input-len) or the same --prompt.
    """
    goal, more = _goal(targets), _object(extra_body)
    for name in ("num_prompts", "max_concurrency", "output_len"):
        if kwargs[name] is not None and not kwargs[name] > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {kwargs[name]}.")
    if plot is not None:
        _check_plotting(plot, overwrite)
    requests, is_file = _requests(prompt, input_len, **kwargs)
    from ockham.lab.traffic import Sending, Server

    server = Server(base_url, model, api_key, timeout)
    reports = []
    wanted: Sequence[float | None] = rates or [None if is_file else math.inf]
    for rate in wanted:
        how = Sending(
            rate=rate,
            concurrency=kwargs["max_concurrency"],
            seed=kwargs["seed"],
            ignore_eos=kwargs["workload"] is None if ignore_eos is None else ignore_eos,
            recorded_answers=recorded_answers,
            pauses=pauses,
            extra_body=more,
        )
        report = _measure(server, requests, how, goal)
        reports.append(report)
        if not as_json:
            for line in _lines(report):
                click.echo(line)
    if as_json:
        # msgspec writes NaN, the spread of nothing, as null.
        whole = {"kind": "serve", "workload": kwargs["workload"], "runs": reports}
        click.echo(msgspec.json.format(msgspec.json.encode(whole), indent=2))
    if plot is not None:
        drawn = _draw(plot.suffix.lstrip("."), kwargs["workload"] or "random", reports)
        write_output(plot, drawn, overwrite)
    if any(report["failed"] for report in reports):
        sys.exit(1)  # not ctx.exit, whose status `main` never sees: it is not standalone


def _requests(
    prompt: str | None, input_len: int | None, **kwargs: Any
) -> tuple[list[Request], bool]:
    """The requests, and whether they come from a file with times of its own."""
    from ockham.lab.workloads import Request

    count, length = kwargs["num_prompts"], kwargs["output_len"]
    if kwargs["workload"] is not None:
        if prompt is not None or input_len is not None:
            raise ConfigError("--workload brings its own prompts: leave --prompt and --input-len.")
        requests, is_file = chosen_workload(**kwargs)
        if length is not None:
            requests = [msgspec.structs.replace(r, max_tokens=length) for r in requests]
        return requests[:count], is_file
    if prompt is not None and input_len is not None:
        raise ConfigError(
            f"--prompt and --input-len {input_len} contradict each other: a prompt has the length "
            "it has. Give one of them."
        )
    input_len = DEFAULT_INPUT_LEN if input_len is None else input_len
    for name, value in (("input-len", input_len), ("vocab-size", kwargs["vocab_size"])):
        if not value > 0:
            raise ConfigError(f"--{name} must be above 0, got {value}.")
    numbers = random.Random(kwargs["seed"])
    return [
        Request(
            id=f"random-{number}",
            prompt=prompt,
            prompt_token_ids=None
            if prompt is not None
            else [numbers.randrange(kwargs["vocab_size"]) for _ in range(input_len)],
            max_tokens=length or 64,
        )
        for number in range(count or 100)
    ], False


def _object(text: str) -> dict[str, Any]:
    """The JSON object that a flag gives."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f'--extra-body {text!r} is no JSON object ({error}); write {{"reuse": "chunk"}}.'
        ) from error


def _goal(targets: Sequence[str]) -> dict[str, float]:
    """Latency -> seconds that it may take."""
    goal: dict[str, float] = {}
    for target in (part for text in targets for part in re.split(r"[\s,]+", text.strip())):
        name, _, value = target.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if name not in LATENCIES or not milliseconds > 0:
            raise ConfigError(
                f"--goodput {target!r}: write one of {', '.join(LATENCIES)}, a colon and "
                "milliseconds above 0, as in ttft:500."
            )
        goal[name] = milliseconds / 1e3
    return goal


def _measure(
    server: Server, requests: Sequence[Request], how: Sending, goal: dict[str, float]
) -> dict[str, Any]:
    from ockham.lab.traffic import send

    traffic = asyncio.run(send(server, requests, how))
    return _report(traffic, how, goal)


def _report(traffic: Traffic, how: Sending, goal: dict[str, float]) -> dict[str, Any]:
    answers, seconds = traffic.answers, traffic.seconds
    good = [answer for answer in answers if answer.error is None]
    generated = sum(answer.generated_tokens for answer in good)
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    in_time = sum(_is_in_time(answer, goal) for answer in good)
    finite = how.rate is not None and math.isfinite(how.rate)
    return {
        "model": traffic.model,
        "request_rate": how.rate if finite else None,
        "max_concurrency": how.concurrency,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "errors": [f"{a.id}: {a.error}" for a in answers if a.error][:ERRORS_SHOWN],
        "duration_s": seconds,
        "prompt_tokens": prompt_tokens,
        "cached_prompt_tokens": sum(answer.cached_tokens for answer in good),
        "generated_tokens": generated,
        "requests_per_s": len(good) / seconds,
        "output_tokens_per_s": generated / seconds,
        "total_tokens_per_s": (prompt_tokens + generated) / seconds,
        "goodput_target_ms": {name: 1e3 * limit for name, limit in goal.items()} or None,
        "goodput_requests_per_s": in_time / seconds if goal else None,
        "time_to_first_token_s": spread([answer.first_s for answer in good]),
        "time_per_output_token_s": spread(
            [a.per_token_s for a in good if a.gaps_s and not math.isnan(a.per_token_s)]
        ),
        "inter_token_latency_s": spread([gap for answer in good for gap in answer.gaps_s]),
        "end_to_end_s": spread([answer.end_s for answer in good]),
        "client_lag_s": spread([answer.lag_s for answer in good]),
        "client_cpu_share": traffic.client_cpu_s / seconds,
    }


def _is_in_time(answer: Answer, goal: dict[str, float]) -> bool:
    took = {"ttft": answer.first_s, "tpot": answer.per_token_s, "e2el": answer.end_s}
    # A single token has no time per output token, and so keeps any limit of it.
    return not any(took[name] > limit for name, limit in goal.items())


def _lines(report: dict[str, Any]) -> list[str]:
    rate = report["request_rate"]
    lines = [
        *([f"at {rate:g} a second:"] if rate is not None else []),
        f"{report['completed']} completed, {report['failed']} failed in "
        f"{duration(report['duration_s'])}",
        *(f"  error: {error}" for error in report["errors"]),
        f"throughput               {report['requests_per_s']:.2f} requests/s, "
        f"{report['output_tokens_per_s']:.1f} output tokens/s, "
        f"{report['total_tokens_per_s']:.1f} tokens/s in all",
    ]
    if report["cached_prompt_tokens"]:
        share = report["cached_prompt_tokens"] / report["prompt_tokens"]
        lines.append(f"prompt tokens            {share:.0%} taken from a cache by the server")
    if report["goodput_target_ms"]:
        target = ", ".join(f"{name} {ms:g} ms" for name, ms in report["goodput_target_ms"].items())
        lines.append(
            f"goodput                  {report['goodput_requests_per_s']:.2f} requests/s ({target})"
        )
    if report["completed"]:
        for name, key in (
            ("time to first token", "time_to_first_token_s"),
            ("time per output token", "time_per_output_token_s"),
            ("inter-token latency", "inter_token_latency_s"),
            ("end to end", "end_to_end_s"),
        ):
            values = report[key]
            if math.isnan(values["median"]):
                lines.append(f"{name:<24} not measured: every answer came in one piece")
                continue
            lines.append(
                f"{name:<24} median {duration(values['median'])}, mean {duration(values['mean'])}, "
                f"p90 {duration(values['p90'])}, p99 {duration(values['p99'])}"
            )
    if report["client_cpu_share"] > BUSY_SHARE:
        lines.append(
            f"this client was busy {report['client_cpu_share']:.0%} of the time and sent up to "
            f"{duration(report['client_lag_s']['max'])} late: the server may be faster than this."
        )
    return lines


def _check_plotting(path: Path, overwrite: bool) -> None:
    """Refuse before anything is measured what could not be drawn afterwards."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib: pip install 'ockham[plots]', or leave it out."
        ) from error
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ConfigError(f"--plot {path}: its ending must be one of {', '.join(formats)}.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no directory {path.absolute().parent}.")
    check_output(path, overwrite)


def _draw(form: str, title: str, reports: Sequence[dict[str, Any]]) -> bytes:
    """Latencies (median and p99) against the rate at which requests were completed, as a file of
    matplotlib's format `form`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    reports = sorted(reports, key=lambda report: report["requests_per_s"])
    rates = [report["requests_per_s"] for report in reports]
    axes = figure.subplots(1, 2)
    for axis, (name, key) in zip(
        axes,
        (("time to first token", LATENCIES["ttft"]), ("time per output token", LATENCIES["tpot"])),
        strict=True,
    ):
        for figure_name, style in (("median", "o-"), ("p99", "o--")):
            values = [1e3 * report[key][figure_name] for report in reports]
            axis.plot(rates, values, style, label=figure_name)
        axis.set(xlabel="requests/s completed", ylabel=f"{name}, ms", title=title)
        axis.set_ylim(bottom=0)
        axis.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form)
    return drawn.getvalue()
