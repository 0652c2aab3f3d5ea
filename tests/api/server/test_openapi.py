"""`/openapi.json` and `/docs`: a valid document of all routes, made when somebody asks."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from ockham.api.server.app import ROUTES
from ockham.api.server.openapi.described import description_of
from ockham.api.server.openapi.page import POLICY
from ockham.api.server.pooled import ROUTES as POOLED_ROUTES
from tests.helpers.live import LiveServer

POOLED = (*(route.path for route in POOLED_ROUTES), "/api/embed")
METHODS = {"get", "post", "delete"}


@pytest.fixture(scope="module")
def document(server: LiveServer) -> dict[str, Any]:
    response = server.get("/openapi.json")
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_every_route_is_there_with_types(document: dict[str, Any]) -> None:
    for route in ROUTES:
        described = description_of(route.endpoint)
        assert described is not None, f"{route.path} has no @describes"
        operations = document["paths"][route.path.replace(":path}", "}")]
        for method in (route.methods or set()) - {"HEAD"}:
            operation = operations[method.lower()]
            assert operation["summary"]
            takes = described.takes is not None or bool(described.form)
            assert ("requestBody" in operation) == takes
            assert "500" in operation["responses"]
    names = [o["operationId"] for p in document["paths"].values() for o in p.values()]
    assert len(names) == len(set(names))


def test_fields_of_techniques_and_descriptions_are_there(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert "skip_layers" in fields
    assert fields["cache_salt"]["description"].startswith("Whoever sends another one")
    assert fields["store"]["enum"] == [None, False, True]


def test_the_examples_are_answered_and_fit_their_schemas(
    server: LiveServer, document: dict[str, Any]
) -> None:
    answered = 0
    for path, methods in document["paths"].items():
        for operation in methods.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                example = content["example"]
                fits(document, content["schema"], example)
                if any(word in path for word in ("adapter", "batches", "control", "unload")):
                    continue  # this server has none, makes no answer now, and keeps its model
                if path.startswith(POOLED):
                    continue  # `test_embeddings` asks a model that does this
                model = {"model": "tiny"} if "model" in example else {}
                response = server.post(path, {**example, **model})
                assert response.status_code == 200, (path, response.text)
                answered += 1
                good = operation["responses"]["200"]["content"]
                if response.headers["content-type"] == "application/json":
                    fits(document, good["application/json"]["schema"], response.json())
    assert answered > 6


def test_errors_have_the_shape_that_is_promised(
    server: LiveServer, document: dict[str, Any]
) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if "requestBody" not in operation:
                continue
            response = server.post(path, [1])
            assert response.status_code in (400, 403, 415), path
            promised = operation["responses"][str(response.status_code)]["content"]
            promised = promised["application/json"]["schema"]
            fits(document, promised, response.json())


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    whole = {**schema, "components": document["components"]}
    problems = list(Draft202012Validator(whole).iter_errors(value))
    assert not problems, problems[0]


def test_the_page_needs_nothing_from_elsewhere(server: LiveServer) -> None:
    response = server.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"] == POLICY
    seen: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs)))

    Tags().feed(response.text)
    assert not [tag for tag, _ in seen if tag in ("script", "img", "link", "iframe")]
    links = {str(attrs["href"]) for tag, attrs in seen if tag == "a"}
    anchors = {f"#{attrs['id']}" for _, attrs in seen if "id" in attrs}
    assert links <= anchors | {"openapi.json"}
    assert "/v1/chat/completions" in response.text


def test_many_who_ask_at_once_get_the_same(server: LiveServer) -> None:
    async def ask() -> set[bytes]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            answers = await asyncio.gather(*(client.get("/openapi.json") for _ in range(8)))
        return {answer.content for answer in answers}

    assert len(asyncio.run(ask())) == 1


def test_a_start_does_not_make_the_document() -> None:
    code = (
        "import sys, ockham.api.server.run;"
        "print(*(name for name in sys.modules if name.startswith('ockham.api.server.openapi')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.split(r"\s+", done.stdout.strip()))
    assert loaded == {"ockham.api.server.openapi", "ockham.api.server.openapi.described"}
