"""`ockham train`: learn what serves a model, from the model itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from ockham.cache.keep.learned import trained_rules
from ockham.cli.command import Group
from ockham.cli.options import option
from ockham.cli.report import duration
from ockham.cli.value_types import Integer, Quantization, Shares
from ockham.core.errors import ConfigError
from ockham.training.extra import require_extra

RULES = trained_rules()
INNER = [name for name, kind in RULES.items() if kind == "inner"]
LINEAR = [name for name, kind in RULES.items() if kind == "linear"]
ALPHA = [name for name, kind in RULES.items() if kind == "alpha"]


Decorator = Callable[[Callable[..., None]], Callable[..., None]]

data = option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help='Text, or .jsonl with "text" or "messages"; may be given more than once. The lab models '
    "need none.",
)
threads = option(
    "--threads", type=Integer(1), default=None, help="Of PyTorch.  [default: all cores]"
)


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Options that all have."""
    as_json = option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
    return option("--seed", type=int, default=0, show_default=True)(as_json(command))


def reading(*, tokens: int, context: int, batch_tokens: int, rate: float) -> Decorator:
    """How much is read, with these defaults."""
    options = [
        option(
            "--tokens", type=Integer(1), default=tokens, help="Tokens to read.", show_default=True
        ),
        option(
            "--context",
            type=Integer(16),
            default=context,
            help="Tokens of a row.",
            show_default=True,
        ),
        option(
            "--batch-tokens",
            type=Integer(16),
            default=batch_tokens,
            help="Tokens of a step.",
            show_default=True,
        ),
        option(
            "--rate", type=float, default=rate, help="The learning rate's peak.", show_default=True
        ),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for each in reversed(options):
            command = each(command)
        return command

    return decorate


def use_threads(threads: int | None) -> None:
    """Let PyTorch use so many. Raises ConfigError where it is not installed."""
    require_extra()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@click.group(cls=Group)
def train() -> None:
    """Learn what a model's state may be spared, from the model itself."""


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--rule",
    "method",
    type=click.Choice(list(RULES)),
    default=LINEAR[0],
    show_default=True,
    help=f"What is learned: scores of tokens, by linear heads ({', '.join(LINEAR)}) or by heads "
    f"with an inner layer ({', '.join(INNER)}), or how far each head looks back "
    f"({', '.join(ALPHA)}).",
)
@data
@option(
    "--rows",
    type=Integer(512),
    default=16_000,
    help="Tokens to learn scores from.",
    show_default=True,
)
@option("--context", type=Integer(16), default=1000, help="Tokens of a text.", show_default=True)
@option(
    "--steps",
    type=Integer(1),
    default=None,
    help=f"For each layer ({', '.join(INNER)}); texts to learn from ({', '.join(ALPHA)}).  "
    "[default: 1000; 150]",
)
@common
@threads
def keep(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Learn which tokens later ones of MODEL look at, or which of its heads look far back, and
    write that to OUT.

    MODEL (a directory, a GGUF file, a hub name, `lab` or `smollm2`) reads texts twice; what it
    looks at to say a text again is what is learned. Tokens are scored by what Ockham's engine sees
    of them; how far heads look back is learned in PyTorch, from a checkpoint that is not quantised.
    When it was interrupted, the same command goes on. It needs the extra:
    pip install 'ockham[train]'.
    """
    from ockham.training.keep import KeepSettings, check, train_keep

    chosen = KeepSettings(**settings)
    check(chosen)
    if chosen.method in (*INNER, *ALPHA):
        use_threads(threads)
    trained = train_keep(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps({"rule": chosen.method, **trained.scores}, indent=2))
    else:
        for line in described(trained.scores):
            click.echo(line)
    use = f"--keep {chosen.method}:heads={chosen.out}"
    click.echo(f"wrote {chosen.out} in {duration(trained.seconds)}. Serve with {use}.", err=True)


@train.command("kv-prediction")
@click.argument("target", metavar="BASE")
@click.argument("auxiliary", metavar="AUXILIARY")
@click.argument("out", type=click.Path(path_type=Path))
@data
@option(
    "--rows", type=Integer(512), default=50_000, help="Tokens to learn from.", show_default=True
)
@option("--context", type=Integer(16), default=1000, help="Tokens of a text.", show_default=True)
@common
def kv_prediction(as_json: bool, **settings: Any) -> None:
    """Learn to predict the keys and values of BASE from what AUXILIARY makes of a text.

    Both are a directory, a GGUF file, a hub name or a built-in model, with one tokenizer. Linear
    maps are fitted to texts that both read, and written to OUT.
    """
    from ockham.training.kv_prediction import KvPredictionSettings, train_kv_prediction

    chosen = KvPredictionSettings(**settings)
    fitted, seconds = train_kv_prediction(chosen, partial(click.echo, err=True))
    if as_json:
        scores = {
            "held_out_tokens": fitted.held_out_tokens,
            "explained": round(fitted.explained, 3),
            "explained_by_layer": [
                {"keys": round(keys, 3), "values": round(values, 3)}
                for keys, values in fitted.by_layer
            ],
        }
        click.echo(json.dumps(scores, indent=2))
    else:
        click.echo(
            f"of {fitted.held_out_tokens:,} held-out tokens, the maps explain "
            f"{fitted.explained:.0%} of the variance of keys and values"
        )
    use = f"--reuse prefix,kv_prediction:maps={chosen.out}"
    click.echo(f"wrote {chosen.out} in {duration(seconds)}. Serve with {use}.", err=True)


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option("--teacher", required=True, help="The model that MODEL was made from.")
@data
@reading(tokens=200_000, context=256, batch_tokens=1024, rate=1e-4)
@common
@threads
def heal(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Let MODEL, which `ockham convert --transform` made of TEACHER, learn what it lost, and write
    it to OUT.

    It learns the teacher's distributions on texts, with all of its weights. When it was
    interrupted, the same command goes on. It needs the extra: pip install 'ockham[train]'.
    """
    from ockham.training.heal import HealSettings
    from ockham.training.heal import heal as train_heal

    chosen = HealSettings(**settings)
    use_threads(threads)
    scores = train_heal(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(scores, indent=2))
    else:
        click.echo(
            f"on held-out text, {scores['kl_before']} nats from the teacher before, "
            f"{scores['kl_after']} after"
        )
    click.echo(f"wrote {chosen.out} in {duration(scores['seconds'])}.", err=True)


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--widths",
    type=Shares(),
    default="0.25,0.5",
    metavar="SHARE,...",
    help="Shares of the channels of feed-forwards that shall be models.",
    show_default=True,
)
@data
@reading(tokens=1_000_000, context=512, batch_tokens=2048, rate=1e-3)
@option(
    "--data-weight",
    type=float,
    default=0.25,
    help="Weight of the text's own tokens beside MODEL's distributions.",
    show_default=True,
)
@option(
    "--multiple", type=Integer(1), default=32, help="Widths are multiples of it.", show_default=True
)
@option(
    "--keep-order", is_flag=True, help="Leave channels where they are: MODEL is nested already."
)
@common
@threads
def nested(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Train MODEL so that the first channels of its feed-forwards are smaller models, and write it
    to OUT.

    All widths share their weights: each step reads text at full width and at one other, and both
    learn MODEL's distributions. `ockham convert OUT SMALL --transform width:0.5` takes one out.
    When it was interrupted, the same command goes on. It needs the extra:
    pip install 'ockham[train]'.
    """
    from ockham.training.nested import NestedSettings, train_nested

    chosen = NestedSettings(**settings)
    use_threads(threads)
    scores = train_nested(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(scores, indent=2))
    else:
        for width, after in scores["kl_after"].items():
            click.echo(
                f"width {width}: on held-out text {scores['kl_before'][width]} nats from the "
                f"original before, {after} after"
            )
    click.echo(f"wrote {chosen.out} in {duration(scores['seconds'])}.", err=True)


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--share",
    type=float,
    default=0.2,
    help="Share of the channels of feed-forwards that goes.",
    show_default=True,
)
@option("--periods", type=Integer(1), default=5, help="In how many parts.", show_default=True)
@option(
    "--multiple", type=Integer(1), default=32, help="Widths are multiples of it.", show_default=True
)
@data
@reading(tokens=200_000, context=256, batch_tokens=1024, rate=1e-4)
@common
@threads
def prune(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Let channels of MODEL's feed-forwards go while it learns what it said before, and write the
    smaller model to OUT.

    Those of least importance go first, by their weights and gradients, a part of them in each
    period. When it was interrupted, the same command goes on. It needs the extra:
    pip install 'ockham[train]'.
    """
    from ockham.training.prune import PruneSettings, train_pruned

    chosen = PruneSettings(**settings)
    use_threads(threads)
    scores = train_pruned(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(scores, indent=2))
    else:
        before, after = scores["channels"]
        click.echo(f"{after} of {before} channels are left, {scores['kl']} nats from the original")
    click.echo(f"wrote {chosen.out} in {duration(scores['seconds'])}.", err=True)


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--quantization",
    type=Quantization(),
    default=None,
    help="The format that weights are rounded to; see `ockham convert`.",
)
@option(
    "--mix-of",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=None,
    metavar="DIR",
    help="Round each tensor as in DIR, which `ockham compress` made of MODEL.",
)
@option("--rank", type=Integer(1), default=16, help="Of each sum.", show_default=True)
@data
@reading(tokens=200_000, context=256, batch_tokens=1024, rate=1e-3)
@common
@threads
def correction(as_json: bool, threads: int | None, mix_of: Path | None, **settings: Any) -> None:
    """Round MODEL's weights, train a sum of low rank beside each matrix until it says what MODEL
    says, and write both to OUT, which loads directly.

    Sums start as `ockham convert --correction` fits them to a text; the rounded weights stay as
    they are. When it was interrupted, the same command goes on. It needs the extra:
    pip install 'ockham[train]'.
    """
    from ockham.training.correction import CorrectionSettings, read_mix, train_correction

    if mix_of is not None and settings["quantization"] is not None:
        raise ConfigError(
            "--quantization and --mix-of both say how weights are rounded; leave one of them out."
        )
    mix = () if mix_of is None else read_mix(mix_of)
    chosen = CorrectionSettings(**settings, mix=mix)
    use_threads(threads)
    scores = train_correction(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(scores, indent=2))
    else:
        click.echo(
            f"on held-out text, nats from {chosen.target}: {scores['kl_rounded']} rounded, "
            f"{scores['kl_closed_form']} with sums in closed form, {scores['kl_trained']} trained "
            f"(kept: {scores['kept']})"
        )
    click.echo(f"wrote {chosen.out} in {duration(scores['seconds'])}.", err=True)


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option(
    "--widths",
    type=Shares(),
    default="0,0.25,1",
    metavar="SHARE,...",
    help="Shares of the neurons that a row may run, of which 0 skips the feed-forward.",
    show_default=True,
)
@option(
    "--budget",
    type=float,
    default=0.5,
    help="The share of the neurons that rows shall run on average.",
    show_default=True,
)
@data
@reading(tokens=100_000, context=256, batch_tokens=2048, rate=3e-3)
@common
@threads
def gate(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Train routers that choose, for each row and layer of MODEL, how many of the first neurons of
    a feed-forward run, and write them to OUT.

    MODEL stays as it is; one that `ockham train nested` made loses least. When it was interrupted,
    the same command goes on. It needs the extra: pip install 'ockham[train]'.
    """
    from ockham.training.gate import GateSettings, train_gate

    chosen = GateSettings(**settings)
    use_threads(threads)
    scores = train_gate(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(scores, indent=2))
    else:
        click.echo(
            f"on held-out text, {scores['kl']} nats from the whole model with "
            f"{scores['share']:.0%} of the neurons"
        )
        for width, kl in scores["kl_of_widths"].items():
            click.echo(f"width {width} for every row: {kl} nats")
        for layer, shares in enumerate(scores["chosen"]):
            told = ", ".join(f"{share:.0%}" for share in shares)
            click.echo(f"layer {layer}: rows choose the widths, in their order, {told}")
    click.echo(f"wrote {chosen.out} in {duration(scores['seconds'])}.", err=True)


def described(scores: dict[str, Any]) -> list[str]:
    """What was found, in words."""
    if "alphas" in scores:
        return [
            f"over {scores['held_out_tokens']:,} held-out tokens, the last hidden states are off "
            f"by {scores['error_lowest_half']:.1%} of their square where the half of the heads "
            f"streams that needs a whole text least, by {scores['error_random_half']:.1%} where a "
            f"random half does, and by {scores['error_all']:.1%} where all do",
            f"layer/head, from the least need to the most: {scores['order']}",
        ]
    return [
        f"of {scores['held_out_tokens']:,} held-out tokens, the heads explain "
        f"{scores['explained']:.0%} of the variance of how much they are looked at"
    ]


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option("--task", default="steps", help="Whose items are answered.", show_default=True)
@option("--items", type=Integer(8), default=200, help="To answer.", show_default=True)
@option("--samples", type=Integer(1), default=4, help="Of each item.", show_default=True)
@option(
    "--layer",
    type=Integer(0),
    default=None,
    help="After which hidden states are read.  [default: the one in the middle]",
)
@option(
    "--at",
    type=click.Choice(("text", "prompt")),
    default="text",
    help="Which states are read: those of the text, or that of the prompt's last token, as a "
    "router wants it.",
    show_default=True,
)
@option("--temperature", type=float, default=1.0, help="Of sampling.", show_default=True)
@option("--lora", default=None, metavar="ADAPTER", help="An adapter that is applied to MODEL.")
@common
def probe(out: Path, as_json: bool, **settings: Any) -> None:
    """Learn to tell by MODEL's hidden states whether what it writes will be right, and write that
    to OUT.

    MODEL (a directory, a GGUF file, a hub name, `lab` or `smollm2`) answers the items of a task
    several times; a program says which answers are right. Texts of a quarter of the items are kept
    for judging.
    """
    from ockham.lab.probing import probe_settings, train_probe
    from ockham.model.checkpoint.probe_files import CONFIG_FILE, write_probe

    if (out / CONFIG_FILE).exists():
        raise ConfigError(f"{out / CONFIG_FILE} is there already; name another directory.")
    config, adapter = probe_settings(settings.pop("target"), settings.pop("lora"))
    if settings["temperature"] <= 0.0:
        raise ConfigError(f"temperature must be above 0, got {settings['temperature']}.")
    began = time.monotonic()
    tell = partial(click.echo, err=True)
    found, worth = train_probe(config, adapter=adapter, tell=tell, **settings)
    out.mkdir(parents=True, exist_ok=True)
    write_probe(out, found)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(worth), indent=2))
    else:
        click.echo(f"learned from {worth.states:,} states of {worth.texts:,} texts")
        click.echo(f"judged on {worth.held_out:,} texts, of which {worth.right:.0%} are right")
        for quarter in range(len(worth.within)):
            click.echo(
                f"area under the curve after quarter {quarter + 1} of a text: "
                f"{worth.areas[quarter]:.3f}; between texts of one problem "
                f"{worth.within[quarter]:.3f}, and {worth.likelihood_within[quarter]:.3f} by the "
                "least probable token so far"
            )
        if settings["at"] == "prompt":
            click.echo(f"area under the curve: {worth.areas[0]:.3f}")
    took = duration(time.monotonic() - began)
    click.echo(f"wrote {out} in {took}. Serve with --probes NAME={out}.", err=True)


@train.command()
@click.argument("target", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@option("--task", default="steps", help="Whose items are answered.", show_default=True)
@option("--problems", type=Integer(8), default=140, help="To answer.", show_default=True)
@option("--samples", type=Integer(1), default=8, help="Of each problem.", show_default=True)
@option("--temperature", type=float, default=1.0, help="Of sampling.", show_default=True)
@option("--lora", default=None, metavar="ADAPTER", help="An adapter that answers with MODEL.")
@option("--epochs", type=Integer(1), default=2, help="Over the texts.", show_default=True)
@option("--rate", type=float, default=3e-4, help="Of learning.", show_default=True)
@common
@threads
def reward(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Train a copy of MODEL to say whether what was written is right so far, and write it to OUT as
    a sequence classifier.

    MODEL answers the problems of a task; a program says which texts are right, and how a right one
    begins. A quarter of the problems is kept for judging. It needs the extra:
    pip install 'ockham[train]'.
    """
    from ockham.training.reward import RewardSettings, train_reward

    chosen = RewardSettings(**settings)
    use_threads(threads)
    scores = train_reward(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(scores, indent=2))
    else:
        click.echo(
            f"judged on {scores['held_out']:,} texts, of which {scores['right']:.0%} are right: "
            f"area under the curve {scores['area_of_lines']} of lines, {scores['area_of_texts']} "
            f"of texts, {scores['area_within_problems']} between texts of one problem"
        )
    took = duration(scores["seconds"])
    click.echo(f"wrote {chosen.out} in {took}. Serve with --rewards NAME={chosen.out}.", err=True)
