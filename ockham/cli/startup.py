"""`ockham bench startup`: from the start of a process to the first token, and of an import."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import click
import msgspec

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.report import duration
from ockham.cli.spread import spread
from ockham.cli.value_types import Integer
from ockham.core.config import EngineConfig

WARMUP = 1
PROMPT_IDS = "1,2,3,4,5,6,7,8"


@command()
@option("--repeats", type=Integer(1), default=9, help="Processes to start.", show_default=True)
@option(
    "--packing-repeats",
    type=Integer(0),
    default=1,
    help="Processes to start that pack the weights themselves, where others find them packed.",
    show_default=True,
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@option("--raw", is_flag=True, help="Complete the prompt, where a chat template would be used.")
@engine_options
def startup(repeats: int, packing_repeats: int, as_json: bool, raw: bool, **kwargs: Any) -> None:
    """Time fresh processes: to the first byte of a completion, and to the end of an import.

    The prompt is a text, which goes through the chat template where `ockham run` uses it, and the
    tokenizer is loaded with the model. A model without one is given token ids. Weights that are
    kept packed for the next start (--weight-cache) are packed in a start that does not count.
    """
    config = engine_config(**kwargs)
    prompt = [*_prompt(config), *["--raw"] * raw]
    run = ["-m", "ockham", "run", *_flags(config), *prompt, "-n", "8", "--stats"]
    # Interleaved, so that a drift of the machine falls on all of them.
    figures: dict[str, list[float]] = {"first_token_s": [], "import_s": [], "python_s": []}
    cached = False
    for repeat in range(WARMUP + repeats):
        first_token_s, cached = _first_byte(run)
        measured = {
            "first_token_s": first_token_s,
            "import_s": _whole_s(["-c", "import ockham"]),
            "python_s": _whole_s(["-c", "pass"]),
        }
        if repeat >= WARMUP:
            for name, seconds in measured.items():
                figures[name].append(seconds)
    if cached:
        figures["packing_first_token_s"] = [
            _first_byte([*run, "--weight-cache", "off"])[0] for _ in range(packing_repeats)
        ]
    report: dict[str, Any] = {name: spread(values) for name, values in figures.items() if values}
    report["packed_before"] = cached
    report["prompt"] = "text" if prompt[0] == "--prompt" else "token ids"
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    how = f", a prompt of {report['prompt']}" + ", weights packed before" * cached
    for name, what in (
        ("first_token_s", f"`ockham run {config.model}` to its first byte{how}"),
        ("packing_first_token_s", "the same, packing the weights"),
        ("import_s", "a process that only imports ockham"),
        ("python_s", "a process that does nothing"),
    ):
        if name in report:
            values = report[name]
            tails = f"{duration(values['min'])} to {duration(values['max'])}"
            click.echo(f"{what:<38} {duration(values['median'])} ({tails})")


def _flags(config: EngineConfig) -> list[str]:
    """The model and the settings that differ from their defaults, as flags of `ockham run`."""
    flags = [config.model]
    for field in msgspec.structs.fields(EngineConfig):
        value = getattr(config, field.name)
        if field.name == "model" or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def _prompt(config: EngineConfig) -> list[str]:
    """A prompt as text, or as token ids for a directory that has no tokenizer."""
    from ockham.model.hub import resolve

    path = resolve(config.model, config.revision)
    without = path.is_dir() and not (path / "tokenizer.json").exists()
    if config.skip_tokenizer_init:
        return ["--prompt-token-ids", PROMPT_IDS]
    if without and config.tokenizer is None:
        return ["--prompt-token-ids", PROMPT_IDS, "--skip-tokenizer-init"]
    return ["--prompt", "def f("]


def _first_byte(arguments: list[str]) -> tuple[float, bool]:
    """Seconds to the first byte, and whether the weights had been packed before.

    Raises ClickException with what the process says if it completes nothing."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None, "stdout is a pipe"
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        _, said = process.communicate()
    if not first:
        raise click.ClickException(f"the model completed nothing: {said.decode().strip()}")
    return seconds, b"the packed weights come from" in said


def _whole_s(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - begin
