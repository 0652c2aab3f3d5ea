"""The OpenAPI document: every route, what it takes and gives, and what its errors look like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route

import ockham
from ockham.api.server.dialect import OPENAI, Dialect
from ockham.api.server.openapi.described import Description, description_of
from ockham.api.server.openapi.schemas import Schema, schemas_of, whole
from ockham.api.server.settings import ServerSettings

VERSION = "3.1.0"
ABOUT = (
    "Language models on CPUs, exact to the bit. The routes of OpenAI's API answer without /v1 too. "
    "A field that is null means the same as one that is left out."
)
_FAILURES = {
    "400": "The request cannot be answered as it is; the message says why and what to do.",
    "401": "The API key is missing or wrong.",
    "403": "This is for the administrator's key.",
    "404": "There is no such path, model or name.",
    "405": "The path does not take this method.",
    "408": "The request took too long and was given up.",
    "413": "The body is too large.",
    "415": "The body is not JSON, or is encoded.",
    "429": "Too many requests wait; come back after `Retry-After` seconds.",
    "500": "A fault of the server; other requests go on.",
    "501": "This is known and not supported; the message says what is.",
    "503": "The engine is not there, or the server has no room.",
}
_FOR_ALL = ("400", "401", "403", "404", "405", "500", "501", "503")
_PARAMETER = re.compile(r"{([a-z_]+)(?::path)?}")


@dataclass(frozen=True, slots=True)
class _Operation:
    path: str
    method: str
    handler: Any
    description: Description
    dialect: Dialect


def build(
    routes: Sequence[Route], dialects: Sequence[Dialect], settings: ServerSettings, model: str
) -> dict[str, Any]:
    """The document for a server with these routes, of a model with this name."""
    operations = list(_operations(routes, dialects))
    said = [each.description for each in operations]
    takes = [whole(each.takes) for each in said if each.takes is not None]
    lenient = [whole(each.takes) for each in said if each.takes is not None and each.lenient]
    others = [kind for each in said for kind in (each.gives, each.streams) if kind is not None]
    errors = [dialect.error_type for dialect in (*dialects, OPENAI)]
    kinds = list(dict.fromkeys([*takes, *others, *errors]))
    found, components = schemas_of(
        kinds, takes, lenient=lenient, open_fields=settings.unknown_fields != "refuse"
    )
    schemas = dict(zip(kinds, found, strict=True))
    paths: dict[str, Any] = {}
    for each in operations:
        path = _PARAMETER.sub(r"{\1}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, schemas, model)
    keyed = bool(settings.api_keys)
    return {
        "openapi": VERSION,
        "info": {"title": "Ockham", "version": ockham.__version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}, *([] if keyed else [{}])],
    }


def _operations(routes: Sequence[Route], dialects: Sequence[Dialect]) -> Iterator[_Operation]:
    for route in routes:
        dialect = next((each for each in dialects if each.has(route.path)), OPENAI)
        description = description_of(route.endpoint) or Description()
        for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
            yield _Operation(route.path, method, route.endpoint, description, dialect)


def _operation(operation: _Operation, schemas: dict[Any, Schema], model: str) -> dict[str, Any]:
    said = operation.description
    text = (operation.handler.__doc__ or "").split("\n\n")[0]
    words = " ".join(text.split())
    made: dict[str, Any] = {
        "operationId": _name(operation),
        "summary": re.split(r"(?<=[.!?;]) ", words)[0].rstrip(".;") if words else operation.path,
        "description": words,
        "tags": [_tag(operation.path)],
        "responses": _responses(operation, schemas),
    }
    names = _PARAMETER.findall(operation.path)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": "string"}} for name in said.queries
    ]
    if parameters:
        made["parameters"] = parameters
    if said.form:
        made["requestBody"] = {"required": True, "content": {"multipart/form-data": _form(said)}}
    if said.takes is not None:
        content: dict[str, Any] = {"schema": schemas[whole(said.takes)]}
        if said.example is not None:
            content["example"] = _with_model(said.example, model)
        made["requestBody"] = {"required": True, "content": {"application/json": content}}
    return made


def _with_model(example: dict[str, Any], model: str) -> dict[str, Any]:
    """The example as it is answered here: for the model that is served, if it names one."""
    return {**example, "model": model} if "model" in example else example


def _form(said: Description) -> dict[str, Any]:
    fields: dict[str, Any] = {name: {"type": "string"} for name in said.form}
    if "file" in fields:
        fields["file"]["contentMediaType"] = "application/octet-stream"
    return {"schema": {"type": "object", "properties": fields, "required": list(said.form)}}


def _responses(operation: _Operation, schemas: dict[Any, Schema]) -> dict[str, Any]:
    said = operation.description
    content: dict[str, Any] = {}
    if said.gives is not None:
        content[said.media_type] = {"schema": schemas[said.gives]}
    if said.streams is not None:
        # OpenAPI 3.1 has no schema for the parts of a stream; 3.2 calls it `itemSchema`.
        content[said.stream_type] = {"x-item-schema": schemas[said.streams]}
    good: dict[str, Any] = {"description": "What was asked for."}
    if content:
        good["content"] = content
    failed = {"application/json": {"schema": schemas[operation.dialect.error_type]}}
    has_body = said.takes is not None or bool(said.form)
    codes = _FAILURES if has_body else dict.fromkeys(_FOR_ALL)
    return {"200": good} | {
        code: {"description": _FAILURES[code], "content": failed} for code in codes
    }


def _name(operation: _Operation) -> str:
    """A name that no other operation has."""
    words = re.findall(r"[A-Za-z0-9]+", operation.path)
    return "_".join([operation.method.lower(), *words])


def _tag(path: str) -> str:
    """Which of the protocols a path belongs to."""
    if path.startswith("/api") or path == "/":
        return "Ollama"
    if path.startswith("/v1/messages"):
        return "Anthropic"
    if path.startswith("/v1/"):
        return "OpenAI and Ockham"
    return "Server"
