"""`ockham eval`: scores of a model on tasks and on the user's own data, and what a configuration
costs in quality beside another."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.config_file import parse_yaml
from ockham.cli.eval_tables import comparison_lines, score_lines
from ockham.cli.options import engine_config, engine_options, option, overwrite_option
from ockham.cli.value_types import Integer
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.owned_files import check_output, write_output
from ockham.core.registry import make, settings_that_alter_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ockham.engine.engine import Engine
    from ockham.lab.cases import Case


@command("eval")
@option(
    "--tasks",
    help="Tasks, separated by commas. Left out, for the built-in models: recall, documents, edit, "
    "steps, long_steps, parts, word_problems, chat; for all others: needles, reading, cloze, "
    "arithmetic, extraction, edits, word_problems; for both code and prose; none beside --data. "
    "shared-recall, shared-documents, shared-edit, shared-needles and shared-summary ask five "
    "questions about one context.",
)
@option(
    "--num-items",
    type=Integer(1),
    default=100,
    show_default=True,
    help="Items of each task, taken in turn from its levels. --seed chooses them.",
)
@option(
    "--level",
    "levels",
    multiple=True,
    help="Only this level of the tasks that have it; may be repeated.",
)
@option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.jsonl",
    help='The user\'s own items: a line is an object with "prompt", "messages" or "text" (scored '
    'by perplexity), and for prompts perhaps "answer" or "references", and "level".',
)
@option(
    "--match",
    type=click.Choice(("exact", "contains")),
    default="exact",
    show_default=True,
    help="When a completion of --data is right: it is a reference, or has one in it.",
)
@option(
    "--max-tokens",
    type=Integer(1),
    default=256,
    show_default=True,
    help="Longest completion of a prompt of --data; tasks know their own.",
)
@option(
    "--temperature",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="0 is greedy decoding.",
)
@option(
    "-n",
    "--n",
    type=Integer(1),
    default=1,
    show_default=True,
    help="Completions of each prompt; the score is then their pass rate.",
)
@option(
    "--against",
    metavar="CONFIG",
    help="Compare: the model as the other flags have it (with none of them, in its own precision) "
    "is the baseline, taken to be right; the same with the settings of CONFIG is the candidate, "
    "which is judged. CONFIG is 'name=value,...' of the engine's flags, such as "
    "quantization=stored or keep=snapkv:budget=64,block=32, or a YAML file of them.",
)
@option(
    "--positions",
    type=Integer(1),
    default=128,
    show_default=True,
    help="With --against: positions of a prompt whose distributions are compared, at most.",
)
@option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.jsonl",
    help="Write each result here as it comes, and go on where this file ends.",
)
@option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Write a report as JSON; '-' is stdout, instead of the table.",
)
@overwrite_option
@engine_options
def evaluate(
    tasks: str | None,
    num_items: int,
    levels: tuple[str, ...],
    data: Path | None,
    match: str,
    max_tokens: int,
    temperature: float,
    n: int,
    against: str | None,
    positions: int,
    resume: Path | None,
    json_file: Path | None,
    overwrite: bool,
    **kwargs: Any,
) -> None:
    """Score MODEL on tasks and on your own data, or compare a configuration with the exact one.

    \b
    ockham eval lab --tasks recall,steps --num-items 200
    ockham eval MODEL --data mine.jsonl --resume results.jsonl
    ockham eval lab --against faster.yaml
    ockham eval M.gguf --quantization fp32 --against quantization=stored
    """
    if json_file is not None and str(json_file) != "-":
        check_output(json_file, overwrite)
    baseline = engine_config(**kwargs)
    if against is None:
        candidate = None
        _check_sampling(n, temperature)
    else:
        candidate = changed(baseline, against)
        if temperature or n > 1:
            raise ConfigError(
                "--against compares greedy completions; leave --temperature and -n out."
            )
    from ockham.lab.cases import check_data, check_tasks

    names = _names(tasks, data, baseline.model)
    check_tasks(names, levels)
    if data is not None:
        check_data(data)
    chosen = {
        "tasks": names,
        "num_items": num_items,
        "levels": list(levels),
        "data": data,
        "match": match,
        "max_tokens": max_tokens,
    }
    if candidate is None:
        report = _score(baseline, chosen, temperature, n, resume)
    else:
        report = _compare(baseline, candidate, chosen, positions, resume)
    _write(report, json_file, overwrite)


def _check_sampling(n: int, temperature: float) -> None:
    if n > 1 and not temperature:
        raise ConfigError(
            f"{n} greedy completions of one prompt are all the same; raise --temperature, or leave "
            "-n out."
        )


def _names(tasks: str | None, data: Path | None, model: str) -> list[str]:
    from ockham.lab.tasks.suites import suite_of

    if tasks is None:
        return [] if data is not None else list(suite_of(model).tasks)
    return list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))


def changed(config: EngineConfig, text: str) -> EngineConfig:
    """`config` with the settings of `text`: 'name=value,...', or the name of a YAML file.

    Raises ConfigError for anything else, an unknown name or a wrong value, also of an option of a
    technique.
    """
    import msgspec
    import yaml

    try:
        if "=" in text:
            pairs = [pair.partition("=") for pair in _settings(text)]
            settings = {name.strip(): parse_yaml(value) for name, _, value in pairs}
        else:
            settings = parse_yaml(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--against {text!r} is neither 'name=value,...' nor a file that can be read "
            f"({reason}); write for example quantization=stored."
        ) from error
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(
            f"--against {text!r} sets nothing; write for example quantization=stored."
        )
    named = {str(name).replace("-", "_"): value for name, value in settings.items()}
    unknown = [name for name in named if name not in EngineConfig.__struct_fields__]
    if unknown:
        known = ", ".join(EngineConfig.__struct_fields__)
        raise ConfigError(f"--against sets {unknown[0]!r}, which is no setting; there are {known}.")
    try:
        other = msgspec.convert({**msgspec.structs.asdict(config), **named}, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"--against {text!r} has a wrong value: {str(error).rstrip('.')}."
        ) from error
    for setting, seam in settings_that_alter_state().items():
        make(seam, getattr(other, setting))
    return other


def _settings(text: str) -> list[str]:
    """'name=value' of each setting. A value may be a technique with several options, or types of
    keys and of values: what is behind a comma and names no setting belongs to the value before."""
    found: list[str] = []
    for piece in text.split(","):
        name = piece.partition("=")[0].strip().replace("-", "_")
        open_ended = found and (":" in found[-1] or found[-1].count("=") > 1)
        if open_ended and name not in EngineConfig.__struct_fields__:
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


# -- the two kinds of run ----------------------------------------------------------------------


def _score(
    config: EngineConfig, chosen: dict[str, Any], temperature: float, n: int, resume: Path | None
) -> dict[str, Any]:
    from ockham.lab.evaluate import Result, evaluate, settings, summarise
    from ockham.lab.journal import Journal

    engine = _load(config)
    cases, digest = _cases(engine, chosen)
    if (temperature or n > 1) and any(case.interview is not None for case in cases):
        raise ConfigError(
            "questions about one context are answered greedily; leave --temperature and -n out, or "
            "the tasks shared-..."
        )
    decides = settings(
        engine, seed=config.seed, temperature=temperature, n=n, **_decides(chosen), data=digest
    )
    started = time.perf_counter()
    with Journal(resume, decides, Result) as journal, _bar(len(cases)) as progress:
        known = {result.key for result in journal.results}
        progress(len(known))

        def done(result: Result) -> None:
            journal.add(result)
            progress(1)

        todo = [case for case in cases if case.key not in known]
        evaluate(engine, todo, done, temperature=temperature, n=n, seed=config.seed)
        scores = summarise(journal.results, config.seed)
    return {
        "settings": decides,
        "config": config,
        "scores": scores,
        "evaluated": len(todo),
        "resumed": len(known),
        "seconds": time.perf_counter() - started,
    }


def _compare(
    baseline: EngineConfig,
    candidate: EngineConfig,
    chosen: dict[str, Any],
    positions: int,
    resume: Path | None,
) -> dict[str, Any]:
    from ockham.lab.comparison import BASELINE, CANDIDATE, Comparing, Entry
    from ockham.lab.evaluate import settings, summarise
    from ockham.lab.forced import decodes
    from ockham.lab.journal import Journal
    from ockham.model.loading import plan_model

    plan_model(candidate).source.close()  # what cannot be loaded is refused before any work
    engine = _load(baseline)
    stands = _identity(engine)
    cases, digest = _cases(engine, chosen)
    decides = settings(
        engine,
        against=_differing(baseline, candidate),
        decoded=list(dict.fromkeys([*decodes(baseline), *decodes(candidate)])),
        seed=baseline.seed,
        positions=positions,
        **_decides(chosen),
        data=digest,
    )
    with (
        Journal(resume, decides, Entry) as journal,
        _bar(2 * len(cases)) as progress,
        Comparing(
            cases, journal.results, journal.add, positions=positions, progress=progress
        ) as comparing,
    ):
        comparing.baseline(engine)
        del engine  # two models need no more memory than one
        judged = _load(candidate)
        comparing.candidate(judged)
        return {
            "settings": decides,
            "baseline": {"config": baseline, **stands},
            "candidate": {"config": candidate, **_identity(judged)},
            "differences": comparing.differences(baseline.seed),
            "scores": {
                run: summarise(comparing.results[run].values(), baseline.seed)
                for run in (BASELINE, CANDIDATE)
            },
        }


def _load(config: EngineConfig) -> Engine:
    from ockham.engine.engine import Engine

    return Engine(config, progress=_tell)


def _identity(engine: Engine) -> dict[str, Any]:
    return {
        "weights": engine.model.weight_format,
        "weight_bytes": engine.model.weight_bytes,
        "numerics_id": engine.model.numerics_id,
    }


def _cases(engine: Engine, chosen: dict[str, Any]) -> tuple[list[Case], str | None]:
    """The cases of a run, and the digest of the user's file. What is left out is told."""
    import hashlib

    from ockham.lab.cases import data_cases, task_cases

    if engine.tokenizer is None:
        raise ConfigError("tasks need a tokenizer; leave --skip-tokenizer-init out.")
    found = task_cases(
        chosen["tasks"],
        chosen["num_items"],
        engine.config.seed,
        chosen["levels"],
        engine.tokenizer,
        engine.max_model_len,
    )
    cases, left_out, digest = found.cases, found.left_out, None
    if (path := chosen["data"]) is not None:
        own = data_cases(
            path,
            engine.tokenizer,
            engine.max_model_len,
            chosen["max_tokens"],
            chosen["match"] == "contains",
        )
        cases, left_out = cases + own.cases, left_out + own.left_out
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    for sentence in left_out:
        _tell(f"{sentence}.")
    if not cases:
        raise ConfigError("there is nothing to evaluate; name --tasks, or give --data with lines.")
    return cases, digest


def _decides(chosen: dict[str, Any]) -> dict[str, Any]:
    """What of the choice of cases decides the results; the user's file does by its content."""
    return {name: value for name, value in chosen.items() if name != "data"}


def _differing(baseline: EngineConfig, candidate: EngineConfig) -> dict[str, Any]:
    return {
        name: getattr(candidate, name)
        for name in EngineConfig.__struct_fields__
        if getattr(candidate, name) != getattr(baseline, name)
    }


def _tell(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _bar(cases: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=cases, desc="Cases", unit="case", disable=None) as bar:
        yield bar.update


# -- what is said ------------------------------------------------------------------------------


def _write(report: dict[str, Any], json_file: Path | None, overwrite: bool) -> None:
    if json_file is not None:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        if str(json_file) == "-":
            click.echo(text, nl=False)
            return
        write_output(json_file, text, overwrite)
    comparing = "differences" in report
    for line in comparison_lines(report) if comparing else score_lines(report["scores"]):
        click.echo(line)
