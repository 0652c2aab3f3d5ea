"""`ockham models`: what is built in, what the hub's cache holds, and what is supported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from ockham.cli.options import option
from ockham.cli.report import quantity


@click.command()
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def models(as_json: bool) -> None:
    """List models: built in, by short names, in the Hugging Face cache, and the architectures that
    are known."""
    from ockham.model.hub import BUILT_IN
    from ockham.model.known_models import EMBEDDING, KNOWN
    from ockham.model.program.architectures import ARCHITECTURES

    built_in = [_describe(name, directory) for name, directory in BUILT_IN.items()]
    cached = _cached()
    if as_json:
        record = {
            "built_in": built_in,
            "short_names": {name: dict(sizes) for name, sizes in {**KNOWN, **EMBEDDING}.items()},
            "cached": cached,
            "architectures": list(ARCHITECTURES),
        }
        click.echo(json.dumps(record, indent=2))
        return
    for title, entries in (("Built in", built_in), ("In the Hugging Face cache", cached)):
        click.echo(f"{title}:")
        for entry in entries:
            mark = "" if entry["supported"] else " (not supported)"
            size = quantity(entry["weight_bytes"], "B")
            click.echo(f"  {entry['name']:<40} {entry['architecture']}, {size}{mark}")
        if not entries:
            click.echo("  none")
    click.echo("Short names of the Hugging Face hub's models (without a size, the first):")
    _short_names(KNOWN)
    click.echo("Short names of models of embeddings:")
    _short_names(EMBEDDING)
    click.echo("Supported architectures:")
    for name in ARCHITECTURES:
        click.echo(f"  {name}")


def _short_names(table: Mapping[str, Iterable[str]]) -> None:
    for name, sizes in table.items():
        click.echo(f"  {name:<16} {', '.join(f'{name}:{size}' for size in sizes)}")


def _describe(name: str, directory: Path) -> dict[str, Any]:
    """A model's architecture, whether it is known here, and the size of its weights."""
    from ockham.model.program.architectures import ARCHITECTURES

    try:
        listed = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        architecture = str((listed.get("architectures") or ["unknown"])[0])
    except (OSError, ValueError, AttributeError):
        architecture = "unknown"
    return {
        "name": name,
        "architecture": architecture,
        "supported": architecture in ARCHITECTURES,
        "weight_bytes": sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        "path": str(directory),
    }


def _cached() -> list[dict[str, Any]]:
    """The models in huggingface_hub's cache that have a config.json, in their latest revision."""
    from huggingface_hub import constants

    found = []
    for repository in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = repository.name.removeprefix("models--").replace("--", "/")
        snapshots = sorted(repository.glob("snapshots/*/config.json"), key=_modified)
        if snapshots:
            found.append(_describe(name, snapshots[-1].parent))
    return found


def _modified(path: Path) -> float:
    return path.stat().st_mtime
