"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, with vLLM's fields."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ockham.api.server.house import choose
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import DetokenizeRequest, TokenizeRequest
from ockham.api.server.serving import body_bytes, read
from ockham.api.server.turn import render
from ockham.api.server.wire import Detokenized, Tokenized
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

MAX_TOKENS = 1 << 18
"""Most token ids that one request may have decoded."""


@describes(takes=TokenizeRequest, gives=Tokenized, example={"prompt": "Once upon a time"})
async def tokenize(http: Request) -> Response:
    """The token ids of a text (with special tokens unless told otherwise), or of a chat as it
    stands in the prompt."""
    request = await read(http, TokenizeRequest)
    request.check()
    server = await choose(http, request.model)
    special = request.add_special_tokens
    if request.messages is not None:
        text, _ = await render(server, request, body_bytes(http))
        special = bool(special)
    else:
        text, special = request.prompt or "", special is not False

    def answer() -> bytes:
        tokens = server.llm.prompts.read(text, add_special_tokens=special).token_ids
        made = Tokenized(len(tokens), server.llm.ready.max_model_len, tokens)
        if request.return_token_strs:
            made.token_strs = [server.token_text(token) for token in tokens]
        return msgspec.json.encode(made)

    body = await server.llm.in_thread(len(text), answer)
    return Response(body, media_type="application/json")


@describes(takes=DetokenizeRequest, gives=Detokenized, example={"tokens": [1, 2, 3]})
async def detokenize(http: Request) -> Response:
    """The text of token ids, special tokens included."""
    request = await read(http, DetokenizeRequest)
    server = await choose(http, request.model)
    if len(request.tokens) > MAX_TOKENS:
        raise InvalidRequest(
            f"tokens has {len(request.tokens)} entries, at most {MAX_TOKENS}; split the request.",
            "tokens",
        )
    last = server.llm.ready.vocab_size - 1

    def answer() -> bytes:
        for token in request.tokens:
            if not 0 <= token <= last:
                raise InvalidRequest(
                    f"tokens holds {shown(token)}; the vocabulary has ids from 0 to {last}.",
                    "tokens",
                )
        return msgspec.json.encode(Detokenized(server.decode_here(request.tokens)))

    body = await server.llm.in_thread(len(request.tokens), answer)
    return Response(body, media_type="application/json")


@describes(gives=dict[str, Any], queries=("model",))
async def tokenizer_info(http: Request) -> Response:
    """The tokenizer's own configuration and chat template, for clients that template themselves
    (lm-eval asks for it)."""
    server = await choose(http, http.query_params.get("model"))
    return JSONResponse(server.llm.prompts.tokenizer.info)
