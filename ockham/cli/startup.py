"""`ockham bench startup`: from the start of a process to the first token, and of an import."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import click

from ockham.cli.options import Integer, option
from ockham.cli.report import duration
from ockham.cli.spread import spread

WARMUP = 1


@click.command()
@click.argument("model", default="lab")
@option("--repeats", type=Integer(1), default=9, help="Processes to start.", show_default=True)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def startup(model: str, repeats: int, as_json: bool) -> None:
    """Time fresh processes: to the first byte of a completion, and to the end of an import."""
    run = ["-m", "ockham", "run", model, "--prompt", "def f(", "--max-tokens", "8"]
    # Interleaved, so that a drift of the machine falls on all of them.
    figures: dict[str, list[float]] = {"first_token_s": [], "import_s": [], "python_s": []}
    for repeat in range(WARMUP + repeats):
        measured = {
            "first_token_s": _first_byte_s(run),
            "import_s": _whole_s(["-c", "import ockham"]),
            "python_s": _whole_s(["-c", "pass"]),
        }
        if repeat >= WARMUP:
            for name, seconds in measured.items():
                figures[name].append(seconds)
    report: dict[str, Any] = {name: spread(values) for name, values in figures.items()}
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    for name, what in (
        ("first_token_s", f"`ockham run {model}` to its first byte"),
        ("import_s", "a process that only imports ockham"),
        ("python_s", "a process that does nothing"),
    ):
        values = report[name]
        tails = f"{duration(values['min'])} to {duration(values['max'])}"
        click.echo(f"{what:<38} {duration(values['median'])} ({tails})")


def _first_byte_s(arguments: list[str]) -> float:
    """Raises ClickException if the process says nothing."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None, "stdout is a pipe"
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if not first:
        raise click.ClickException("the model completed nothing; try `ockham run` by hand.")
    return seconds


def _whole_s(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - begin
