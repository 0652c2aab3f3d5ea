"""`POST /v1/rerank`, `/v2/rerank` and `/v1/score`: how well texts fit together.

A model that ranks reads query and document together; of one that embeds, the embeddings of both are
compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.pooled_llm import score_of
from ockham.api.pooling import PairPlan, ranked
from ockham.api.server.caller import caller_of
from ockham.api.server.house import EMBED, choose
from ockham.api.server.openapi.described import describes
from ockham.api.server.pooled.embeddings import GONE
from ockham.api.server.pooled.parts import Parts
from ockham.api.server.pooled.request import PooledBody, RerankBody, ScoreBody, text_of
from ockham.api.server.pooled.wire import (
    Document,
    Ranked,
    RankedText,
    Ranking,
    Score,
    Scores,
    answer,
)
from ockham.api.server.serving import Serving, body_bytes, read, request_id
from ockham.api.server.wire import Usage, now_s
from ockham.core.errors import InvalidRequest

EXAMPLE = {
    "query": "When does the boat go?",
    "documents": ["The ferry leaves at six.", "Bread is older than farming."],
}


@describes(takes=RerankBody, gives=Ranking, example=EXAMPLE)
async def rerank(http: Request) -> Response:
    """The documents by how well they fit the query, the best first. With `texts` in place of
    `documents`, the answer is a list as Text Embeddings Inference has it."""
    return await _rerank(http, shows_documents=True)


@describes(takes=RerankBody, gives=Ranking, example=EXAMPLE)
async def rerank_v2(http: Request) -> Response:
    """The same with Cohere's default: documents are told by their place alone."""
    return await _rerank(http, shows_documents=False)


async def _rerank(http: Request, *, shows_documents: bool) -> Response:
    body = await read(http, RerankBody)
    body.check()
    server = await choose(http, body.model, "score", EMBED)
    documents = body.listed
    name = "documents" if body.texts is None else "texts"
    scored = await _scores(
        http, server, body, [text_of(body.query)], documents, name, not body.raw_scores
    )
    if scored is None:
        return Response(status_code=GONE)
    scores, usage = scored
    found = ranked(documents, scores, body.top_n)
    if body.texts is not None:
        return answer(
            [
                RankedText(
                    index=each.index,
                    score=each.score,
                    text=each.document if body.return_text else None,
                )
                for each in found
            ]
        )
    shows = shows_documents if body.return_documents is None else body.return_documents
    return answer(
        Ranking(
            id=f"rerank-{request_id(http)}",
            model=server.answer_name(body.model),
            results=[
                Ranked(
                    index=each.index,
                    relevance_score=each.score,
                    document=Document(each.document) if shows else None,
                )
                for each in found
            ],
            usage=usage,
        )
    )


@describes(
    takes=ScoreBody,
    gives=Scores,
    example={"text_1": EXAMPLE["query"], "text_2": EXAMPLE["documents"]},
)
async def score(http: Request) -> Response:
    """How well the texts of each pair fit together."""
    body = await read(http, ScoreBody)
    body.check()
    server = await choose(http, body.model, "score", EMBED)
    first, second = body.sides
    name = "text_2" if body.documents is None else "documents"
    scored = await _scores(http, server, body, first, second, name, body.use_activation)
    if scored is None:
        return Response(status_code=GONE)
    scores, usage = scored
    return answer(
        Scores(
            id=f"score-{request_id(http)}",
            created=now_s(),
            model=server.answer_name(body.model),
            data=[Score(index=index, score=each) for index, each in enumerate(scores)],
            usage=usage,
        )
    )


async def _scores(
    http: Request,
    server: Serving,
    body: RerankBody | ScoreBody,
    first: Sequence[str],
    second: Sequence[str],
    name: str,
    use_activation: bool,
) -> tuple[list[float], Usage] | None:
    """The score of each pair, and what all took; `name` is the field of the second texts. None if
    the caller has gone away. Raises `InvalidRequest`, and what the gate refuses with."""
    server.gate.check(1, caller_of(http).tenant(body.cache_salt, body.user))
    truncate = body.most_tokens if isinstance(body, RerankBody) else body.truncate_prompt_tokens

    def plan() -> tuple[PairPlan, Parts]:
        made = server.llm.texts.plan_pairs(
            server.llm.ready.tasks,
            first,
            second,
            body.instruction,
            truncate,
            names=(_first_name(body), name),
        )
        return _ready(http, server, body, made, name, use_activation)

    size = body_bytes(http) + len(second) * sum(map(len, first)) // len(first)
    made, parts = await server.llm.in_thread(size, plan)
    outputs = await parts.outputs()
    if outputs is None:
        return None
    usage = parts.usage()
    pairs = await server.llm.in_thread(
        sum(len(output.prompt_token_ids) for output in outputs), lambda: made.scores(outputs)
    )
    return [score_of(pair) for pair in pairs], usage


def _first_name(body: RerankBody | ScoreBody) -> str:
    """What the caller called the first texts."""
    if isinstance(body, RerankBody):
        return "query"
    return "text_1" if body.queries is None else "queries"


def _ready(
    http: Request,
    server: Serving,
    body: PooledBody,
    plan: PairPlan,
    name: str,
    use_activation: bool,
) -> tuple[PairPlan, Parts]:
    """The plan, and the parts that carry it out. Raises `InvalidRequest`."""
    params = plan.params
    if plan.compared is not None:
        if not use_activation:
            raise InvalidRequest(
                "This model compares embeddings, whose likeness has no activation; leave "
                "raw_scores and use_activation out.",
                "use_activation",
            )
    else:
        params = msgspec.structs.replace(params, use_activation=use_activation)
    return plan, Parts(http, body, params, plan.reads, name)
