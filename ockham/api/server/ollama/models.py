"""`/api/tags`, `/api/show`, `/api/ps`, `/api/version` and `/api/pull`: what there is."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import ockham
from ockham.api.server.errors import HttpError
from ockham.api.server.house import EMBED, GENERATE, Shown, choose, house
from ockham.api.server.ollama.names import listed_name, served_name
from ockham.api.server.ollama.request import PullBody, ShowBody
from ockham.api.server.ollama.wire import lines, stamp
from ockham.api.server.openapi.described import describes
from ockham.api.server.serving import read
from ockham.core.errors import InvalidRequest
from ockham.engine.messages import ModelFacts
from ockham.model.checkpoint.generation_config import chat_defaults

API_VERSION = "0.32.0"
"""The version of Ollama whose API this is: clients ask for it to know what they may send."""
NEVER = "9999-12-31T23:59:59Z"
"""When a model is unloaded that stays."""


class Details(msgspec.Struct, kw_only=True):
    """`quantization_level` are the formats in which the weights are held."""

    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int
    embedding_length: int


class Listed(msgspec.Struct, kw_only=True):
    """A model of `/api/tags`; `size` is that of its files in bytes, `digest` names its bits."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str]


class Running(msgspec.Struct, kw_only=True):
    """A model of `/api/ps`; `size` is what it takes of the memory in bytes."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


@describes(gives=dict[str, list[Listed]])
async def list_tags(http: Request) -> Response:
    """The models, once for each of their names, and their adapters."""
    listed = []
    for model in house(http).models.shown():
        size, modified_s = _files(_path(model))
        details, capabilities = _details(model), _capabilities(model)
        listed += [
            Listed(
                name=listed_name(name),
                model=listed_name(name),
                modified_at=stamp(modified_s),
                size=size,
                digest=_digest(model, name),
                details=details,
                capabilities=capabilities,
            )
            for name in (*model.names, *model.adapters)
        ]
    return _answer({"models": listed})


@describes(gives=dict[str, list[Running]])
async def list_running(http: Request) -> Response:
    """The models that are loaded, and until when they stay if nobody asks them anything."""
    running = [_running(model) for model in house(http).models.shown() if model.state == "loaded"]
    return _answer({"models": running})


def _running(model: Shown) -> Running:
    name, facts = model.names[0], _facts(model)
    return Running(
        name=listed_name(name),
        model=listed_name(name),
        size=facts.weight_bytes if model.nbytes is None else model.nbytes,
        digest=_digest(model, name),
        details=_details(model),
        expires_at=NEVER if model.expires_s is None else stamp(model.expires_s),
        size_vram=0,
        context_length=_context(model),
    )


@describes(takes=ShowBody, gives=dict[str, Any], lenient=True, example={"model": "lab"})
async def show(http: Request) -> Response:
    """What there is to say of a model. One that was never loaded is loaded for it."""
    asked = (await read(http, ShowBody, lenient=True)).asked
    models = house(http).models
    name = served_name(models, asked)
    model = _named(models.shown(), name)
    if model.ready is None:
        await choose(http, name)
        model = _named(models.shown(), name)
    defaults = (
        {}
        if model.ready is None
        else chat_defaults(model.ready.sampling_defaults, model.config.generation_config)
    )
    parameters = "\n".join(f"{key:<30} {value}" for key, value in defaults.items())
    return _answer(
        {
            "license": "",
            "modelfile": f"# {listed_name(name)} is served by Ockham, which has no Modelfiles.\n",
            "parameters": parameters,
            "template": model.chat().template,
            "details": _details(model),
            "model_info": _model_info(model),
            "capabilities": _capabilities(model),
            "modified_at": stamp(_files(_path(model))[1]),
        }
    )


def _named(shown: Sequence[Shown], name: str) -> Shown:
    return next(each for each in shown if name in each.names or name in each.adapters)


@describes(gives=dict[str, str])
async def version(http: Request) -> Response:
    """The version of Ollama whose API this is, and Ockham's own."""
    return JSONResponse({"version": API_VERSION, "ockham": ockham.__version__})


