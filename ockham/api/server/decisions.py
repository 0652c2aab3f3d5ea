"""`POST /v1/decisions` and `POST /v1/systemone`: typed questions about one state.

`/v1/systemone` has the fields of System One (vLLM and others serve it too). `/v1/decisions` has
OpenAI's, and SGLang's where the questions have its fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api import decisions
from ockham.api.decisions import Asked, Frame, Reading, text_of
from ockham.api.server.house import GENERATE, choose
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatMessage, ChatRequest
from ockham.api.server.serving import METERED, body_bytes, entries, read, request_id
from ockham.api.server.sse import unless_disconnected
from ockham.api.server.turn import render
from ockham.api.server.wire import UsageMeter, now_s
from ockham.core.errors import InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.numbers import shown
from ockham.core.outputs import RequestOutput

PROMPT_FORMAT = 1
"""SGLang's number for how questions are put."""

Messages = list[dict[str, Any]]


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all forms have in common."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "stream": (False,),
        "store": (False, True),
        "temperature": (1.0,),
        "images": ([],),
        "priority": (0,),
        "prompt_cache_options": ({}, {"mode": "implicit"}),
        "return_prompt_token_ids": (False,),
        "prompt_format_version": (PROMPT_FORMAT,),
    }

    model: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class SystemOneQuestion(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`criteria`: a choice's options by name, a score's levels, what a noul's `true` and `false`
    stand for."""

    type: Literal["choice", "score", "noul", "yes_no"]
    instructions: Any = None
    criteria: Any = None

    def asked(self, where: str) -> Asked:
        """Raises `InvalidRequest` for criteria of another type's."""
        text, criteria = text_of(self.instructions), self.criteria
        wrong = InvalidRequest(
            f"{where}.criteria must be {_CRITERIA[self.type]}, got {shown(criteria)}.", where
        )
        if self.type == "choice":
            if not isinstance(criteria, dict):
                raise wrong
            options = [(name, text_of(detail)) for name, detail in criteria.items()]
            return decisions.choice(text, options)
        if self.type == "score":
            if not isinstance(criteria, list):
                raise wrong
            return decisions.score(text, [text_of(level) for level in criteria])
        told = {} if criteria is None else criteria
        if not isinstance(told, dict) or told.keys() - {"true", "false"}:
            raise wrong
        return decisions.yes_no(text, text_of(told.get("true")), text_of(told.get("false")))


_CRITERIA = {
    "choice": "an object of the options' names and what each stands for, or null",
    "score": "a list of levels",
    "noul": "null, or an object with true and false",
    "yes_no": "null, or an object with true and false",
}


class SystemOneRequest(_Body, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/systemone`. `instructions` hold for all questions."""

    state: Any
    questions: dict[str, SystemOneQuestion]
    instructions: Any = None


class Option(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An option of a choice: `value` is OpenAI's name of it, `name` SGLang's."""

    value: str | bool | None = None
    name: str | None = None
    description: Any = None


class Question(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A question of `/v1/decisions`: `name`, `instructions` and `choices` are OpenAI's; `id`,
    `question`, `options`, `yes` and `no` are SGLang's."""

    type: Literal["predicate", "choice", "score", "yes_no"]
    name: str | None = None
    instructions: Any = None
    choices: list[Option] | None = None
    levels: list[Any] | None = None
    id: str | None = None
    question: Any = None
    options: list[Option] | None = None
    yes: Any = None
    no: Any = None

    @property
    def is_sglang(self) -> bool:
        return self.id is not None or self.type == "yes_no"

    @property
    def listed(self) -> list[Option]:
        return self.options or self.choices or []

    def asked(self, where: str) -> Asked:
        """Raises `InvalidRequest`."""
        text = _content(self.question if self.is_sglang else self.instructions, where)
        if self.is_sglang and not self.id:
            raise InvalidRequest(f"{where}.id is required and is missing.", f"{where}.id")
        if self.type == "choice":
            names = [each.name if self.is_sglang else each.value for each in self.listed]
            if None in names:
                field = "name" if self.is_sglang else "value"
                raise InvalidRequest(f"An option of {where} has no {field}.", where)
            # A text and a boolean of the same text are two values; the model sees JSON's words.
            shown_names = [text_of(name) for name in names]
            details = [text_of(each.description) for each in self.listed]
            return decisions.choice(text, list(zip(shown_names, details, strict=True)))
        if self.type == "score":
            return decisions.score(text, [_level(level) for level in self.levels or []])
        return decisions.yes_no(text, text_of(self.yes), text_of(self.no))

    @property
    def level_labels(self) -> list[str]:
        return [_label(level) for level in self.levels or []]


class DecisionRequest(_Body, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/decisions`. `input` is a text or JSON, or a list of messages."""

    input: Any
    questions: list[Question]

    @property
    def is_sglang(self) -> bool:
        return any(question.is_sglang for question in self.questions)


@describes(
    takes=SystemOneRequest,
    gives=dict[str, Any],
    example={
        "state": "The parcel came on Tuesday, and the box was torn.",
        "questions": {"damaged": {"type": "noul", "instructions": "Is the parcel damaged?"}},
    },
)
async def decide_systemone(http: Request) -> Response:
    """Answer questions that have System One's fields."""
    body = await read(http, SystemOneRequest)
    asked = {name: each.asked(f"questions.{name}") for name, each in body.questions.items()}
    decisions.check_questions(asked)
    answered = await _decide(
        http, body, decisions.state_messages(body.state, body.instructions), list(asked.values())
    )
    if answered is None:
        return Response(status_code=499)
    model, readings, meter, _ = answered
    pairs = list(zip(body.questions, asked.values(), readings, strict=True))
    usage = meter.usage(final=True)
    return _json(
        {
            "id": f"decision-{request_id(http)}",
            "object": "structured_decision",
            "created": now_s(),
            "model": model,
            "answers": {
                name: _systemone(body.questions[name].type, question, reading)
                for name, question, reading in pairs
            },
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": usage.prompt_tokens_details,
                "output_tokens": usage.completion_tokens,
                "ockham": usage.ockham,
            },
            "diagnostics": {
                name: {
                    "label_mass": reading.label_mass,
                    "argmax_is_label": reading.argmax_is_label,
                }
                for name, _, reading in pairs
            },
        }
    )


@describes(
    takes=DecisionRequest,
    gives=dict[str, Any],
    example={
        "input": "The parcel came on Tuesday, and the box was torn.",
        "questions": [
            {"name": "damaged", "type": "predicate", "instructions": "Is the parcel damaged?"}
        ],
    },
)
async def decide(http: Request) -> Response:
    """Answer questions that have the fields of OpenAI's Decisions, or of SGLang's."""
    body = await read(http, DecisionRequest)
    numbered = {str(i): each.asked(f"questions[{i}]") for i, each in enumerate(body.questions)}
    decisions.check_questions(numbered)
    if body.is_sglang:
        ids = [question.id for question in body.questions]
        if None in ids or len(set(ids)) < len(ids):
            raise InvalidRequest("Each question needs an id of its own.", "questions")
    answered = await _decide(http, body, _messages(body.input), list(numbered.values()))
    if answered is None:
        return Response(status_code=499)
    model, readings, meter, ledger = answered
    pairs = list(zip(body.questions, numbered.values(), readings, strict=True))
    usage = meter.usage(final=True)
    if body.is_sglang:
        return _json(
            {
                "object": "decisions",
                "model": model,
                "prompt_format_version": PROMPT_FORMAT,
                "answers": {each.id: _sglang(each, asked, got) for each, asked, got in pairs},
                "usage": usage,
            }
        )
    return _json(
        {
            "model": model,
            "answers": [_openai(each, asked, reading) for each, asked, reading in pairs],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": ledger.prompt_tokens_computed,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
                "ockham": ledger,
            },
        }
    )


