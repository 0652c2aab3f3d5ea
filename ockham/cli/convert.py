"""`ockham convert`: write a model as a directory of packed weights that loads directly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from ockham.cli.options import option
from ockham.cli.value_types import Integer, Quantization, quantizations
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import option_names, techniques

CALIBRATION_TOKENS = 32768


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--quantization",
    type=Quantization(),
    default=None,
    help=lambda: (
        f"Weight format: {', '.join(quantizations())}; without it, every matrix as loading MODEL "
        "would hold it."
    ),
)
@option(
    "--group-size",
    type=Integer(1),
    default=None,
    help="Inputs that share a scale, for formats that let it be chosen.",
)
@option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help='Text (or .jsonl with "text") that weights are fitted to; it takes a while.',
)
@option(
    "--calibration-tokens",
    type=Integer(1),
    default=None,
    help="Tokens of it to use.  [default: 32768]",
)
@option(
    "--lora",
    default=None,
    metavar="DIR",
    help="PEFT adapter (LoRA) to merge into the weights: a directory, or a built-in one's name.",
)
@option("--revision", default=None, help="Branch, tag or commit of a model on the hub.")
def convert(
    model: str,
    out: Path,
    quantization: str | None,
    group_size: int | None,
    calibration: Path | None,
    calibration_tokens: int | None,
    lora: str | None,
    revision: str | None,
) -> None:
    """Convert MODEL (a directory, a .gguf file, a hub name) to the new directory OUT.

    OUT holds packed weights, config.json and the tokenizer; `ockham run OUT` gives what
    `ockham run MODEL --quantization ...` gives, to the bit, and starts without packing anything.
    With --lora it is MODEL as the adapter changes it.
    """
    if group_size is not None:
        grouped = {
            each.name: each.forms
            for each in techniques("format")
            if "group" in option_names(each.options)
        }
        if quantization not in grouped:
            examples = ", ".join(form for forms in grouped.values() for form in forms[1:2])
            raise ConfigError(
                f"--group-size is for --quantization {' or '.join(grouped)} only ({examples} has "
                "one)."
            )
        quantization = f"{quantization}:{group_size}"
    if calibration_tokens is not None and calibration is None:
        raise ConfigError("--calibration-tokens is for --calibration FILE only.")

    from ockham.core.units import readable
    from ockham.model import converting
    from ockham.model.hub import resolve_adapter

    started = time.perf_counter()
    config = EngineConfig(model=model, revision=revision, quantization=quantization)
    text = None
    if calibration is not None:
        most = calibration_tokens or CALIBRATION_TOKENS
        text = converting.CalibrationFile(calibration, most, partial(_encode, config))
    adapter = None if lora is None else resolve_adapter(lora)
    tell = partial(click.echo, err=True)
    written = converting.convert(config, out, tell, text, adapter)
    click.echo(
        f"wrote {readable(written)} of weights to {out} in {time.perf_counter() - started:.1f} s",
        err=True,
    )


def _encode(config: EngineConfig, checkpoint: Path, text: str) -> Sequence[int]:
    """The token ids of a text, as the checkpoint's tokenizer has them."""
    from ockham.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config, checkpoint)
    if tokenizer is None:
        raise ConfigError("calibration needs the model's tokenizer.")
    return tokenizer.encode(text, add_special_tokens=False)
