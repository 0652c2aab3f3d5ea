"""`ockham techniques`: what is registered at each seam, and what it is worth when measured."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sys
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.advise import advise
from ockham.cli.command import Command, Group
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.search_costs import budget, price
from ockham.cli.value_types import Integer
from ockham.cli.workload_options import chosen_workload, workload_options
from ockham.core.errors import ConfigError
from ockham.core.owned_files import check_output, write_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ockham.lab.evidence import Bench, Recipe
    from ockham.lab.evidence.measured import Measured


@click.group(cls=Group, invoke_without_command=True)
@option("--json", "as_json", is_flag=True, help="Write a JSON list.")
@click.pass_context
def techniques(ctx: click.Context, as_json: bool) -> None:
    """List the techniques by seam: whether each is exact, what it does, what it books."""
    if ctx.invoked_subcommand is not None:
        return
    from ockham.core import registry

    found = registry.techniques()
    if as_json:
        records = [
            {
                "seam": technique.seam,
                "name": technique.name,
                "exact": technique.exact,
                "summary": technique.summary,
                "books": list(technique.books),
                "saves": list(technique.saves),
                "paper": technique.paper,
            }
            for technique in found
        ]
        click.echo(json.dumps(records, indent=2))
        return
    for seam, group in groupby(found, key=lambda technique: technique.seam):
        click.echo(f"{seam}:")
        for technique in group:
            kind = "exact" if technique.exact else "approximate"
            lines = textwrap.fill(
                technique.summary,
                max(60, shutil.get_terminal_size((100, 24)).columns),
                initial_indent=f"  {technique.name:<14} {kind:<12} ",
                subsequent_indent=" " * 30,
                break_on_hyphens=False,
            )
            click.echo(lines)
            details = [f"books {', '.join(technique.books)}"] if technique.books else []
            details += [f"paper {technique.paper}"] if technique.paper else []
            if details:
                click.echo(f"  {'':<14} {'':<12} {'; '.join(details)}")


@techniques.command(cls=Command)
@click.argument("name", required=False)
@option("--all", "every", is_flag=True, help="Measure every technique and write the page.")
@option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page that --all writes (docs/techniques.md unless named), or whose section of NAME "
    "is written anew; its plots are in a folder beside it.",
)
@option(
    "--rows",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append each row to this file as it is measured; with --all, what it holds is not "
    "measured again. Of a model that is not the lab's, --all writes MODEL.jsonl beside the page's "
    "pictures unless another file is named.",
)
@option(
    "--rounds", type=Integer(1), default=5, show_default=True, help="With and without, so often."
)
@option("--json", "as_json", is_flag=True, help="Write the rows as JSON.")
@workload_options
@engine_options
def measure(
    name: str | None,
    every: bool,
    page: Path | None,
    rows: Path | None,
    rounds: int,
    as_json: bool,
    workload: str | None,
    settings: tuple[str, ...],
    vocab_size: int,
    **kwargs: Any,
) -> None:
    """Run the technique NAME with and without, in turn: what it saves, what it costs.

    Name the model with --model; an argument after NAME is one too. Every model but the lab's is
    judged by English tasks, and --all writes its rows beside the lab's. With --workload, recipes
    that send prompts take them from it: of each length that they want, the closest.
    """
    if (name is None) != every:
        raise click.UsageError("name one technique, or take --all.")
    from ockham.lab.evidence import Bench, recipe_of, recipes
    from ockham.lab.evidence.measured import append_row, in_order, measure, read_rows
    from ockham.lab.evidence.real_model import find_real_model
    from ockham.lab.tasks.suites import LAB, suite_of

    if every and page is None:
        page = Path("docs/techniques.md")
    chosen = recipes() if name is None else [recipe_of(name)]
    config = engine_config(**kwargs)
    beside = suite_of(config.model) is not LAB
    if page is not None:
        _check_page(page, chosen)
        if beside and not page.is_file():
            raise ConfigError(
                f"--page {page}: a model's rows are written beside the lab model's, and there is "
                "no page of those; `ockham techniques measure --all` writes it."
            )
    if beside and every and rows is None and page is not None:
        rows = page.with_suffix("") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', config.model)}.jsonl"
    known = read_rows(rows, config.model) if rows is not None else []
    bench = Bench(
        config,
        rounds,
        config.seed,
        tell=lambda line: click.echo(f"  {line}", err=True),
        real_model=None if beside else find_real_model(),
    )
    if workload is not None:
        _take_prompts(bench, workload, settings, vocab_size)
    elif settings:
        raise click.UsageError("--set changes a workload: name it with --workload.")
    done = {each.key for each in known} if every else set()
    facts = {"machine": _machine(), "date": datetime.date.today().isoformat()}
    found = list(known)
    for number, recipe in enumerate(chosen, 1):
        if (recipe.seam, recipe.name) in done:
            continue
        which = f"{recipe.seam}/{recipe.name} ({number} of {len(chosen)})"
        click.echo(f"measuring {which}: {recipe.summary}", err=True)
        each = measure(recipe, bench, **facts)
        if rows is not None:
            append_row(rows, each)
        found.append(each)
        if not as_json:
            _tell(recipe, each)
    measured = in_order(found, chosen)
    if as_json:
        _write_json(measured)
    if page is not None:
        _write_page(page, measured, every and not beside, beside, config.model, rounds, facts)


def _write_page(
    page: Path,
    measured: list[Measured],
    anew: bool,
    beside: bool,
    model: str,
    rounds: int,
    facts: dict[str, str],
) -> None:
    """Write rows into the page: the whole of it `anew`, one section, or `beside` what stands there.
    What was measured on other models is put back."""
    from ockham.lab.evidence import recipes
    from ockham.lab.evidence.measured import read_rows
    from ockham.lab.evidence.page import write_beside, write_page, write_section

    order = recipes()
    by_key = {(recipe.seam, recipe.name): recipe for recipe in order}
    if anew:
        pairs = [(by_key[each.key], each.row) for each in measured]
        write_page(page, pairs, model=model, rounds=rounds, **facts)
    elif not beside:
        for each in measured:
            if each.row is not None:
                write_section(page, order, by_key[each.key], each.row, rounds=rounds, **facts)
    others = [read_rows(file) for file in sorted(page.with_suffix("").glob("*.jsonl"))]
    for rows in [*others, *([measured] if beside else [])]:
        if rows:
            write_beside(page, order, rows)


@techniques.command()
@click.argument("name", required=False)
@option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write the page as Markdown into this file, such as docs/composition.md; with NAME, add "
    "its pairs to the page that is there.",
)
@option(
    "--pairs",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="With --page: write the pairs that it says cannot be together into this file, which "
    "`ockham plan` reads.",
)
@option("--model", default="lab", show_default=True, help="Directory or hub name.")
@option("--json", "as_json", is_flag=True, help="Write the pairs as JSON.")
def compose(
    name: str | None, page: Path | None, pairs: Path | None, model: str, as_json: bool
) -> None:
    """Run every pair of techniques: exact, with what loss, or refused for which reason. With NAME,
    such as keep/recent, run only its pairs.

    Fails (status 1) if a token differs where nothing may change one.
    """
    from ockham.lab.evidence import Bench
    from ockham.lab.evidence.compose import compose as run_pairs
    from ockham.lab.evidence.compose import engine_config_of, parts
    from ockham.lab.evidence.compose_page import (
        PAGE_START,
        composition_page,
        refused_json,
        with_technique,
    )
    from ockham.lab.evidence.page import is_generated

    if pairs is not None and page is None:
        raise ConfigError("--pairs are those of a page; name it with --page.")
    if pairs is not None and not pairs.absolute().parent.is_dir():
        raise ConfigError(f"--pairs {pairs}: there is no directory {pairs.absolute().parent}.")

    if page is not None and not page.absolute().parent.is_dir():
        raise ConfigError(f"--page {page}: there is no directory {page.absolute().parent}.")
    if page is not None and not is_generated(page, PAGE_START):
        raise ConfigError(
            f"--page {page} is no page that `ockham techniques compose` wrote, and is not "
            "replaced: name another file."
        )
    if name is not None and name not in (known := [part.label for part in parts()]):
        raise ConfigError(f"there is no technique {name!r}; there are {', '.join(known)}.")
    if name is not None and page is not None and not page.exists():
        raise ConfigError(f"--page {page}: there is no page yet; write it whole, without a name.")
    cells = run_pairs(
        Bench(engine_config_of(model)),
        wanted=lambda one, other: name in (None, one.label, other.label),
    )
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(cells), indent=2))
    else:
        for cell in cells:
            click.echo(f"{cell.one:<28} {cell.other:<28} {cell.verdict}")
    if page is not None:
        text = composition_page(cells, model) if name is None else ""
        if name is not None:
            text = with_technique(page.read_text("utf-8"), name, cells)
        write_output(page, text.encode(), overwrite=True)
        if pairs is not None:
            write_output(pairs, refused_json(text).encode(), overwrite=True)
    if any(cell.identical is False for cell in cells):
        sys.exit(1)


@techniques.command()
@click.argument("number", type=Integer(1), required=False)
@option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page as Markdown into this file, such as docs/papers.md. The figures are those "
    "of techniques.md beside it.",
)
@option("--json", "as_json", is_flag=True, help="Write the papers as a JSON list.")
def papers(number: int | None, page: Path | None, as_json: bool) -> None:
    """List the papers that the project covers: the technique that each became, or why there is
    none. With NUMBER, tell of one.
    """
    import msgspec

    from ockham.lab.evidence.page import is_generated
    from ockham.lab.evidence.papers import PAGE_START, paper_of, papers_page, rows_of
    from ockham.lab.evidence.papers import papers as known

    if number is not None and page is not None:
        raise click.UsageError("--page writes all papers: leave NUMBER out.")
    if page is not None and not page.absolute().parent.is_dir():
        raise ConfigError(f"--page {page}: there is no directory {page.absolute().parent}.")
    if page is not None and not is_generated(page, PAGE_START):
        raise ConfigError(
            f"--page {page} is no page that `ockham techniques papers` wrote, and is not replaced: "
            "name another file."
        )
    measured = page.with_name("techniques.md") if page is not None else None
    if measured is not None and not measured.is_file():
        raise ConfigError(
            f"--page {page}: there is no {measured}, which has the figures; `ockham techniques "
            "measure --all` writes it."
        )
    chosen = known().papers if number is None else (paper_of(number),)
    if as_json:
        records = [{**msgspec.to_builtins(paper), "rows": rows_of(paper)} for paper in chosen]
        click.echo(json.dumps(records, indent=2))
    elif page is None:
        for paper in chosen:
            here = ", ".join([*rows_of(paper), *paper.commands])
            click.echo(f"{paper.number:>3} {paper.name:<36} {paper.fate:<10} {here}".rstrip())
            if number is not None:
                for said in (paper.does, f"Claimed: {paper.claim}", paper.note):
                    if said:
                        click.echo(f"    {said}")
    if page is not None and measured is not None:
        text = papers_page(measured.read_text("utf-8"))
        write_output(page, text.encode(), overwrite=True)


@techniques.command()
@click.argument("router", type=click.Path(exists=True, file_okay=False, path_type=Path))
@option("--model", default="lab-nested", show_default=True, help="Directory or hub name.")
@option(
    "--tokens",
    type=Integer(1),
    default=48,
    show_default=True,
    help="Tokens of held-out text whose best paths are searched.",
)
@option("--seed", type=int, default=0, show_default=True)
@option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
def oracle(router: Path, model: str, tokens: int, seed: int, as_json: bool) -> None:
    """Search the best path of each token: which of the widths that ROUTER, a directory that
    `ockham train gate` wrote, knows each layer of MODEL should have had. Says how far the router
    is from it at the same number of neurons.
    """
    from ockham.lab.oracle import of_model, told

    found = of_model(model, router, tokens, seed)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    for line in told(found):
        click.echo(line)


@techniques.command()
@click.argument("model", default="lab")
@option("--task", default="steps", show_default=True, help="Whose items are answered.")
@option("--budget", type=Integer(1), required=True, help="Tokens for an item, on average.")
@option("--items", type=Integer(8), default=56, show_default=True, help="To choose by.")
@option("--held-out", type=Integer(8), default=56, show_default=True, help="To judge by.")
@option("--temperature", type=float, default=1.0, show_default=True, help="Of sampling.")
@option(
    "--extract",
    default="Answer: (.+)",
    show_default=True,
    help="What of a text is its answer, for votes.",
)
@option("--lora", default=None, metavar="ADAPTER", help="An adapter that is applied to MODEL.")
@option("--seed", type=int, default=0, show_default=True)
@option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write the best as JSON, as `search` of a request takes it.",
)
@option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@option("--json", "as_json", is_flag=True, help="Write all that was tried as one JSON object.")
def pipelines(
    model: str,
    task: str,
    budget: int,
    items: int,
    held_out: int,
    temperature: float,
    extract: str,
    lora: str | None,
    seed: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Search the pipeline of texts that answers the items of a task best within a budget of tokens,
    by successive halving. Judge it on other items, beside one call and a vote of as many tokens.
    """
    import msgspec

    from ockham.engine.engine import Engine
    from ockham.lab.pipelines import Trial, search_pipelines, told
    from ockham.lab.probing import probe_settings

    if temperature <= 0.0:
        raise ConfigError(f"temperature must be above 0, got {temperature}.")
    if out is not None:
        check_output(out, overwrite)
    config, adapter = probe_settings(model, lora)
    engine = Engine(config)
    try:
        trial = Trial(engine, task, temperature=temperature, seed=seed, adapter=adapter)
        found = search_pipelines(
            trial,
            budget=budget,
            items=items,
            held_out=held_out,
            extract=extract,
            tell=lambda line: click.echo(line, err=True),
        )
    finally:
        engine.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        for line in told(found):
            click.echo(line)
    if out is not None:
        best = msgspec.json.format(msgspec.json.encode(found.best.search), indent=2)
        write_output(out, best + b"\n", overwrite=overwrite)


