"""`POST /v1/classify` and `POST /pooling`, with vLLM's fields."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.house import POOLED, choose
from ockham.api.server.openapi.described import describes
from ockham.api.server.pooled.embeddings import GONE
from ockham.api.server.pooled.parts import Parts, read_parts
from ockham.api.server.pooled.request import ClassifyBody, InputBody, PoolingBody
from ockham.api.server.pooled.wire import (
    Classes,
    Classifications,
    Pooled,
    PooledList,
    shown,
    written,
)
from ockham.api.server.serving import Serving, read, request_id
from ockham.api.server.wire import now_s
from ockham.core.arrays import Floats
from ockham.core.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PooledRequestOutput,
    PoolingOutput,
)
from ockham.core.pooling import PoolingParams


@describes(takes=ClassifyBody, gives=Classifications, example={"input": "The ferry leaves at six."})
async def classify(http: Request) -> Response:
    """The probability of each of the model's classes, for each text."""
    body = await read(http, ClassifyBody)
    body.check()
    server = await choose(http, body.model, "classify")
    params = PoolingParams(task="classify", use_activation=body.use_activation)
    parts = await _parts(http, server, body, params)
    outputs = await parts.outputs()
    if outputs is None:
        return Response(status_code=GONE)
    labels = [_label(output) for output in outputs]
    return await written(
        server,
        [_values(output) for output in outputs],
        lambda index, values: Classes(
            index=index, label=labels[index], probs=values.tolist(), num_classes=len(values)
        ),
        lambda entries: Classifications(
            id=f"classify-{request_id(http)}",
            created=now_s(),
            model=server.answer_name(body.model),
            data=entries,
            usage=parts.usage(),
        ),
    )


@describes(takes=PoolingBody, gives=PooledList, example={"input": "The ferry leaves at six."})
async def pool(http: Request) -> Response:
    """What a task makes of each text: an embedding, one of each of its tokens, or its classes."""
    body = await read(http, PoolingBody)
    body.check()
    server = await choose(http, body.model, *((body.task,) if body.task else POOLED))
    task = body.task or ("classify" if "classify" in server.llm.ready.tasks else "token_embed")
    server.check_does(task)
    params = PoolingParams(
        task=task,
        dimensions=body.dimensions,
        normalize=body.normalize,
        use_activation=body.use_activation,
    )
    parts = await _parts(http, server, body, params)
    outputs = await parts.outputs()
    if outputs is None:
        return Response(status_code=GONE)
    as_base64 = body.encoding_format == "base64"
    return await written(
        server,
        [_values(output) for output in outputs],
        lambda index, values: Pooled(index=index, data=shown(values, as_base64)),
        lambda entries: PooledList(
            id=f"pool-{request_id(http)}",
            created=now_s(),
            model=server.answer_name(body.model),
            data=entries,
            usage=parts.usage(),
        ),
    )


async def _parts(http: Request, server: Serving, body: InputBody, params: PoolingParams) -> Parts:
    return await read_parts(
        http,
        body,
        params,
        lambda: body.inputs,
        "input",
        truncate=body.truncate_prompt_tokens,
        add_special_tokens=body.add_special_tokens is not False,
    )


def _label(output: PooledRequestOutput) -> str | None:
    made = output.outputs
    return made.label if isinstance(made, ClassificationOutput) else None


def _values(output: PooledRequestOutput) -> Floats:
    """The numbers of an output, whatever its task."""
    made = output.outputs
    if isinstance(made, EmbeddingOutput):
        return made.embedding
    if isinstance(made, PoolingOutput):
        return made.data
    assert isinstance(made, ClassificationOutput), "a single text has no score"
    return made.probs
