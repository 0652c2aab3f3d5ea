"""`ockham bench reuse`: what approximate reuse saves on text that returns, and what it changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.value_types import Integer
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    from ockham.engine.engine import Engine
    from ockham.lab.returning import Query

SOURCES = ("documents", "documents-workload", "typing-workload", "edit", "code")
HEADING = (
    f"{'':<24} {'computed':>10} {'of prefix':>9} {'of all':>7} {'seconds':>8} {'right':>7} "
    f"{'agree':>7} {'KL':>8} {'KL p99':>8} {'ppl':>7}"
)


@command()
@click.argument("source", type=click.Choice(SOURCES))
@option("--queries", type=Integer(1), default=100, show_default=True, help="Prompts to send.")
@option(
    "--recompute-fractions",
    default="0.15",
    show_default=True,
    help="Shares of reused chunks that are computed again, as '0,0.1,0.5'.",
)
@option(
    "--compared",
    type=Integer(0),
    default=60,
    show_default=True,
    help="Prompts whose distributions are compared, token by token.",
)
@option("--at-once", type=Integer(1), default=1, show_default=True, help="Prompts at a time.")
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@engine_options
def reuse(
    source: str,
    queries: int,
    recompute_fractions: str,
    compared: int,
    at_once: int,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Send prompts whose text returns: prefix reuse alone, then approximate reuse beside it.

    SOURCE: `documents` are new questions over a collection of 24 short documents, which can be
    scored; `edit` are instructions to edit code in which a line was changed before, scored too;
    `code` predicts the end of held-out code from which a line was missing before. The other two are
    the workloads of that name. What is compared are the distributions over the exact answers.
    """
    import msgspec

    from ockham.engine.engine import Engine

    technique = "chunk" if source.startswith("documents") else "edit"
    fractions: list[float | None] = [None]
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    if technique != "chunk" and context.get_parameter_source("recompute_fractions") is not default:
        raise ConfigError(
            f"--recompute-fractions is of chunks, and {source} reuses by {technique}; leave it out."
        )
    if technique == "chunk":
        try:
            fractions = [float(part) for part in recompute_fractions.split(",")]
        except ValueError as error:
            raise ConfigError(
                f"--recompute-fractions {recompute_fractions!r} must be numbers, as in 0,0.1."
            ) from error
    if context.get_parameter_source("reuse") is default:
        kwargs["reuse"] = f"prefix,{technique}"
    config = engine_config(**kwargs)
    engine = Engine(config, progress=lambda line: click.echo(line, err=True))
    rows = []
    if not as_json:
        click.echo(HEADING)
    for row in _rows(engine, source, technique, queries, fractions, compared, at_once, config.seed):
        rows.append(row)
        if not as_json:
            click.echo(_line(row))
    if as_json:
        whole = {"model": config.model, "source": source, "queries": queries, "rows": rows}
        click.echo(msgspec.json.format(msgspec.json.encode(whole), indent=2))


def _rows(
    engine: Engine,
    source: str,
    technique: str,
    number: int,
    fractions: list[float | None],
    compared: int,
    at_once: int,
    seed: int,
) -> Any:
    """One row for prefix reuse alone, then one for each share."""
    from dataclasses import asdict

    from ockham.lab.returning import ask, change, continue_with

    queries = _queries(engine, source, technique, number, seed, fractions[0])
    exact = ask(engine, queries, approximate=False, at_once=at_once)
    base = exact.ledger.prompt_tokens_computed
    yield _row("prefix reuse alone", exact, base)
    for fraction in fractions:
        queries = _queries(engine, source, technique, number, seed, fraction)
        found = ask(engine, queries, approximate=True, at_once=at_once)
        name = technique if fraction is None else f"{technique}, {fraction:g} again"
        row = _row(name, found, base)
        if compared:
            row |= asdict(change(engine, continue_with(queries, exact.answers)[:compared]))
        yield row


def _queries(
    engine: Engine, source: str, technique: str, number: int, seed: int, fraction: float | None
) -> list[Query]:
    from ockham.lab.returning import continued_code, edited_code, returning_documents, workload
    from ockham.text.marking import ReuseParams

    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ConfigError("text returns in this measurement, and the model has no tokenizer.")
    params = ReuseParams(reuse=technique, recompute_fraction=fraction)
    if source == "documents":
        made = returning_documents(tokenizer, number, seed, params)
    elif source == "documents-workload":
        made = workload(tokenizer, "documents", {"queries": number}, seed, params)
    elif source == "typing-workload":
        made = workload(tokenizer, "typing", {"sessions": 1, "pauses": number}, seed, params)
    elif source == "edit":
        made = edited_code(tokenizer, number, seed, params)
    else:
        made = continued_code(tokenizer, number, seed, params, engine.max_model_len // 4)
    room = engine.max_model_len
    fitting = [query for query in made if len(query.tokens) + query.max_tokens <= room]
    if not fitting:
        raise ConfigError(f"no prompt of {source} fits into a context of {room} tokens.")
    return fitting


def _row(name: str, run: Any, base: int) -> dict[str, Any]:
    ledger = run.ledger
    return {
        "name": name,
        "prompt_tokens": ledger.prompt_tokens,
        "computed": ledger.prompt_tokens_computed,
        "of_prefix": ledger.prompt_tokens_computed / base,
        "of_all": ledger.prompt_tokens_computed / ledger.prompt_tokens,
        "seconds": run.seconds,
        "right": None if math.isnan(run.score) else run.score,
    }


def _line(row: dict[str, Any]) -> str:
    right = "" if row["right"] is None else f"{row['right']:.1%}"
    line = (
        f"{row['name']:<24} {row['computed']:>10,} {row['of_prefix']:>9.1%} {row['of_all']:>7.1%} "
        f"{row['seconds']:>8.2f} {right:>7}"
    )
    if "agreement" in row:
        line += (
            f" {row['agreement']:>7.2%} {row['kl_mean']:>8.5f} {row['kl_p99']:>8.4f} "
            f"{row['perplexity_ratio']:>7.4f}"
        )
    return line