techniques.add_command(advise)
techniques.add_command(budget)
techniques.add_command(price)


def _take_prompts(bench: Bench, workload: str, settings: tuple[str, ...], vocab_size: int) -> None:
    """Let the recipes send the prompts of a workload."""
    from ockham.lab.workloads.prompts import token_prompts

    requests, _ = chosen_workload(workload, settings, vocab_size, bench.seed)
    tokenizer = bench.engine().tokenizer
    bench.workload = workload
    bench.workload_prompts = tuple(ids for _, ids in token_prompts(requests, tokenizer))


def _tell(recipe: Recipe, measured: Measured) -> None:
    from ockham.lab.evidence.page import cells

    click.echo(f"{recipe.seam}/{recipe.name}: {recipe.summary}")
    if measured.row is None:
        click.echo(f"  not measured: {measured.skipped}")
        return
    for key, value in cells(measured.row):
        click.echo(f"  {key + ':':<12} {value}")


def _write_json(measured: Sequence[Measured]) -> None:
    import msgspec

    rows = [
        {**msgspec.to_builtins(each.row), "saved": each.row.saved, "verdict": each.row.verdict}
        for each in measured
        if each.row is not None
    ]
    click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))


def _check_page(page: Path, recipes: Sequence[Recipe]) -> None:
    """Refuse before anything is measured what could not be written afterwards."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--all draws plots and needs matplotlib: pip install 'ockham[plots]'."
        ) from error
    if not page.absolute().parent.is_dir():
        raise ConfigError(f"--page {page}: there is no directory {page.absolute().parent}.")
    from ockham.lab.evidence.page import check_page

    check_page(page, recipes)


def _machine() -> str:
    """The processor, as the page names it."""
    import os
    import platform

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
