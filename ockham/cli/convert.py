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
    "--adaptive-groups",
    "least_gain",
    type=float,
    default=None,
    metavar="SHARE",
    help="Choose the group of each tensor: it is halved while scales shrink by more than this "
    "share, such as 0.1.",
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
@option(
    "--mix",
    multiple=True,
    metavar="WHICH=QUANTIZATION",
    help="Another format for some tensors: a role (embedding, head, qkv, attention_output, "
    "gate_up, down, router) or a pattern of names; the last that fits counts. A correction may "
    "follow: down=int4:64+NAME:rank=16.",
)
@option(
    "--transform",
    "transforms",
    multiple=True,
    metavar="NAME[:OPTIONS]",
    help=lambda: (
        "Rewrite the model first; may be given more than once, and is applied in that order: "
        f"{', '.join(each.name for each in techniques('transform'))}."
    ),
)
@option(
    "--correction",
    default=None,
    metavar="NAME[:OPTIONS]",
    help=lambda: (
        "Add a sum of low rank to the products of rounded matrices: "
        f"{', '.join(each.name for each in techniques('correction'))}; such as NAME:rank=32."
    ),
)
@option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default=None,
    help="Of a model that is transformed and not quantised.  [default: the original's]",
)
@option(
    "--widen",
    is_flag=True,
    help="Transform a model that is quantised: what it holds is taken for its weights.",
)
@option("--revision", default=None, help="Branch, tag or commit of a model on the hub.")
def convert(
    model: str,
    out: Path,
    quantization: str | None,
    group_size: int | None,
    least_gain: float | None,
    calibration: Path | None,
    calibration_tokens: int | None,
    lora: str | None,
    mix: Sequence[str],
    transforms: tuple[str, ...],
    correction: str | None,
    dtype: str | None,
    widen: bool,
    revision: str | None,
) -> None:
    """Convert MODEL (a directory, a .gguf file, a hub name) to the new directory OUT.

    OUT holds packed weights, config.json and the tokenizer; `ockham run OUT` gives what
    `ockham run MODEL --quantization ...` gives, to the bit, and starts without packing anything.
    (With a built-in MODEL compare with `ockham run OUT --raw`: it is asked without a template.)
    With --lora it is MODEL as the adapter changes it. With --transform it is MODEL as rewritten;
    without --quantization OUT is then a plain checkpoint, which can be converted again.
    """
    if group_size is not None and least_gain is not None:
        raise ConfigError("--group-size is for all tensors, --adaptive-groups for each: name one.")
    if least_gain is not None and quantization is None:
        raise ConfigError("--adaptive-groups is for --quantization FORMAT only.")
    if group_size is not None:
        grouped = {
            each.name: each.forms
            for each in techniques("format")
            if "group" in option_names(each.options)
        }
        if quantization not in grouped:
            raise ConfigError(f"--group-size is for --quantization {' or '.join(grouped)} only.")
        quantization = f"{quantization}:{group_size}"
    if calibration_tokens is not None and calibration is None:
        raise ConfigError("--calibration-tokens is for --calibration FILE only.")
    if not transforms and (dtype is not None or widen):
        raise ConfigError(f"{'--dtype' if dtype else '--widen'} is for --transform NAME only.")
    if dtype is not None and (quantization is not None or mix):
        raise ConfigError("--dtype is for models that are not quantised; leave one of both out.")

    from ockham.core.units import readable
    from ockham.model import converting
    from ockham.model.hub import resolve_adapter
    from ockham.model.rewriting.applying import Rewriting

    started = time.perf_counter()
    config = EngineConfig(model=model, revision=revision, quantization=quantization)
    text = None
    if calibration is not None:
        most = calibration_tokens or CALIBRATION_TOKENS
        text = converting.CalibrationFile(calibration, most, partial(encode, config))
    adapter = None if lora is None else resolve_adapter(lora)
    tell = partial(click.echo, err=True)
    rewriting = Rewriting(transforms, dtype, widen) if transforms else None
    written = converting.convert(
        config,
        out,
        tell,
        text,
        adapter,
        _read_mix(mix),
        rewriting,
        correction,
        least_gain=least_gain,
    )
    click.echo(
        f"wrote {readable(written)} of weights to {out} in {time.perf_counter() - started:.1f} s",
        err=True,
    )


def _read_mix(given: Sequence[str]) -> dict[str, str]:
    """Pattern -> quantization. Raises ConfigError for what has no "="."""
    mix: dict[str, str] = {}
    for each in given:
        pattern, equals, quantization = each.partition("=")
        if not equals or not pattern or not quantization:
            raise ConfigError(
                f"--mix {each!r} must be WHICH=QUANTIZATION, such as down=int8 or "
                "'*.layers.0.*=bf16'."
            )
        mix.pop(pattern, None)  # the last one counts
        mix[pattern] = quantization
    return mix


def encode(config: EngineConfig, checkpoint: Path, text: str) -> Sequence[int]:
    """The token ids of a text, as the checkpoint's tokenizer has them."""
    from ockham.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config, checkpoint)
    if tokenizer is None:
        raise ConfigError("calibration needs the model's tokenizer.")
    return tokenizer.encode(text, add_special_tokens=False)
