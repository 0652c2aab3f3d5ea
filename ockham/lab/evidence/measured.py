"""What was measured on a model, kept in a file with a line for each recipe, so that a run that was
ended goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ockham.core.errors import ConfigError, OckhamError
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.recipe import Recipe
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.suites import LAB


class Measured(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What came of one recipe: a row, or in words why there is none."""

    seam: str
    name: str
    model: str
    row: Row | None = None
    skipped: str = ""
    seconds: float = 0.0
    """What it took to measure it."""
    machine: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.seam, self.name


def measure(recipe: Recipe, bench: Bench, machine: str, date: str) -> Measured:
    """Measure a recipe on the bench's model. What cannot be measured there is skipped, and says
    why."""
    started = time.perf_counter()
    found = Measured(
        seam=recipe.seam,
        name=recipe.name,
        model=bench.config.model,
        machine=machine,
        date=date,
    )
    elsewhere = bench.suite is not LAB
    if recipe.measure is None:
        found.skipped = "what others at this seam are compared with"
    elif elsewhere and recipe.only_lab:
        found.skipped = recipe.only_lab
    else:
        try:
            found.row = recipe.measure(bench)
        except OckhamError as error:
            if not elsewhere:
                raise
            found.skipped = str(error)
    if found.row is not None and elsewhere:
        found.row.real_model = ""  # it is itself what is measured
    bench.release()
    found.seconds = round(time.perf_counter() - started, 1)
    return found


def read_rows(path: Path, model: str = "") -> list[Measured]:
    """What a file holds, the latest of each recipe; nothing of a file that is not there. Raises
    ConfigError for a line that is no such thing, or is of another model than `model`."""
    found: dict[tuple[str, str], Measured] = {}
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from error
    for number, line in enumerate(lines, 1):
        try:
            each = msgspec.json.decode(line, type=Measured)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path}, line {number}: nothing that `ockham techniques measure` wrote ({error}); "
                "name another file with --rows."
            ) from error
        if model and each.model != model:
            raise ConfigError(
                f"{path}, line {number}: it is of the model {each.model!r}, not {model!r}; name "
                "another file with --rows."
            )
        found[each.key] = each
    return list(found.values())


def append_row(path: Path, measured: Measured) -> None:
    """Write what was measured behind what the file holds."""
    try:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(measured) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from error


def in_order(measured: Iterable[Measured], recipes: Iterable[Recipe]) -> list[Measured]:
    """Those of the recipes that there are, in their order."""
    by_key = {each.key: each for each in measured}
    keys = [(recipe.seam, recipe.name) for recipe in recipes]
    return [by_key[key] for key in keys if key in by_key]
