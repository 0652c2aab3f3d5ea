"""`ockham bench speculation`: what drafting is worth on texts that the model did not write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ockham.cli.options import Integer, engine_config, engine_options, option, unless_given
from ockham.cli.report import duration

if TYPE_CHECKING:
    from ockham.lab.speculation import Worth

KINDS = "chat,documents,edit,code,agents,prose,random"
HEADING = (
    f"{'streams':<10} {'batch':>5} {'pairs':>5} {'speed':>6} {'95% interval':>14} "
    f"{'tokens/step':>11} {'drafted':>8} {'accepted':>8} {'drafting':>10}"
)


@click.command()
@option("--streams", default=KINDS, help="Kinds of text.", show_default=True)
@option("--batch-sizes", default="1", help="Streams at a time: '1,8'.", show_default=True)
@option("--pairs", type=Integer(2), default=8, help="Pairs of runs each.", show_default=True)
@option("--stream-seed", type=Integer(), default=0, help="Of the streams.", show_default=True)
@option(
    "--charge-draft-at",
    default=None,
    metavar="MODEL",
    help="A draft model takes the time of this one too: a real one is larger than the lab's.",
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def speculation(
    streams: str,
    batch_sizes: str,
    pairs: int,
    stream_seed: int,
    charge_draft_at: str | None,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Decode texts with --speculative-config and without it, in pairs.

    MODEL computes everything, and its greedy choice is replaced by the next token of a text, so
    that a checkpoint with random weights gains what it would if it had written the text. Texts are
    read with the tokenizer of the built-in model, whose ids every vocabulary has; what drafters are
    told of likely tokens is what the built-in model finds likely where it reads the text. 'speed'
    is of decoding alone: the time without drafts over the time with them.
    """
    import msgspec

    from ockham.core.config import EngineConfig
    from ockham.core.errors import ConfigError
    from ockham.core.speculative import parse
    from ockham.draft.draft_model import DraftModel
    from ockham.engine.engine import Engine
    from ockham.lab.speculation import charge, measure
    from ockham.lab.streams import make_streams
    from ockham.model.hub import resolve
    from ockham.model.tokenizer import load_tokenizer

    try:
        batches = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        raise ConfigError(f"--batch-sizes must be numbers, got {batch_sizes!r}.") from None
    given = unless_given(
        {**kwargs, "skip_tokenizer_init": True}, max_model_len=2048, max_num_seqs=max(batches)
    )
    config = engine_config(**given)
    tokenizer = load_tokenizer(EngineConfig(), resolve("lab"))
    assert tokenizer is not None, "the built-in model has a tokenizer"
    # A draft model is attached below: it knows the texts' tokens, not those of MODEL.
    quiet = msgspec.structs.replace(config, speculative_config="none")
    engine = Engine(quiet, progress=lambda line: click.echo(line, err=True))
    if tokenizer.vocab_size > engine.vocabulary:
        raise ConfigError(
            f"the texts have {tokenizer.vocab_size} different tokens, and {config.model} has "
            f"{engine.vocabulary}."
        )
    settings, found = parse(config.speculative_config), []
    if not as_json:
        click.echo(f"{config.model}, {engine.model.weight_format}, {config.speculative_config}")
        click.echo(HEADING)
    for batch in batches:
        for kind in streams.split(","):
            texts = make_streams(kind, tokenizer, stream_seed, pairs * batch)
            none = engine.make_speculation(parse("none"))
            own = engine.make_speculation(settings, vocabulary=tokenizer.vocab_size)
            for drafter in own.drafters:
                if charge_draft_at is not None and isinstance(drafter, DraftModel):
                    charge(drafter, charge_draft_at)
            reader = Engine(EngineConfig(speculative_config="none")) if own.candidates else None
            found.append(measure(engine, own, none, kind, texts, batch, reader))
            if not as_json:
                click.echo(_line(found[-1]))
    if as_json:
        report = {
            "config": msgspec.to_builtins(config),
            "weight_format": engine.model.weight_format,
            "streams": found,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))


def _line(one: Worth) -> str:
    interval = "" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
    return (
        f"{one.kind:<10} {one.batch:5} {one.pairs:5} {one.speed:6.2f} {interval:>14} "
        f"{one.tokens_per_step:11.2f} {one.drafted:8} {one.accepted:8.0%} "
        f"{duration(one.draft_s):>10}"
    )
