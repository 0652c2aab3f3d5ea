"""`POST /v1/embeddings`, and what Text Embeddings Inference and llama-server call the same."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ockham.api.pooling import embedding_of
from ockham.api.server.house import EMBED, choose
from ockham.api.server.openapi.described import describes
from ockham.api.server.pooled.parts import Parts, read_parts
from ockham.api.server.pooled.request import (
    SIDES,
    ContentBody,
    EmbeddingBody,
    InputsBody,
    PooledBody,
)
from ockham.api.server.pooled.wire import Embedding, Embeddings, LlamaEmbedding, shown, written
from ockham.api.server.serving import Serving, read, request_id
from ockham.api.server.wire import now_s
from ockham.core.arrays import Floats
from ockham.core.pooling import PoolingParams

GONE = 499
"""The status, for the log, of an answer that nobody waits for any more."""


@describes(
    takes=EmbeddingBody,
    gives=Embeddings,
    example={"input": ["The ferry leaves at six.", "When does the boat go?"]},
)
async def create_embeddings(http: Request) -> Response:
    """The embedding of each text."""
    body = await read(http, EmbeddingBody)
    server = await _checked(http, body)
    prompt_name = body.prompt_name
    if body.input_type is not None:
        side = SIDES[body.input_type]
        prompt_name = side if side in server.llm.ready.pooled.prompts else None
    parts = await read_parts(
        http,
        body,
        body.params(),
        lambda: body.inputs,
        "input",
        prompt_name=prompt_name,
        prompt=body.instruction,
        truncate=body.truncate_prompt_tokens,
        add_special_tokens=body.add_special_tokens is not False,
    )
    vectors = await embedded(parts)
    if vectors is None:
        return Response(status_code=GONE)
    as_base64 = body.encoding_format == "base64"
    return await written(
        server,
        vectors,
        lambda index, vector: Embedding(index=index, embedding=shown(vector, as_base64)),
        lambda entries: Embeddings(
            id=f"embd-{request_id(http)}",
            created=now_s(),
            model=server.answer_name(body.model),
            data=entries,
            usage=parts.usage(),
        ),
    )


@describes(
    takes=InputsBody, gives=list[list[float]], example={"inputs": "The ferry leaves at six."}
)
async def embed_inputs(http: Request) -> Response:
    """The embedding of each text, with the fields of Text Embeddings Inference."""
    body = await read(http, InputsBody)
    server = await _checked(http, body)
    truncate = -1 if body.truncate else body.truncate_prompt_tokens
    params = PoolingParams(task="embed", dimensions=body.dimensions, normalize=body.normalize)
    parts = await read_parts(
        http,
        body,
        params,
        lambda: body.listed,
        "inputs",
        prompt_name=body.prompt_name,
        truncate=truncate,
    )
    return await _bare(server, parts, lambda _, vector: shown(vector))


@describes(
    takes=ContentBody,
    gives=list[LlamaEmbedding],
    lenient=True,
    example={"content": "The ferry leaves at six."},
)
async def embed_content(http: Request) -> Response:
    """The embedding of each text, with the fields of llama-server."""
    body = await read(http, ContentBody, lenient=True)
    server = await _checked(http, body)
    params = PoolingParams(task="embed", normalize=body.normalize)
    parts = await read_parts(
        http,
        body,
        params,
        lambda: body.texts,
        "content",
        truncate=body.truncate_prompt_tokens,
    )
    return await _bare(server, parts, lambda index, vector: LlamaEmbedding(index, [shown(vector)]))


async def embedded(parts: Parts) -> list[Floats] | None:
    """The embeddings of the parts; None if the caller has gone away."""
    outputs = await parts.outputs()
    return None if outputs is None else [embedding_of(each) for each in outputs]


async def _checked(http: Request, body: PooledBody) -> Serving:
    """The model, if the request may be made of it. Raises `InvalidRequest` and `HttpError`."""
    body.check()
    return await choose(http, body.model, EMBED)


async def _bare(server: Serving, parts: Parts, one: Any) -> Response:
    """The response that is a list of entries, and nothing else."""
    vectors = await embedded(parts)
    if vectors is None:
        return Response(status_code=GONE)
    return await written(server, vectors, one, lambda entries: entries)
