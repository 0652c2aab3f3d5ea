"""`ockham plan`: find the cheapest configuration above a floor, for a model, a machine and a
workload."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.config_file import parse_yaml
from ockham.cli.options import engine_config, engine_options, option, overwrite_option
from ockham.cli.other_machines import rates_there, tell_mix
from ockham.cli.value_types import Integer, Text
from ockham.cli.workload_options import chosen_workload
from ockham.core.durations import duration_s
from ockham.core.errors import ConfigError
from ockham.core.logs import say
from ockham.core.owned_files import check_output, write_output

if TYPE_CHECKING:
    from ockham.core.config import EngineConfig
    from ockham.lab.workloads import Request
    from ockham.plan.floors import Floors
    from ockham.plan.log import Log
    from ockham.plan.machines import Machine
    from ockham.plan.result import Plan
    from ockham.plan.space import Space

REQUESTS = 64
OFF = "off"


@command(own="Plan")
@option(
    "--workload",
    required=True,
    metavar="NAME|FILE",
    help="Traffic of a kind (see `ockham bench workload`), or from a file of requests or a trace "
    "of Mooncake's.",
)
@option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=COUNT",
    help="A setting of the workload, such as sessions=4; may be given more than once.",
)
@option(
    "--requests",
    type=Integer(1),
    default=REQUESTS,
    show_default=True,
    help="Requests of the workload that are looked at, at most: whole sessions, in its order.",
)
@option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Sessions that begin in a second, at random times; with --machines, requests in a second. "
    "[default: the workload's own times]",
)
@option(
    "--floor",
    default="",
    metavar="METRIC<=VALUE,...",
    help="What must be kept to: kl, kl_p99, agreement, a task's score (recall>=0.9, or "
    "recall>=95% of the exact model's), ttft_p95, tpot_p95, e2e_p95 (p50, p99) in seconds, "
    "tokens_per_second, memory. Without kl, kl_p99, agreement and tasks, only exact settings are "
    "looked at.",
)
@option(
    "--minimise",
    "--minimize",
    "goal",
    type=click.Choice(("seconds", "cost", "bytes", "joules")),
    default="seconds",
    show_default=True,
    help="Seconds of work for a request, their cost at --price, bytes of memory that weights and "
    "state take, or joules as the cost model has them.",
)
@option(
    "--price",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of an hour of this machine.",
)
@option(
    "--time",
    "time_limit",
    metavar="DURATION",
    default="10m",
    show_default=True,
    help="The longest that the plan may take: 90, 10m, 1h. What is known then is told.",
)
@option(
    "--vary",
    default=None,
    metavar="SETTING,...",
    help="Vary these settings only. [default: all that techniques name]",
)
@option(
    "--also",
    multiple=True,
    metavar="SETTING=VALUE",
    help="A further choice, such as model=DIRECTORY of a compressed model, or a drafter with its "
    "model; may be given more than once.",
)
@option(
    "--log",
    "log_file",
    metavar="FILE",
    default=None,
    help="Where measurements are kept, and those of earlier plans are found; 'off' for nowhere. "
    "[default: plans/log.jsonl in $OCKHAM_CACHE, else in ~/.cache/ockham]",
)
@option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the settings as YAML, for --config of serve, run and chat.",
)
@option(
    "--html",
    "page_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the frontier and all that was looked at.",
)
@overwrite_option
@option("--json", "as_json", is_flag=True, help="Write the plan on stdout as one JSON object.")
@option("--explain", is_flag=True, help="Say of each configuration and choice what became of it.")
@option(
    "--rounds",
    type=Integer(0),
    default=3,
    show_default=True,
    help="In which default and chosen are timed in turns, at the end; 0 times nothing.",
)
@option(
    "--machine",
    "machine_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help="Plan for the machine that this file of `ockham doctor --json` describes; nothing is "
    "timed then.",
)
@option(
    "--machines",
    "machine_prices",
    default=None,
    metavar="FILE:PRICE,...",
    help="Find the cheapest mix of these machines, each with its price an hour, that serves --rate "
    "under the latencies of --floor, with MODEL's settings as they are given.",
)
@option(
    "--beside",
    metavar="URL",
    default=None,
    help="Work only while this server of Ockham's has nothing to do.",
)
@option("--api-key", type=Text(), default=None, help="Of the server that --beside names.")
@option("--save/--no-save", "keep_plan", default=True, help="Keep the plan for --auto.")
@engine_options
def plan(
    workload: str,
    settings: tuple[str, ...],
    requests: int,
    rate: float | None,
    floor: str,
    goal: str,
    price: float,
    time_limit: str,
    vary: str | None,
    also: tuple[str, ...],
    log_file: str | None,
    output: Path | None,
    page_file: Path | None,
    overwrite: bool,
    as_json: bool,
    explain: bool,
    rounds: int,
    machine_file: Path | None,
    machine_prices: str | None,
    beside: str | None,
    api_key: str | None,
    keep_plan: bool,
    **kwargs: Any,
) -> None:
    """Find the cheapest configuration of MODEL that keeps to a floor, for a workload on this
    machine. Costs are predicted by simulating the workload, quality is measured, and what is chosen
    is proven on requests that have chosen nothing. Fails (status 1) if it misses a bound on speed
    or memory, as all others do; it is not kept for --auto then.

    \b
    ockham plan smollm2 --workload chat --floor "kl<=0.02" -o plan.yaml --html plan.html
    ockham serve --config plan.yaml
    ockham serve smollm2 --auto
    """
    base = engine_config(**kwargs)
    for path in (output, page_file):
        if path is not None:
            check_output(path, overwrite)
    if output is not None and page_file is not None and _same_file(output, page_file):
        raise ConfigError(f"--output and --html both name {output}; name two files.")
    if machine_prices is not None and (output is not None or page_file is not None):
        raise ConfigError("--machines tells a mix, and writes no file; leave -o and --html out.")
    seconds = _seconds(time_limit)
    _check_scipy()
    from ockham.plan.machines import read_machine

    _check_exact(base)
    _check_generates(base)
    floors = _floors(floor, base)
    asked, _ = chosen_workload(workload, settings, 1000, base.seed)
    asked = first_sessions(asked, requests)
    if machine_prices is not None:
        tell_mix(base, asked, floors, rate, machine_prices, machine_file, as_json)
        return
    machine = None if machine_file is None else read_machine(machine_file)
    space = _space(base, vary, also)
    made = _made(
        base,
        workload,
        asked,
        floors,
        space,
        goal,
        seconds,
        rate=rate,
        price=price,
        log_file=log_file,
        rounds=rounds,
        machine=machine,
        beside=beside,
        api_key=api_key,
    )
    _tell(made, as_json, explain)  # first: a full disk takes nothing from it
    if keep_plan and machine is None and not made.missed and _same_settings(base):
        _keep(made, base.revision)
    _write(made, output, page_file, overwrite)
    if made.missed:
        sys.exit(1)


def _made(
    base: EngineConfig,
    workload: str,
    requests: list[Request],
    floors: Floors,
    space: Space,
    goal: str,
    seconds: float,
    *,
    rate: float | None,
    price: float,
    log_file: str | None,
    rounds: int,
    machine: Machine | None,
    beside: str | None,
    api_key: str | None,
) -> Plan:
    from ockham.plan.beside import Beside
    from ockham.plan.costs import Costs, RateSource
    from ockham.plan.keeping import this_machine
    from ockham.plan.planning import Planner, Wanted
    from ockham.plan.simulation import prompted

    watched = None if beside is None else Beside(beside, api_key, say)
    log = _log(log_file)
    wanted = Wanted(
        base=base,
        workload=workload,
        requests=prompted(base, requests),
        floors=floors,
        goal=goal,
        space=space,
        seed=base.seed,
        rate=rate,
        time_s=seconds,
        machine=this_machine() if machine is None else machine.name,
        rounds=rounds if machine is None else 0,
    )
    there = (lambda rates: rates) if machine is None else rates_there(machine, base)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return Planner(
            wanted,
            log,
            lambda fitting, answers: Costs(
                base,
                fitting,
                answers,
                rate=rate,
                seed=base.seed,
                sources=lambda config: RateSource(config, log, this_machine()),
                there=there,
                hourly=price,
                memory_bytes=None if machine is None else machine.memory_bytes,
            ),
            tell=say,
            wait=(lambda: None) if watched is None else watched.wait,
        ).make()
    except KeyboardInterrupt:
        if log.is_kept:
            say("Stopped. The next plan takes over the measurements that were made.")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        log.close()
        if watched is not None:
            watched.close()


def _end(*_: object) -> None:
    """End as after an error, so that no distributions stay in the directory of temporary files."""
    raise SystemExit(128 + signal.SIGTERM)


def first_sessions(requests: list[Request], most: int) -> list[Request]:
    """The requests of the first sessions: as many whole ones as come to at most `most` requests,
    and one at least."""
    session: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for request in requests:
        first = session[request.id] = session.get(request.after or "", request.id)
        sizes[first] = sizes.get(first, 0) + 1
    taken, left = set[str](), most
    for first, size in sizes.items():
        if taken and size > left:
            break
        taken.add(first)
        left -= size
    return [request for request in requests if session[request.id] in taken]


def _seconds(text: str) -> float:
    try:
        seconds = duration_s(text)
    except ValueError as error:
        raise ConfigError(f"--time: {error}.") from None
    if seconds <= 0:
        raise ConfigError(f"--time must be positive, got {text!r}.")
    return seconds


def _check_scipy() -> None:
    if importlib.util.find_spec("scipy") is None:
        raise ConfigError(
            "planning needs scipy, which serving does not; install it with `pip install "
            "'ockham[plan]'`."
        )


def _check_generates(base: EngineConfig) -> None:
    from ockham.model.loading import plan_model

    planned = plan_model(base)
    planned.source.close()
    if planned.description.pooling is not None:
        raise ConfigError(
            f"{base.model} gives vectors or scores, and plans are made for models that generate "
            "text."
        )


def _check_exact(base: EngineConfig) -> None:
    """Raise ConfigError for an approximate technique among the flags: a plan judges beside what
    they say, and chooses techniques itself."""
    from ockham.core.registry import SEAMS, find, name_of

    for seam, own in SEAMS.items():
        if own.setting is None or not (own.alters_state or own.chooses) or own.offered:
            continue
        given = getattr(base, own.setting)
        if not find(seam, name_of(given)).exact:
            flag = own.setting.replace("_", "-")
            raise ConfigError(
                f"--{flag} {given} is approximate, and a plan judges beside the exact model; leave "
                f"it out, or add it as a choice with --also {flag}={given}."
            )


def _floors(text: str, base: EngineConfig) -> Floors:
    from ockham.lab.tasks import TASKS
    from ockham.plan.floors import parse_floors

    floors = parse_floors(text, list(TASKS))
    if floors.scores and base.skip_tokenizer_init:
        raise ConfigError(f"{floors.scores[0]} needs text; leave --skip-tokenizer-init out.")
    return floors


def _space(base: EngineConfig, vary: str | None, also: tuple[str, ...]) -> Space:
    from ockham.kernels.cores import allowed_cores
    from ockham.model.loading import plan_model
    from ockham.plan.space import Point, space_of

    given: dict[str, list[Any]] = {}
    for pair in also:
        name, equals, value = pair.partition("=")
        if not equals or not value.strip():
            raise ConfigError(f"--also {pair!r}: write SETTING=VALUE.")
        setting = name.strip().replace("-", "_")
        given.setdefault(setting, []).append(_value(value.strip()))
    space = space_of(base, cores=allowed_cores(), also=given)
    for setting, values in given.items():
        for value in values:  # what cannot be had alone is not found out after minutes
            plan_model(Point(((setting, value),)).config(base)).source.close()
    if vary is not None:
        names = [name.strip().replace("-", "_") for name in vary.split(",") if name.strip()]
        space = space.only(names)
    return space


def _value(text: str) -> str | int | float | bool:
    """A number or a truth value as YAML has them; anything else as it is written, JSON too."""
    import yaml

    try:
        value = parse_yaml(text)
    except (ValueError, yaml.YAMLError):
        return text
    return value if isinstance(value, (int, float)) else text


def _log(given: str | None) -> Log:
    from ockham.plan.keeping import directory
    from ockham.plan.log import Log

    if given == OFF:
        return Log(warn=say)
    if given is not None:
        return Log(Path(given), say)
    place = directory()
    if place is None:
        return Log(warn=say)
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the log of measurements cannot be kept in {place} ({error.strerror}); name another "
            "file with --log, or --log off."
        ) from error
    return Log(place / "log.jsonl", say)


def _same_settings(base: EngineConfig) -> bool:
    """Whether the plan is for the model as it is served without flags, but for threads."""
    import msgspec

    plain = msgspec.structs.replace(
        type(base)(), model=base.model, revision=base.revision, threads=base.threads, seed=base.seed
    )
    return base == plain


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths name one regular file, or one that is not there yet."""
    place = os.path.realpath(one)
    return place == os.path.realpath(other) and (os.path.isfile(place) or not os.path.exists(place))


def _keep(made: Plan, revision: str | None) -> None:
    """Keep a plan for --auto; one that cannot be kept is a plan nevertheless."""
    from ockham.plan.keeping import keep

    try:
        keep(made, revision)
    except ConfigError as error:
        say(f"The plan is made, but {error}")


def _write(made: Plan, output: Path | None, page_file: Path | None, overwrite: bool) -> None:
    from ockham.plan.report import page, settings_yaml

    refused = []
    for path, text in ((output, settings_yaml), (page_file, page)):
        if path is not None:
            try:
                write_output(path, text(made).encode(), overwrite)
            except ConfigError as error:
                refused.append(str(error))
    if refused:
        raise ConfigError(" ".join(refused))


def _tell(made: Plan, as_json: bool, explain: bool) -> None:
    import msgspec

    from ockham.plan.report import explained, told

    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2))
        return
    for line in [*told(made), *(explained(made) if explain else ())]:
        click.echo(line)
