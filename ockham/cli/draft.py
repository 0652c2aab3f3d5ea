"""`ockham draft train`: make a drafter for a model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from ockham.cli.command import Group
from ockham.cli.options import option
from ockham.cli.report import duration
from ockham.cli.value_types import Integer

METHODS = (
    *("draft_model", "medusa", "prompt_tokens", "early_exit", "mtp", "eagle3", "acceptance"),
)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(path_type=Path)


@click.group(cls=Group)
def draft() -> None:
    """Make what drafts for a model, so that it writes faster and not a bit differently."""


@draft.command()
@click.argument("target")
@click.argument("out", type=_DIRECTORY)
@option("--method", type=click.Choice(METHODS), default="draft_model", show_default=True)
@option(
    "--data",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help='Text, or .jsonl with "text" or "messages"; may be given more than once. The lab models '
    "need none.",
)
@option(
    "--held-out",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Text that only measures.  [default: a twentieth of the data]",
)
@option("--tokens", type=Integer(1), default=1_000_000, help="Tokens to read.", show_default=True)
@option(
    "--output-tokens",
    type=Integer(1),
    default=None,
    help="Tokens that TARGET writes to be imitated by.  [default: a quarter of --tokens]",
)
@option("--context", type=Integer(1), default=512, help="Tokens of a row.", show_default=True)
@option("--batch-tokens", type=Integer(1), default=2048, help="Of a step.", show_default=True)
@option("--rate", type=float, default=None, help="Peak of the learning rate.")
@option("--seed", type=int, default=0, show_default=True)
@option("--heads", type=Integer(1), default=None, help="Tokens that heads or prompts foretell.")
@option(
    "--layers", type=Integer(1), default=None, help="Of the draft model, or below the early exit."
)
@option("--hidden-size", type=Integer(1), default=None, help="Of the draft model.")
@option(
    "--text-share",
    type=float,
    default=None,
    help="Share of the tokens that a draft model first reads as plain text.  [default: 0.5; 0 with "
    "--start]",
)
@option("--start", type=_DIRECTORY, default=None, help="Draft model to go on from.")
@option("--draft-model", default=None, help="Draft model that `acceptance` judges.")
@option("--threads", type=Integer(1), default=None, help="Of PyTorch.  [default: all cores]")
@option("--json", "as_json", is_flag=True, help="Write the scores as one JSON object.")
def train(as_json: bool, threads: int | None, **settings: Any) -> None:
    """Train a drafter for TARGET (a directory, a hub name or `lab`) and write it to OUT.

    TARGET writes texts first, by Ockham's engine; drafters learn from those. When it was
    interrupted, the same command goes on. It needs the extra: pip install 'ockham[train]'.
    """
    from ockham.training.extra import require_extra
    from ockham.training.settings import Settings
    from ockham.training.train import check
    from ockham.training.train import train as train_drafter

    chosen = Settings(**settings)
    check(chosen)
    require_extra()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    trained = train_drafter(chosen, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps({"method": chosen.method, **trained.scores}, indent=2))
        return
    for name, scores in trained.scores.items():
        for line in described(chosen.method, name, scores):
            click.echo(line)
    click.echo(f"wrote {chosen.out}; training took {duration(trained.seconds)}", err=True)


@draft.command()
@click.argument("target")
@click.argument("out", type=_DIRECTORY)
@option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    required=True,
    metavar="PATH",
    help='A file of text, .jsonl with "text" or "messages", or a directory of files; may be given '
    "more than once.",
)
def index(target: str, out: Path, data: tuple[Path, ...]) -> None:
    """Index texts with the tokenizer of TARGET, so that it drafts from them, and write OUT.

    A repository, manuals, last month's answers: what the model will write may stand there already.
    """
    from ockham.training.index import index_texts

    corpus = index_texts(target, out, data, partial(click.echo, err=True))
    click.echo(
        f"wrote {out}: {8 * len(corpus.tokens) / 1e6:.1f} MB. Draft from it with "
        f'--speculative-config \'{{"model": "{out}"}}\'.'
    )


def described(method: str, name: str, scores: dict[str, Any]) -> list[str]:
    """The scores in words; all are of the target's own greedy text after held-out prompts."""
    tokens = f"{scores['tokens']:,} tokens that the target wrote after prompts of {name}"
    if method == "acceptance":
        return [
            f"of {tokens}, {scores['accepted']:.1%} are what the draft model says",
            f"area under the ROC curve {scores['auc']}, log loss {scores['log_loss']} (of the mean "
            f"{scores['log_loss_of_mean']}), calibration error {scores['calibration_error']}",
        ]
    accepted = f"{scores['accepted']:.2f} of {scores['of']} drafted tokens accepted on average"
    if "agreement" in scores:
        return [
            f"of {tokens}, {scores['agreement']:.1%} were foretold, {scores['among_3']:.1%} among "
            "the 3 likeliest",
            accepted,
        ]
    lines = [f"of {tokens}, were foretold (among the 3 likeliest):"]
    pairs = zip(scores["first_by_offset"], scores["among_3_by_offset"], strict=True)
    lines += [
        f"  {offset} after the next: {first:.1%} ({among:.1%})"
        for offset, (first, among) in enumerate(pairs, 1)
    ]
    return [*lines, accepted]
