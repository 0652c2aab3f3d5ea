"""`ockham bench speculation`: what drafting is worth on texts that the model did not write."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option, unless_given
from ockham.cli.report import duration
from ockham.cli.value_types import Integer

if TYPE_CHECKING:
    from ockham.core.speculative import Setting
    from ockham.engine.speculation import Speculation
    from ockham.lab.speculation import Worth
    from ockham.lab.statistics import MeanRatio

KINDS = "chat,documents,edit,code,agents,prose,random"
AVERAGED = ("chat", "documents", "edit", "code", "agents")
"""Kinds of text that the mean is over: what an engine is asked for, and no worst cases."""


@command()
@option("--streams", default=KINDS, help="Kinds of text.", show_default=True)
@option("--batch-sizes", default="1", help="Streams at a time: '1,8'.", show_default=True)
@option("--pairs", type=Integer(2), default=8, help="Groups of streams each.", show_default=True)
@option("--stream-seed", type=Integer(), default=0, help="Of the streams.", show_default=True)
@option(
    "--charge-draft-at",
    default=None,
    metavar="MODEL",
    help="A draft model takes the time of this one too: a real one is larger than the lab's.",
)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@functools.partial(engine_options, several=("speculative_config",))
def speculation(
    streams: str,
    batch_sizes: str,
    pairs: int,
    stream_seed: int,
    charge_draft_at: str | None,
    as_json: bool,
    speculative_config: Sequence[Setting],
    **kwargs: Any,
) -> None:
    """Decode texts with each --speculative-config and without drafts, by turns in one run.

    MODEL computes everything, and its greedy choice is replaced by the next token of a text, so
    that a checkpoint with random weights gains what it would if it had written the text. Texts are
    read with the tokenizer of the built-in model, whose ids every vocabulary has; what drafters are
    told of likely tokens is what the built-in model finds likely where it reads the text. 'speed'
    is of decoding alone: the time without drafts over the time with them, of the same tokens. The
    last lines are the mean over chat, documents, edit, code and agents, each with its 95% interval.
    """
    import msgspec

    from ockham.api.aliases import own_name
    from ockham.core.config import EngineConfig
    from ockham.core.errors import ConfigError
    from ockham.core.speculative import parse
    from ockham.draft.modelled.drafting import ModelDrafting
    from ockham.engine.engine import Engine
    from ockham.lab.charging import charge
    from ockham.lab.speculation import measure, most_candidates
    from ockham.lab.statistics import mean_ratio
    from ockham.lab.streams import make_streams
    from ockham.model.hub import resolve
    from ockham.text.tokenizer import load_tokenizer

    batches = _batches(batch_sizes)
    kinds = streams.split(",")
    settings = {
        _label(each): parse(own_name("speculative_config", each)) for each in speculative_config
    }
    given = unless_given(
        {**kwargs, "skip_tokenizer_init": True},
        max_model_len=2048,
        max_num_seqs=max(batches) * (1 + len(settings)),
    )
    # What drafts is attached below: it knows the texts' tokens, not those of MODEL.
    config = engine_config(**given, speculative_config="none")
    tokenizer = load_tokenizer(EngineConfig(), resolve("lab"))
    assert tokenizer is not None, "the built-in model has a tokenizer"
    texts = {
        kind: make_streams(kind, tokenizer, stream_seed, pairs * max(batches)) for kind in kinds
    }
    engine = Engine(config, progress=lambda line: click.echo(line, err=True))
    if tokenizer.vocab_size > engine.vocabulary:
        raise ConfigError(
            f"the texts have {tokenizer.vocab_size} different tokens, and {config.model} has "
            f"{engine.vocabulary}."
        )

    def controllers() -> dict[str, Speculation]:
        made = {}
        for label, setting in settings.items():
            made[label] = engine.make_speculation(setting, vocabulary=tokenizer.vocab_size)
            for drafter in made[label].drafters:
                if charge_draft_at is not None and isinstance(drafter, ModelDrafting):
                    charge(drafter, charge_draft_at)
        return made

    found: list[Worth] = []
    means: list[dict[str, Any]] = []
    none = engine.make_speculation(parse("none"))
    if not as_json:
        click.echo(f"{config.model}, {engine.model.weight_format}")
        click.echo(_heading(settings))
    for batch in batches:
        for kind in kinds:
            ways = controllers()
            observing = most_candidates(ways.values()) > 0
            reader = Engine(EngineConfig(speculative_config="none")) if observing else None
            group = texts[kind][: pairs * batch]
            new = measure(engine, ways, none, kind, group, batch, reader)
            found += new
            for one in new if not as_json else ():
                click.echo(_line(one, settings))
        for label in settings if set(AVERAGED) <= set(kinds) else ():
            speeds = [
                one.speeds
                for one in found
                if (one.method, one.batch) == (label, batch) and one.kind in AVERAGED
            ]
            mean = mean_ratio(speeds)
            means.append({"method": label, "batch": batch, **msgspec.to_builtins(mean)})
            if not as_json:
                click.echo(_mean_line(label, batch, mean))
    if as_json:
        report = {
            "config": msgspec.to_builtins(config),
            "weight_format": engine.model.weight_format,
            "streams": found,
            "means": means,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))


def _batches(text: str) -> list[int]:
    from ockham.core.errors import ConfigError

    try:
        batches = [int(size) for size in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise ConfigError(f"--batch-sizes must be numbers from 1 on, got {text!r}.")
    return batches


def _label(setting: Setting) -> str:
    """A configuration as a name in a table: 'ngram' or 'trie num_speculative_tokens=8'."""
    values = setting
    if isinstance(setting, str) and setting.lstrip().startswith("{"):
        try:
            values = json.loads(setting)
        except ValueError:
            return setting  # which is refused with a reason
    if not isinstance(values, dict):
        return str(values)
    rest = [f"{key}={value}" for key, value in values.items() if key != "method"]
    return " ".join([str(values.get("method", "auto")), *rest])


def _heading(labels: Iterable[str]) -> str:
    return (
        f"{'drafts by':<{_width(labels)}} {'streams':<10} {'batch':>5} {'pairs':>5} {'speed':>6} "
        f"{'95% interval':>14} {'tokens/step':>11} {'drafted':>8} {'accepted':>8} {'drafting':>10}"
    )


def _line(one: Worth, labels: Iterable[str]) -> str:
    interval = "" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
    return (
        f"{one.method:<{_width(labels)}} {one.kind:<10} {one.batch:5} {len(one.speeds):5} "
        f"{one.speed:6.2f} {interval:>14} {one.tokens_per_step:11.2f} {one.drafted:8} "
        f"{one.accepted:8.0%} {duration(one.draft_s):>10}"
    )


def _width(labels: Iterable[str]) -> int:
    return max(len("drafts by"), *map(len, labels))


def _mean_line(label: str, batch: int, mean: MeanRatio) -> str:
    def told(value: float, interval: tuple[float, float]) -> str:
        return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"

    return (
        f"{label}, batch {batch}, mean over {', '.join(AVERAGED)}: geometric "
        f"{told(mean.geometric, mean.geometric_interval)}, arithmetic "
        f"{told(mean.arithmetic, mean.arithmetic_interval)}"
    )
