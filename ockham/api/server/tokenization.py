"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, with vLLM's fields."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ockham.api.server.chat import render
from ockham.api.server.protocol import DetokenizeRequest, TokenizeRequest
from ockham.api.server.serving import read, serving
from ockham.api.server.wire import Detokenized, Tokenized
from ockham.core.errors import InvalidRequest

MAX_TOKENS = 1 << 18
"""Most token ids that one request may have decoded."""


async def tokenize(http: Request) -> Response:
    """The token ids of a text (with special tokens unless told otherwise), or of a chat as it
    stands in the prompt."""
    server = serving(http)
    request = await read(http, TokenizeRequest)
    request.check()
    server.check_model(request.model)
    special = request.add_special_tokens
    if request.messages is not None:
        text = await render(server, request)
        tokens = await server.llm.encode(text, add_special_tokens=bool(special))
    else:
        text = request.prompt or ""
        tokens = await server.llm.encode(text, add_special_tokens=special is not False)
    answer = Tokenized(len(tokens), server.llm.ready.max_model_len, tokens)
    if request.return_token_strs:
        answer.token_strs = [server.token_text(token) for token in tokens]
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def detokenize(http: Request) -> Response:
    """The text of token ids, special tokens included."""
    server = serving(http)
    request = await read(http, DetokenizeRequest)
    server.check_model(request.model)
    if len(request.tokens) > MAX_TOKENS:
        raise InvalidRequest(
            f"tokens has {len(request.tokens)} entries, at most {MAX_TOKENS}; split the request.",
            "tokens",
        )
    last = server.llm.ready.vocab_size - 1
    for token in request.tokens:
        if not 0 <= token <= last:
            raise InvalidRequest(
                f"tokens holds {token}; the vocabulary has ids from 0 to {last}.", "tokens"
            )
    text = await server.decode_prompt(request.tokens)
    return Response(msgspec.json.encode(Detokenized(text)), media_type="application/json")


async def tokenizer_info(http: Request) -> Response:
    """The tokenizer's own configuration and chat template, for clients that template themselves
    (lm-eval asks for it)."""
    return JSONResponse(serving(http).llm.need_tokenizer().info)
