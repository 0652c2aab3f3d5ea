"""python -m benchmarks.embedding setup | run | report | reference: see benchmarks/README.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import click
from tokenizers import Tokenizer

from benchmarks.embedding.documents import WORKLOADS, Count
from benchmarks.embedding.engines import (
    CONFIGURATIONS,
    ENGINES,
    Configuration,
    NoModel,
    checkpoint,
    make_checkpoint,
    model_path,
    packaged_model,
    prepare,
)
from benchmarks.embedding.report import report as written
from benchmarks.embedding.rounds import Run
from benchmarks.peers.__main__ import commit
from benchmarks.peers.environments import REPOSITORY, Folder, SetupFailed, worker_environment
from benchmarks.peers.results import Results
from ockham.cli.machine import processor
from ockham.kernels.cores import allowed_cores
from ockham.kernels.native import core

FOLDER = REPOSITORY / "build" / "embedding"
REFERENCE_FILE = REPOSITORY / "tests" / "helpers" / "minilm_reference.json"
RESULTS = REPOSITORY / "benchmarks" / "RESULTS-embedding.md"

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=FOLDER,
    help="Where environments and models lie.  [default: build/embedding]",
)
configurations_option = click.option(
    "--configurations",
    "chosen",
    default=",".join(each.name for each in CONFIGURATIONS),
    help="Names with commas between.  [default: all]",
)


@click.group()
def main() -> None:
    """Measure Ockham's embeddings beside other engines' on this machine."""


@main.command()
@folder_option
@configurations_option
def setup(folder: Path, chosen: str) -> None:
    """Install the engines and convert the model for each: a quarter of an hour, 4 GB."""
    place = Folder(folder.resolve())
    try:
        make_checkpoint(place)
    except NoModel as error:
        raise click.ClickException(str(error)) from None
    failures = 0
    for each in configurations(chosen):
        try:
            prepare(place, each, say)
        except SetupFailed as error:
            failures += 1
            say(f"{each.title} cannot be set up: {error}")
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
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=FOLDER / "results.jsonl",
    help="File to add results to; begin a new one after a change.  [default: in build/embedding]",
)
def run(folder: Path, chosen: str, tasks: str, rounds: int, threads: int, results: Path) -> None:
    """Run all workloads in rounds that alternate the engines: a minute a round."""
    if threads > allowed_cores():
        raise click.ClickException(
            f"{threads} threads were asked for, but only {allowed_cores()} cores may be used; "
            "lower --threads."
        )
    place, file = Folder(folder.resolve()), Results(results)
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
    ready = []
    for each in configurations(chosen):
        if model_path(place, each).exists():
            ready.append(each)
        else:
            say(f"{each.title} is skipped: there is no {model_path(place, each)}; run setup.")
            file.add(kind="skipped", configuration=each.name, reason="it is not set up")
    unknown = set(tasks.split(",")) - {each.name for each in WORKLOADS}
    if unknown:
        raise click.ClickException(f"there is no workload {', '.join(sorted(unknown))}.")
    Run(
        folder=place,
        configurations=ready,
        workloads=[each for each in WORKLOADS if each.name in tasks.split(",")],
        rounds=rounds,
        threads=threads,
        results=file,
        count=counter(checkpoint(place)),
        say=say,
    ).execute()


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.argument("results", nargs=-1, type=click.Path(exists=True, path_type=Path))
def report(out: Path, results: tuple[Path, ...]) -> None:
    """Write benchmarks/RESULTS-embedding.md from files of results."""
    files = results or (FOLDER / "results.jsonl",)
    try:
        page = written([record for path in files for record in Results(path).records])
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    out.write_text(page)
    say(f"wrote {out}")


@main.command()
@folder_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=REFERENCE_FILE,
    help="[default: tests/helpers/minilm_reference.json]",
)
def reference(folder: Path, out: Path) -> None:
    """Write what sentence-transformers says of some sentences, for the tests."""
    python = Folder(folder.resolve()).python(ENGINES["sentence-transformers"])
    if not python.exists():
        raise click.ClickException(f"there is no {python}; run setup.")
    command = [str(python), "-m", "benchmarks.embedding.reference", str(packaged_model()), str(out)]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=os.environ | worker_environment(1))
    say(f"wrote {out}")


def counter(model: Path) -> Count:
    """Counts the tokens of a text, without the marks around it."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def configurations(chosen: str) -> list[Configuration]:
    names = set(chosen.split(","))
    unknown = names - {each.name for each in CONFIGURATIONS}
    if unknown:
        raise click.ClickException(
            f"there is no {', '.join(sorted(unknown))}; "
            f"there are {', '.join(each.name for each in CONFIGURATIONS)}."
        )
    return [each for each in CONFIGURATIONS if each.name in names]


def say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m benchmarks.embedding"))
