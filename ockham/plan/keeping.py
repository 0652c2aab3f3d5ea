"""Plans that are kept on this machine, one for each model: `--auto` takes them from here."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ockham.core.errors import ConfigError, OckhamError
from ockham.core.owned_files import PRIVATE_DIRECTORY, read_own, write_own
from ockham.kernels.cores import allowed_cores, processor
from ockham.kernels.native import chosen_isa, core
from ockham.model.hub import resolve
from ockham.plan.log import digest
from ockham.plan.result import Plan

KEPT_VERSION = 1
MOST_BYTES = 64 << 20
"""A plan of more bytes is none."""


class Kept(msgspec.Struct, kw_only=True):
    """A plan and what it was made for."""

    kind: str = "ockham plan"
    version: int = KEPT_VERSION
    model: str
    """The digest of the model's files, by name, size and time."""
    machine: str
    plan: Plan


def directory() -> Path | None:
    """Where plans and their log are kept: "plans" in $OCKHAM_CACHE, $XDG_CACHE_HOME/ockham or
    ~/.cache/ockham; None if there is no home."""
    own, shared = os.environ.get("OCKHAM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser() / "plans"
        return (Path(shared) if shared else Path.home() / ".cache").expanduser() / "ockham/plans"
    except RuntimeError:
        return None


def this_machine() -> str:
    """The processor, its cores that may be used, and the instruction set of the kernels."""
    isa = "none" if core is None else str(chosen_isa()).rpartition(".")[2].lower()
    return f"{processor()}, {allowed_cores()} cores, {isa}"


def model_digest(model: str, revision: str | None = None) -> str:
    """A digest of the files that a model is loaded from, without reading them. Raises ModelError
    if there is no such model."""
    path = resolve(model, revision)
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    facts = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return digest({"path": str(path.resolve()), "files": facts})


def keep(plan: Plan, revision: str | None = None) -> Path | None:
    """Keep a plan for `--auto`, in place of an earlier one for the same model; where it is kept.
    None where there is no place for it. Raises ConfigError if it cannot be written."""
    place = directory()
    if place is None:
        return None
    kept = Kept(model=model_digest(plan.model, revision), machine=this_machine(), plan=plan)
    path = place / f"{kept.model}.json"
    try:
        place.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        write_own(path, msgspec.json.encode(kept))
    except OSError as error:
        raise ConfigError(
            f"the plan cannot be kept for --auto in {place} ({error.strerror}); set OCKHAM_CACHE "
            "to another directory."
        ) from error
    return path


def kept_plan(model: str, revision: str | None = None) -> tuple[Plan | None, str]:
    """The plan for a model on this machine; or None, and why there is none."""
    try:
        name = model_digest(model, revision)
    except (OckhamError, OSError):
        return None, "there is no such model here yet"
    place = directory()
    path = None if place is None else place / f"{name}.json"
    if path is None or not path.exists():
        return None, "there is no plan for it"
    try:
        kept = msgspec.json.decode(read_own(path, most_bytes=MOST_BYTES), type=Kept)
    except (OSError, msgspec.DecodeError):
        return None, f"its plan in {path} cannot be read"
    if kept.kind != "ockham plan" or kept.version != KEPT_VERSION:
        return None, f"its plan in {path} is of another version"
    if kept.machine != this_machine():
        return None, f"its plan was made on another machine ({kept.machine})"
    return kept.plan, ""