async def _decide(
    http: Request, body: _Body, before: Messages, asked: list[Asked]
) -> tuple[str, list[Reading], UsageMeter, Ledger] | None:
    """The name of the model, what it answers to each question, and the bill. None if the caller has
    gone away. Raises `InvalidRequest`, and what the gate refuses with."""
    frame = Frame(before)
    chat = ChatRequest(
        model=body.model,
        messages=[ChatMessage(**message) for message in frame.messages],
        chat_template_kwargs=decisions.variables(body.chat_template_kwargs),
        cache_salt=body.cache_salt,
        user=body.user,
        safety_identifier=body.safety_identifier,
        max_tokens=1,
    )
    server = await choose(http, body.model, GENERATE)
    server.check_room(http, chat, len(asked))
    text, plan = await render(server, chat, body_bytes(http))
    prompts, found = server.llm.prompts, list[RequestOutput]()

    def encode() -> tuple[decisions.Decider, Any]:
        decider = frame.decider(prompts.tokenizer, plan, text, asked)
        return decider, [prompts.read_chat(each.text, ()) for each in decider.reads]

    decider, encoded = await server.llm.in_thread(len(text) * len(asked), encode)
    job = server.job(http, encoded, [each.params for each in decider.reads], chat)
    finals = await unless_disconnected(http.receive, job.finals())
    if finals is None:
        return None
    found = finals
    http.scope[METERED] = meter = UsageMeter([prompt.token_ids for prompt in encoded])
    for output in found:
        meter.add(output)
    readings = await server.llm.in_thread(entries(found), lambda: decider.readings(found))
    return server.answer_name(body.model), readings, meter, decisions.bill(found)


