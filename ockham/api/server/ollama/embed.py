"""`POST /api/embed`, and `/api/embeddings`, as Ollama called it before."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.house import EMBED, choose, house
from ockham.api.server.managing import stay
from ockham.api.server.ollama.names import served_name
from ockham.api.server.ollama.options import Options
from ockham.api.server.ollama.request import keep_alive_seconds
from ockham.api.server.openapi.described import describes
from ockham.api.server.pooled.embeddings import GONE, embedded
from ockham.api.server.pooled.parts import Parts, read_parts
from ockham.api.server.pooled.request import PooledBody, Text, Texts, listed
from ockham.api.server.pooled.wire import shown, written
from ockham.api.server.serving import Serving, pass_over, read
from ockham.core.pooling import PoolingParams

TRUNCATE = '"truncate": true'
"""What has a text cut that is too long."""


class _Body(PooledBody, kw_only=True):
    """What both requests have."""

    model: str
    """The model's name, with or without `:latest`."""
    options: Options = msgspec.field(default_factory=Options)
    """None of them changes an embedding."""
    keep_alive: float | str | None = None
    """Changes nothing: the model stays."""


class EmbedBody(_Body, kw_only=True):
    """`POST /api/embed`. Without `truncate` a text that is too long is refused."""

    input: Texts
    truncate: bool | None = None
    """Whether the end of a text that is too long is cut off."""
    dimensions: int | None = None
    """So many values of each embedding are kept."""

    @property
    def texts(self) -> list[Text]:
        """The texts, one entry each. Raises `InvalidRequest`."""
        return listed(self.input, "input")


class EmbeddingsBody(_Body, kw_only=True):
    """`POST /api/embeddings`: one text."""

    prompt: str


class Embedded(msgspec.Struct, kw_only=True):
    """The answer of `/api/embed`. Durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


class EmbeddedOne(msgspec.Struct):
    """The answer of `/api/embeddings`."""

    embedding: list[float]


@describes(
    takes=EmbedBody,
    gives=Embedded,
    lenient=True,
    example={"model": "lab", "input": ["The ferry leaves at six."]},
)
async def embed(http: Request) -> Response:
    """The embedding of each text."""
    begin_ns = time.monotonic_ns()
    body = await read(http, EmbedBody, lenient=True)
    server = await _checked(http, body)
    truncate = -1 if body.truncate else body.truncate_prompt_tokens
    params = PoolingParams(task="embed", dimensions=body.dimensions)
    parts = await read_parts(
        http,
        body,
        params,
        lambda: body.texts,
        "input",
        truncate=truncate,
        cutting=TRUNCATE,
    )
    return await _answer(server, parts, body, begin_ns)


@describes(
    takes=EmbeddingsBody,
    gives=EmbeddedOne,
    lenient=True,
    example={"model": "lab", "prompt": "The ferry leaves at six."},
)
async def embeddings(http: Request) -> Response:
    """The embedding of one text, as Ollama answered before `/api/embed`."""
    body = await read(http, EmbeddingsBody, lenient=True)
    server = await _checked(http, body)
    parts = await read_parts(
        http,
        body,
        PoolingParams(task="embed"),
        lambda: [body.prompt],
        "prompt",
        truncate=body.truncate_prompt_tokens,
    )
    vectors = await embedded(parts)
    if vectors is None:
        return Response(status_code=GONE)
    return await written(
        server, vectors, lambda _, vector: shown(vector), lambda entries: EmbeddedOne(entries[0])
    )


async def _answer(server: Serving, parts: Parts, body: EmbedBody, begin_ns: int) -> Response:
    vectors = await embedded(parts)
    if vectors is None:
        return Response(status_code=GONE)
    return await written(
        server,
        vectors,
        lambda _, vector: shown(vector),
        lambda entries: Embedded(
            model=body.model,
            embeddings=entries,
            total_duration=time.monotonic_ns() - begin_ns,
            prompt_eval_count=parts.usage().prompt_tokens,
        ),
    )


async def _checked(http: Request, body: _Body) -> Serving:
    """The model, if the server has it and it embeds. Raises `InvalidRequest` and `HttpError`
    404."""
    body.check()
    seconds = keep_alive_seconds(body.keep_alive)
    server = await choose(http, served_name(house(http).models, body.model), EMBED)
    stay(http, seconds)
    if body.options.warnings(server.llm.ready.max_model_len):
        pass_over(http, "options.num_ctx")
    return server