@describes(
    takes=PullBody,
    gives=dict[str, str],
    streams=dict[str, str],
    stream_type="application/x-ndjson",
    lenient=True,
    example={"model": "lab"},
)
async def pull(http: Request) -> Response:
    """Success for the model that is served: it is here. Another cannot be had by a request."""
    body = await read(http, PullBody, lenient=True)
    asked = body.model or body.name
    if not asked:
        raise InvalidRequest("model is required and is missing.", "model")
    try:
        served_name(house(http).models, asked)
    except HttpError as error:
        raise HttpError(
            501, f"{error} Fetch one with 'ockham pull NAME' on the machine itself."
        ) from None
    done = {"status": "success"}
    if body.stream is False:
        return JSONResponse(done)
    return Response(lines([done]), media_type="application/x-ndjson")


@describes()
async def not_here(http: Request) -> Response:
    """What Ollama does and this server does not."""
    path = http.url.path
    raise HttpError(
        501,
        f"{path} is not supported: the model that is served is chosen when the server is started "
        "(ockham serve MODEL). 'ockham pull', 'ockham list' and 'ockham rm' manage what is on the "
        "machine.",
    )


def _facts(model: Shown) -> ModelFacts:
    """What is known of a model, which is little before it was loaded for the first time."""
    if model.ready is None or model.ready.facts is None:
        return ModelFacts(path=_path(model))
    return model.ready.facts


def _path(model: Shown) -> str:
    """Where its files are, as far as that is known."""
    facts = None if model.ready is None else model.ready.facts
    return os.path.expanduser(model.config.model) if facts is None else facts.path


def _context(model: Shown) -> int:
    return 0 if model.ready is None else model.ready.max_model_len


def _details(model: Shown) -> Details:
    facts = _facts(model)
    family = _family(facts)
    return Details(
        format="gguf" if facts.path.endswith(".gguf") else "safetensors",
        family=family,
        families=[family] if family else [],
        parameter_size=_human(facts.parameters) if facts.parameters else "",
        quantization_level=facts.weight_format.upper(),
        context_length=_context(model),
        embedding_length=facts.hidden_size,
    )


def _family(facts: ModelFacts) -> str:
    """`LlamaForCausalLM` as GGUF files have it: `llama`."""
    return re.sub(r"For(CausalLM|ConditionalGeneration)$", "", facts.architecture).lower()


def _human(count: int) -> str:
    """A number of parameters as Ollama writes it: 134.52M, 8.0B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.{1 if unit == 'B' else 2}f}{unit}"
    return str(count)


def _model_info(model: Shown) -> dict[str, Any]:
    """The keys of GGUF files that clients read. The context is the server's own, not the longest
    that the model was made for."""
    facts = _facts(model)
    family = _family(facts)
    ready = model.ready
    return {
        "general.architecture": family,
        "general.basename": model.names[0],
        "general.parameter_count": facts.parameters,
        f"{family}.context_length": _context(model),
        f"{family}.trained_context_length": facts.trained_length,
        f"{family}.embedding_length": facts.hidden_size,
        f"{family}.feed_forward_length": facts.intermediate_size,
        f"{family}.block_count": facts.layers,
        f"{family}.attention.head_count": facts.heads,
        f"{family}.attention.head_count_kv": facts.kv_heads,
        f"{family}.vocab_size": 0 if ready is None else ready.vocab_size,
        "tokenizer.ggml.eos_token_ids": [] if ready is None else list(ready.eos_token_ids),
    }


def _capabilities(model: Shown) -> list[str]:
    """`tools` wherever there is a chat template: a template that shows none has them told in a
    message. `embedding` and `rerank` are of models that generate nothing."""
    if model.tasks and GENERATE not in model.tasks:
        told = {EMBED: "embedding", "score": "rerank"}
        return [name for task, name in told.items() if task in model.tasks]
    chat = model.chat()
    if not chat.template:
        return ["completion"]
    more = {"thinking": chat.thinks, "insert": chat.fills_in}
    return ["completion", "tools", *(name for name, there in more.items() if there)]


def _digest(model: Shown, name: str) -> str:
    """What tells two models apart whose answers differ: of 64 digits, as Ollama's."""
    bits = model.config.model if model.ready is None else model.ready.numerics_id
    return hashlib.sha256(f"{bits}\n{model.adapters.get(name, '')}".encode()).hexdigest()


def _files(path: str) -> tuple[int, float]:
    """The bytes of a model's files, and when the newest was changed, in seconds of the epoch."""
    place = Path(path)
    parts = re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-*\1", glob.escape(place.name))
    files = list(place.glob("*.safetensors") if place.is_dir() else place.parent.glob(parts))
    try:
        found = [file.stat() for file in files]
    except OSError:  # removed since
        return 0, 0.0
    return sum(each.st_size for each in found), max((each.st_mtime for each in found), default=0.0)


def _answer(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
