"""Models by the names that Ollama's clients have for them.

Ollama's names end in a tag, `latest` where none is given: `smollm2` and `smollm2:latest` are one,
and so are names that differ in their case only.
"""

from __future__ import annotations

from ockham.api.server.errors import HttpError
from ockham.api.server.house import Models
from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.known_models import Repository, named_repository

LATEST = ":latest"


def listed_name(name: str) -> str:
    """A name as lists of models have it: with a tag."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def served_name(models: Models, asked: str) -> str:
    """The name by which the server knows the model that a client means. Raises `HttpError` 404 in
    the words of Ollama, which clients look for."""
    known = models.names
    if asked in known:
        return asked
    for name in known:
        if _plain(name) == _plain(asked):
            return name
    meant = _repository(asked)
    if meant is not None:
        for model in models.shown():
            for name in model.names:
                if _repository(name) == meant:
                    return name
    raise HttpError(
        404,
        f"model {shown(asked)} not found: this server has {_listed(models)}. Another model needs a "
        "server that is started with it (ockham serve MODEL ...).",
        param="model",
        code="model_not_found",
    )


def _listed(models: Models) -> str:
    return ", ".join(listed_name(model.names[0]) for model in models.shown())


def _plain(name: str) -> str:
    return name.lower().removesuffix(LATEST)


def _repository(name: str) -> Repository | None:
    """The repository behind a short name (`smollm2:135m`), if it is one."""
    try:
        found = named_repository(name)
    except ModelError:
        return None
    return found if found.known else None
