"""python -m benchmarks.peers setup | run | report: see benchmarks/README.md."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import click

from benchmarks.peers.answering import make_answering_checkpoint
from benchmarks.peers.checkpoint import make_checkpoint
from benchmarks.peers.environments import (
    REPOSITORY,
    Folder,
    SetupFailed,
    convert,
    install,
    weight_bytes,
)
from benchmarks.peers.peers import CONFIGURATIONS, PEERS, Configuration
from benchmarks.peers.quality import NoModel, make_real_checkpoint, measure, real_model
from benchmarks.peers.report import report as written
from benchmarks.peers.results import Results
from benchmarks.peers.rounds import Run
from benchmarks.peers.workloads import WORKLOADS, Drafts, takes_part
from ockham.cli.machine import instruction_sets, measure_limits, memory_bytes, processor
from ockham.kernels.cores import allowed_cores
from ockham.kernels.native import core
from ockham.lab.evidence.real_model import TEXTS

FOLDER = REPOSITORY / "build" / "peers"
RESULTS = REPOSITORY / "benchmarks" / "RESULTS.md"
THREADS = 2

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=FOLDER,
    help="Where environments and models lie.  [default: build/peers]",
)
configurations_option = click.option(
    "--configurations",
    "chosen",
    default=",".join(each.name for each in CONFIGURATIONS),
    help="Names with commas between.  [default: all]",
)


@click.group()
def main() -> None:
    """Measure Ockham beside other engines on this machine."""


@main.command()
@folder_option
@configurations_option
def setup(folder: Path, chosen: str) -> None:
    """Install the peers and convert the checkpoint for each: minutes, and some tens of GB."""
    place = Folder(folder)
    click.echo("making the checkpoint ...", err=True)
    make_checkpoint(place.checkpoint)
    make_answering_checkpoint(place.answering_checkpoint, place.checkpoint)
    failures = 0
    broken: set[str] = set()
    for each in configurations(chosen):
        try:
            if each.peer not in broken:
                install(place, PEERS[each.peer], say)
        except SetupFailed as error:
            broken.add(each.peer)
            say(f"{PEERS[each.peer].title} cannot be installed: {error}")
        if each.peer in broken:
            failures += 1
            continue
        try:
            convert(place, each, say)
            if any(isinstance(task, Drafts) and takes_part(each, task) for task in WORKLOADS):
                convert(place, each, say, "answering")
        except SetupFailed as error:
            failures += 1
            say(f"{each.title} cannot be given the model: {error}")
    if failures:
        raise click.ClickException(f"{failures} configuration(s) are not ready; `run` skips them.")


@main.command()
@folder_option
@configurations_option
@click.option(
    "--workloads",
    "tasks",
    default=",".join(each.name for each in WORKLOADS),
    help="Names with commas between.  [default: all]",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=THREADS, show_default=True)
@click.option("--seconds", type=float, default=None, help="Begin nothing that would end later.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=FOLDER / "results.jsonl",
    help="File to add results to; what is there is not run again.  [default: in build/peers]",
)
def run(
    folder: Path,
    chosen: str,
    tasks: str,
    rounds: int,
    threads: int,
    seconds: float | None,
    results: Path,
) -> None:
    """Run all workloads in rounds that alternate the engines."""
    started = time.perf_counter()
    if threads > allowed_cores():
        raise click.ClickException(
            f"{threads} threads were asked for, but only {allowed_cores()} cores may be used; "
            "lower --threads."
        )
    place, file = Folder(folder), Results(results)
    ready = []
    for each in configurations(chosen):
        if place.model(each).exists():
            ready.append(each)
            continue
        say(f"{each.title} is skipped: there is no {place.model(each)}; run setup.")
        if not any(
            known["kind"] == "skipped" and known["configuration"] == each.name
            for known in file.records
        ):
            file.add(kind="skipped", configuration=each.name, reason="not set up")
    file.add(kind="session", **session(place, ready, threads))
    whole = Run(
        folder=place,
        configurations=ready,
        workloads=[each for each in WORKLOADS if each.name in named(tasks, WORKLOADS)],
        rounds=rounds,
        threads=threads,
        results=file,
        say=say,
        deadline=float("inf") if seconds is None else started + seconds,
    ).execute()
    say(f"{'all' if whole else 'not all'} {rounds} rounds are in {results}")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.argument("results", nargs=-1, type=click.Path(exists=True, path_type=Path))
def report(out: Path, results: tuple[Path, ...]) -> None:
    """Write benchmarks/RESULTS.md from files of results."""
    files = results or (FOLDER / "results.jsonl",)
    records = [record for path in files for record in Results(path).records]
    out.write_text(written(records))
    say(f"wrote {out}")


@main.command()
@folder_option
@configurations_option
@click.option("--threads", type=click.IntRange(1), default=THREADS, show_default=True)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=FOLDER / "results.jsonl",
    help="File to add results to.  [default: in build/peers]",
)
def quality(folder: Path, chosen: str, threads: int, results: Path) -> None:
    """Measure how far each configuration is from a real unquantised model."""
    place = Folder(folder)
    texts = json.loads(TEXTS.read_text("utf-8"))
    try:
        make_real_checkpoint(place.real_checkpoint, real_model())
    except NoModel as error:
        raise click.ClickException(str(error)) from None
    ready = []
    for each in configurations(chosen):
        if place.python(PEERS[each.peer]).exists():
            ready.append(each)
        else:
            say(f"{each.title} is not set up and is left out.")
    measure(place, ready, texts, threads, Results(results), say)


def session(place: Folder, ready: list[Configuration], threads: int) -> dict[str, object]:
    """What the figures of this call were measured on."""
    limits = measure_limits(threads)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "processor": processor(),
        "cores": allowed_cores(),
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "instruction_sets": instruction_sets(),
        "isa": core.isa_name(core.chosen()) if core is not None else None,
        "limits": {
            name: getattr(limits, name)
            for name in ("read_bytes_per_s", "int8_ops_per_s", "bf16_flops_per_s")
        },
        "token_bytes": {each.name: place.token_bytes(each) for each in ready},
        "weight_bytes": {each.name: weight_bytes(place.model(each)) for each in ready},
    }


def commit() -> str | None:
    """The commit that changed the engine last; None where that is not known, or where the files
    differ from it."""
    engine = ["--", "ockham", "csrc"]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", *arguments, *engine]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    try:
        if git("diff", "--quiet", "HEAD").returncode != 0:
            return None
        return git("log", "-1", "--format=%h").stdout.strip() or None
    except OSError:
        return None


def configurations(chosen: str) -> list[Configuration]:
    names = named(chosen, CONFIGURATIONS)
    return [each for each in CONFIGURATIONS if each.name in names]


class Named(Protocol):
    """What a caller chooses by its name."""

    @property
    def name(self) -> str: ...


def named(text: str, known: Sequence[Named]) -> set[str]:
    """The names in a list with commas. Raises ClickException for one that nothing has."""
    names = set(text.split(","))
    unknown = names - {each.name for each in known}
    if unknown:
        raise click.ClickException(
            f"there is no {', '.join(sorted(unknown))}; "
            f"there are {', '.join(each.name for each in known)}."
        )
    return names


def say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m benchmarks.peers"))
