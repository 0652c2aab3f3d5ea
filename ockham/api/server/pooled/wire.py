"""What the answers look like, and how large ones are written.

An answer of thousands of vectors is megabytes of JSON. It is written in a thread, a vector at a
time: the interpreter's lock is free between two, so that the event loop goes on.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.responses import Response

from ockham.api.server.serving import Serving
from ockham.api.server.wire import Usage
from ockham.core.arrays import Floats


class Embedding(msgspec.Struct, kw_only=True):
    """One embedding: numbers, or base64 of float32, little-endian."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(msgspec.Struct, kw_only=True):
    """The answer of `/v1/embeddings`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Embedding]
    usage: Usage


class Classes(msgspec.Struct, kw_only=True):
    """The classes of one text; `label` is the likeliest."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Classifications(msgspec.Struct, kw_only=True):
    """The answer of `/v1/classify`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classes]
    usage: Usage


class Pooled(msgspec.Struct, kw_only=True):
    """What was made of one text: the numbers of a vector, a vector of each of its tokens, or base64
    of either."""

    index: int
    object: str = "pooling"
    data: list[Any] | str


class PooledList(msgspec.Struct, kw_only=True):
    """The answer of `/pooling`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


class Score(msgspec.Struct, kw_only=True):
    """How well the texts of a pair fit together."""

    index: int
    object: str = "score"
    score: float


class Scores(msgspec.Struct, kw_only=True):
    """The answer of `/v1/score`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage


class Document(msgspec.Struct):
    text: str


class Ranked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A document by its place in the request; the better, the earlier in the answer."""

    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(msgspec.Struct, kw_only=True):
    """The answer of `/v1/rerank`."""

    id: str
    object: str = "list"
    model: str
    results: list[Ranked]
    usage: Usage


class RankedText(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The same as Text Embeddings Inference has it."""

    index: int
    score: float
    text: str | None = None


class LlamaEmbedding(msgspec.Struct):
    """An embedding as llama-server has it."""

    index: int
    embedding: list[list[float]]


def shown(values: Floats, as_base64: bool = False) -> Any:
    """A vector or a matrix as JSON has it: numbers, or base64 of float32, little-endian."""
    if as_base64:
        return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
    return values.tolist()


async def written(
    server: Serving,
    vectors: Sequence[Floats],
    one: Callable[[int, Floats], Any],
    whole: Callable[[list[Any]], Any],
) -> Response:
    """The response of an answer: `one` makes the entry of a vector, `whole` the answer of all
    entries."""

    def write() -> bytes:
        entries = [
            msgspec.Raw(msgspec.json.encode(one(index, vector)))
            for index, vector in enumerate(vectors)
        ]
        return msgspec.json.encode(whole(entries))

    body = await server.llm.in_thread(sum(vector.size for vector in vectors), write)
    return Response(body, media_type="application/json")


def answer(made: Any) -> Response:
    """The response of a small answer."""
    return Response(msgspec.json.encode(made), media_type="application/json")