def _messages(given: Any) -> Messages:
    """OpenAI's `input` as messages of a chat. Raises `InvalidRequest`."""
    if not _is_conversation(given):
        return decisions.state_messages(given)
    found: Messages = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        role = item["role"]
        if item.get("type", "message") != "message" or role not in _ROLES:
            raise InvalidRequest(
                f"{where} must be a message of the role {', '.join(_ROLES)}, got {shown(item)}; "
                "put what tools said into a message.",
                where,
            )
        found.append({"role": role, "content": _content(item.get("content"), where)})
    if not any(message["content"].strip() for message in found):
        raise InvalidRequest("input must not be empty.", "input")
    return found


_ROLES = ("user", "assistant", "system", "developer")


def _is_conversation(given: Any) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in given)
    )


def _content(given: Any, where: str) -> str:
    """A text, or the parts of one. Raises `InvalidRequest` for images and the like."""
    parts = given if isinstance(given, list) else None
    if parts is None or not all(isinstance(part, dict) and "type" in part for part in parts):
        return text_of(given)
    texts = []
    for part in parts:
        kind = part["type"]
        if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "input_json":
            texts.append(text_of(part.get("data")))
        else:
            raise InvalidRequest(
                f"{where} has a part of the type {shown(kind)}; this server reads text and "
                "JSON only.",
                where,
            )
    return "\n".join(texts)


def _level(level: Any) -> str:
    detail = level.get("description") if isinstance(level, dict) and "label" in level else None
    return f"{_label(level)} - {text_of(detail)}" if detail else _label(level)


def _label(level: Any) -> str:
    return text_of(level["label"] if isinstance(level, dict) and "label" in level else level)


def _systemone(kind: str, asked: Asked, reading: Reading) -> dict[str, Any]:
    by_name = dict(zip(asked.names, reading.probabilities, strict=True))
    said: dict[str, Any] = {"type": kind}
    if asked.kind == "choice":
        said["choice"] = asked.names[reading.likeliest]
    elif asked.kind == "score":
        said |= {
            "score": reading.expected,
            "legend": dict(zip(asked.names, asked.details, strict=True)),
        }
    else:
        said["noul"] = reading.probabilities[0]
    return said | {"probabilities": by_name, "confidence": reading.confidence}


def _sglang(question: Question, asked: Asked, reading: Reading) -> dict[str, Any]:
    said: dict[str, Any] = {"type": question.type}
    if asked.kind == "choice":
        said["choice"] = asked.names[reading.likeliest]
    elif asked.kind == "score":
        said["score"] = reading.expected
    by_name = dict(zip(asked.names, reading.probabilities, strict=True))
    return said | {"probabilities": by_name, "label_mass": reading.label_mass}


def _openai(question: Question, asked: Asked, reading: Reading) -> dict[str, Any]:
    said: dict[str, Any] = {"type": question.type, "name": question.name}
    probabilities: Sequence[float] = reading.probabilities
    if asked.kind == "yes_no":
        return said | {"probability": probabilities[0], "label_mass": reading.label_mass}
    said |= {"confidence": reading.confidence, "label_mass": reading.label_mass}
    if asked.kind == "choice":
        values = [option.value for option in question.listed]
        return said | {
            "choice": values[reading.likeliest],
            "probabilities": [
                {"value": value, "probability": each}
                for value, each in zip(values, probabilities, strict=True)
            ],
        }
    return said | {
        "score": reading.expected,
        "probabilities": [
            {"value": value, "label": label, "probability": each}
            for value, (label, each) in enumerate(
                zip(question.level_labels, probabilities, strict=True)
            )
        ],
    }


def _json(answer: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
