"""`GET /props`, `GET /slots` and `POST /apply-template`, with llama-server's fields."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import ockham
from ockham.api.server.caller import caller_of
from ockham.api.server.house import choose, house
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatRequest
from ockham.api.server.serving import body_bytes, read
from ockham.api.server.turn import render
from ockham.core.config import EngineConfig
from ockham.engine.messages import Ready


@describes(gives=dict[str, Any], queries=("model",))
async def props(http: Request) -> Response:
    """What the server's model is. `n_ctx` is the context of every request: prompt and answer
    together may have so many tokens."""
    server = await choose(http, http.query_params.get("model"))
    ready, tokenizer = server.llm.ready, server.llm.tokenizer
    info: dict[str, Any] = {} if tokenizer is None else tokenizer.info
    return JSONResponse(
        {
            "default_generation_settings": {
                "n_ctx": ready.max_model_len,
                "params": {"n_predict": -1, "seed": -1, **server.llm.default_chat_parameters},
            },
            "total_slots": server.llm.config.max_num_seqs,
            "model_alias": server.names[0],
            "model_path": server.llm.config.model,
            "chat_template": info.get("chat_template", ""),
            "bos_token": info.get("bos_token"),
            "eos_token": info.get("eos_token"),
            "modalities": {"vision": False, "audio": False},
            "fill_in": tokenizer is not None and tokenizer.fill_in is not None,
            "build_info": f"ockham-{ockham.__version__}",
            "numerics_id": ready.numerics_id,
            "techniques": _techniques(server.llm.config, ready),
        }
    )


def _techniques(config: EngineConfig, ready: Ready) -> dict[str, Any]:
    """What is on, by the names of the settings. Requests may ask for less, and some for more."""
    return {
        "quantization": config.quantization or "stored",
        "kv_cache_dtype": config.kv_cache_dtype,
        "reuse": config.reuse_techniques,
        "kv_store": config.kv_store is not None,
        "swap_space": config.swap_space > 0,
        "drafters": list(ready.drafters),
        "keep": config.keep,
        "attention_pattern": config.attention_pattern,
        "gate": config.gate,
        "guard": config.guard,
        "search": config.search,
        "adapter": config.adapter,
        "scheduling_policy": config.scheduling_policy,
    }


@describes(gives=list[dict[str, Any]], queries=("cache_salt", "model"))
async def slots(http: Request) -> Response:
    """The requests of the caller that are being served, without their texts.

    Callers see what has their key and the salt of the query (`?cache_salt=`, none by default), the
    administrator everything."""
    server = house(http).models.there(http.query_params.get("model"))
    caller = caller_of(http)
    given = http.query_params.get("cache_salt")
    salt = None if caller.is_admin and given is None else caller.salt(given)
    now_s, context = time.monotonic(), server.llm.ready.max_model_len
    return JSONResponse(
        [
            {
                "id": number,
                "id_task": request.request_id,
                "n_ctx": context,
                "is_processing": True,
                "n_prompt_tokens": len(request.prompt_token_ids),
                "n_choices": request.params.sequences,
                "running_ms": int((now_s - begin_s) * 1000.0),
            }
            for number, (begin_s, request) in enumerate(
                (begin_s, request)
                for begin_s, requests in server.gate.admitted.values()
                for request in requests
                if salt is None or request.cache_salt == salt
            )
        ]
    )


@describes(
    takes=ChatRequest,
    gives=dict[str, str],
    example={"messages": [{"role": "user", "content": "Hello"}]},
)
async def apply_template(http: Request) -> Response:
    """The prompt that the chat template makes of messages; nothing is computed."""
    request = await read(http, ChatRequest)
    request.check()
    server = await choose(http, request.model)
    prefill = ""
    if request.continue_final_message:
        request, prefill = request.to_be_continued()
    text, _ = await render(server, request, body_bytes(http))
    text += prefill
    return Response(msgspec.json.encode({"prompt": text}), media_type="application/json")
