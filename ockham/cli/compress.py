"""`ockham compress`: find the mix of weight formats that costs least quality, and write it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

from ockham.cli.convert import encode
from ockham.cli.options import option
from ockham.cli.value_types import Integer, Shares
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import techniques


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--bits",
    type=float,
    default=None,
    help="Bits a weight that the result may take on average, embedding, head and scales included.",
)
@option(
    "--bytes", "nbytes", type=Integer(1), default=None, help="Bytes of weights, at most: 80M, 2G."
)
@option(
    "--tokens-per-second",
    type=float,
    default=None,
    help="Speed of decoding one sequence, at least, as the cost model predicts it here.",
)
@option(
    "--floor",
    default=None,
    metavar="kl=NATS",
    help="Mean KL divergence from the unquantised model, at most. Alone: the fewest bytes for it.",
)
@option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help='Text (or .jsonl with "text") of the kind that will be read; by default, technical '
    "English and code.",
)
@option(
    "--calibration-tokens",
    type=Integer(256),
    default=8192,
    show_default=True,
    help="Tokens that formats are fitted to.",
)
@option(
    "--score-tokens",
    type=Integer(2),
    default=512,
    show_default=True,
    help="Tokens that alternatives are scored on.",
)
@option(
    "--measured",
    type=Integer(1),
    default=2,
    show_default=True,
    help="Alternatives of each tensor that are run through the model; others follow their error.",
)
@option(
    "--formats",
    default="",
    metavar="NAME,...",
    help="Take these formats only, such as int4,int8.  [default: all]",
)
@option(
    "--widths",
    type=Shares(),
    default="",
    metavar="SHARE,...",
    help="Let feed-forwards also keep these shares of their channels, such as 0.75,0.5.",
)
@option(
    "--drop",
    is_flag=True,
    help="Let layers also lose their attention, or all of their feed-forward but one step.",
)
@option(
    "--correction",
    "corrections",
    multiple=True,
    metavar="NAME[:OPTIONS]",
    help=lambda: (
        "Let matrices also have a sum of low rank beside their format; may be given more than "
        f"once: {', '.join(each.name for each in techniques('correction'))}; with a rank "
        "behind, such as NAME:rank=16."
    ),
)
@option(
    "--scores",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help="Where scores are kept: a run that was stopped goes on, and other goals need no new "
    "scores.  [default: OUT.scores.jsonl]",
)
@option("--threads", type=Integer(1), default=None, help="[default: all cores]")
@option("--revision", default=None, help="Branch, tag or commit of a model on the hub.")
def compress(
    model: str,
    out: Path,
    bits: float | None,
    nbytes: int | None,
    tokens_per_second: float | None,
    floor: str | None,
    calibration: Path | None,
    calibration_tokens: int,
    score_tokens: int,
    measured: int,
    formats: str,
    widths: tuple[float, ...],
    drop: bool,
    corrections: tuple[str, ...],
    scores: Path | None,
    threads: int | None,
    revision: str | None,
) -> None:
    """Compress MODEL (a directory, a .gguf file, a hub name) to the new directory OUT.

    Each tensor gets a format of its own. Every alternative is scored by what it alone does to the
    model's predictions; the mix of least loss within the goal is found by a mixed-integer program,
    written, and judged on text of its own. With --widths and --drop, parts of the model may go too.
    OUT loads directly; its README.md lists every choice.
    """
    from ockham.core.units import readable
    from ockham.lab.compress.search import Goal, Search
    from ockham.lab.compress.search import compress as run

    config = EngineConfig(model=model, revision=revision, threads=threads)
    place = Path(os.path.abspath(out))  # "." has no name
    search = Search(
        encode=partial(encode, config),
        calibration=calibration,
        fitted_tokens=calibration_tokens,
        scored_tokens=score_tokens,
        measured=measured,
        formats=tuple(name.strip() for name in formats.split(",") if name.strip()),
        widths=widths,
        drop=drop,
        corrections=corrections,
        scores=scores or place.parent / f"{place.name}.scores.jsonl",
    )
    goal = Goal(bits, nbytes, tokens_per_second, _floor(floor))
    card = run(config, out, goal, search, partial(click.echo, err=True))
    click.echo(
        f"wrote {readable(card.nbytes)} of weights to {out}: {card.bits:.2f} bits a weight, KL "
        f"{card.kl:.4g}, in {card.seconds:.0f} s",
        err=True,
    )


def _floor(given: str | None) -> float | None:
    """The largest KL divergence of "kl=0.05". Raises ConfigError for anything else."""
    if given is None:
        return None
    name, equals, value = given.partition("=")
    try:
        if not equals or name.strip() != "kl":
            raise ValueError
        return float(value)
    except ValueError:
        raise ConfigError(f"--floor must be kl=NATS, such as kl=0.05, got {given!r}.") from None
