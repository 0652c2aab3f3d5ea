"""`ockham run-batch -i IN -o OUT`: a file of requests in OpenAI's batch format, offline."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.api.adapters import read_modules
from ockham.cli.adapter_options import modules_option
from ockham.cli.command import command
from ockham.cli.options import Names, engine_config, engine_options, option
from ockham.cli.value_types import Text
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.api.run_batch import Progress

TELL_EVERY_S = 5.0


@command("run-batch")
@option(
    "-i",
    "--input-file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Requests, a JSON object a line: custom_id, method, url, body.",
)
@option(
    "-o",
    "--output-file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Results, a line each as they finish. What it has already is not run again.",
)
@option(
    "--served-model-name",
    cls=Names,
    type=Text(),
    multiple=True,
    help="Names of the model in the requests. [default: MODEL; of a .gguf file its name, too]",
)
@modules_option(option, Names)
@engine_options
def run_batch(
    *,
    input_file: Path,
    output_file: Path,
    served_model_name: tuple[str, ...],
    lora_modules: tuple[str, ...],
    **engine: Any,
) -> None:
    """Run the requests of a file through MODEL, as `ockham serve` would answer them.

    A line that is wrong gets an entry with its error and harms no other. A run that was interrupted
    or killed is resumed by the same command. The exit status is 1 if a request failed, now or
    before.
    """
    from ockham.api.batch_file import BatchInput, BatchOutput
    from ockham.api.run_batch import run_batch as run
    from ockham.cli.report import describe_ledger

    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("ockham.engine").setLevel(logging.INFO)
    config, adapters = engine_config(**engine), read_modules(lora_modules)
    if output_file.exists() and input_file.exists() and output_file.samefile(input_file):
        raise ConfigError(f"{output_file} is the input too; choose another --output-file.")
    given = BatchInput(input_file)
    output = BatchOutput(output_file, given)
    try:
        teller = _Teller()
        progress = asyncio.run(run(config, given, output, served_model_name, teller, adapters))
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on where this ended", err=True)
        raise
    finally:
        output.close()
    teller.show(progress)
    for line in describe_ledger(progress.ledger):
        click.echo(line, err=True)
    if progress.failed:
        click.echo(
            f"{progress.failed:,} requests failed; see error in {output_file}. To run them again, "
            "take their lines out of it and give the same command.",
            err=True,
        )
        sys.exit(1)


class _Teller:
    """Says how far a run is, now and then."""

    def __init__(self) -> None:
        self._begun_s = self._told_s = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            self.show(progress)

    def show(self, progress: Progress) -> None:
        seconds = max(1e-9, time.monotonic() - self._begun_s)
        before = f" ({progress.before:,} before)" if progress.before else ""
        click.echo(
            f"{progress.before + progress.finished:,} of {progress.requests:,} requests{before}, "
            f"{progress.failed:,} failed, {progress.finished / seconds:.1f} requests/s, "
            f"{progress.ledger.generated_tokens / seconds:.0f} tokens/s generated",
            err=True,
        )
