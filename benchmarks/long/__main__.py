"""python -m benchmarks.long setup | run | report: see benchmarks/README.md."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import click

from benchmarks.long.configurations import CONVERTED, configurations
from benchmarks.long.report import report as written
from benchmarks.long.rounds import Run
from benchmarks.long.workloads import WORKLOADS, make_long_checkpoint
from benchmarks.peers.__main__ import FOLDER, THREADS, commit, folder_option, named, say
from benchmarks.peers.checkpoint import make_checkpoint
from benchmarks.peers.environments import REPOSITORY, Folder, SetupFailed, convert, install
from benchmarks.peers.peers import PEERS
from benchmarks.peers.quality import NoModel, make_real_checkpoint, real_model
from benchmarks.peers.results import Results
from ockham.cli.machine import processor
from ockham.kernels.cores import allowed_cores
from ockham.kernels.native import core
from ockham.text.tokenizer import Tokenizer

PAGE = REPOSITORY / "benchmarks" / "RESULTS-long.md"
RESULTS = FOLDER / "long.jsonl"
NAMES = list(
    dict.fromkeys(each.name for workload in WORKLOADS for each in configurations(workload))
)


@click.group()
def main() -> None:
    """Measure long prompts with Ockham and with OpenVINO GenAI on this machine."""


@main.command()
@folder_option
def setup(folder: Path) -> None:
    """Install OpenVINO GenAI and convert both models for both: minutes, and 10 GB."""
    place = Folder(folder)
    try:
        make_real_checkpoint(place.real_checkpoint, real_model())
        make_checkpoint(place.checkpoint)
        make_long_checkpoint(place)
        for engine, each in CONVERTED.items():
            install(place, PEERS[engine], say)
            for which in ("real", "long"):
                convert(place, each, say, which)
    except (NoModel, SetupFailed) as error:
        raise click.ClickException(str(error)) from None


@main.command()
@folder_option
@click.option(
    "--configurations",
    "chosen",
    default=",".join(NAMES),
    help="Names with commas between.  [default: all]",
)
@click.option(
    "--workloads",
    "tasks",
    default=",".join(each.name for each in WORKLOADS),
    help="Names with commas between.  [default: all]",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--first-round", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=THREADS, show_default=True)
@click.option("--seconds", type=float, default=None, help="Begin no round that would end later.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=RESULTS,
    help="File to add results to; begin a new one after a change.  [default: in build/peers]",
)
def run(
    folder: Path,
    chosen: str,
    tasks: str,
    rounds: int,
    first_round: int,
    threads: int,
    seconds: float | None,
    results: Path,
) -> None:
    """Read long prompts in rounds that alternate the engines."""
    started = time.perf_counter()
    if threads > allowed_cores():
        raise click.ClickException(
            f"{threads} threads were asked for, but only {allowed_cores()} cores may be used; "
            "lower --threads."
        )
    unknown = set(chosen.split(",")) - set(NAMES)
    if unknown:
        raise click.ClickException(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}."
        )
    place, file = Folder(folder), Results(results)
    for each in CONVERTED.values():
        for which in ("real", "long"):
            if not place.model(each, which).exists():
                raise click.ClickException(
                    f"there is no {place.model(each, which)}; run `setup` first."
                )
    tokenizer = Tokenizer(real_model())
    wanted = named(tasks, WORKLOADS)
    file.add(
        kind="session",
        date=time.strftime("%Y-%m-%d %H:%M"),
        commit=commit(),
        processor=processor(),
        cores=allowed_cores(),
        threads=threads,
        kernel=platform.release(),
        python=platform.python_version(),
        isa=core.isa_name(core.chosen()) if core is not None else None,
    )
    Run(
        folder=place,
        names=set(chosen.split(",")),
        workloads=[each for each in WORKLOADS if each.name in wanted],
        rounds=range(first_round, first_round + rounds),
        threads=threads,
        results=file,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        say=say,
        deadline=float("inf") if seconds is None else started + seconds,
    ).execute()


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=PAGE)
@click.argument("results", nargs=-1, type=click.Path(exists=True, path_type=Path))
def report(out: Path, results: tuple[Path, ...]) -> None:
    """Write benchmarks/RESULTS-long.md from files of results."""
    files = results or (RESULTS,)
    try:
        page = written([record for path in files for record in Results(path).records])
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    out.write_text(page)
    say(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m benchmarks.long"))
