"""One turn of a chat, from what a request asks to the engine's job: the same for every protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import Request

from ockham.api.chatting import PLAIN, ChatPlan, read_tools, thinking_variables
from ockham.api.prompts import Encoded
from ockham.api.server.errors import HttpError
from ockham.api.server.house import GENERATE, choose
from ockham.api.server.job import Job
from ockham.api.server.protocol import ChatRequest, TokenizeRequest, template_variables
from ockham.api.server.serving import Serving, body_bytes, serving
from ockham.api.server.telling import NOT_BEGUN, Begun
from ockham.core.errors import TOO_LONG, InvalidRequest, OckhamError
from ockham.core.numbers import shown
from ockham.core.sampling_params import SamplingParams
from ockham.text.marking import ReuseParams


@dataclass(frozen=True, slots=True)
class Turn:
    """A chat whose prompt is made, and the job that answers it."""

    request: ChatRequest
    params: SamplingParams
    """What the caller asks; the job's have beside it what binds the answer."""
    text: str
    """The prompt, as the chat template made it."""
    prompt: Encoded
    """With the tokens that the answer begins with, if the caller gave any."""
    plan: ChatPlan
    job: Job
    clipped: bool = False
    """Whether the answer may have fewer tokens than were asked for, since no more fit."""
    begun: Begun = NOT_BEGUN
    """What the answer begins with."""


async def take_turn(
    http: Request,
    request: ChatRequest,
    names: Mapping[str, str] | None = None,
    *,
    raw: str | None = None,
    behind: str | None = None,
    before: Sequence[int] = (),
    prefill: str = "",
    clips: bool = False,
) -> Turn:
    """Make the prompt of a chat, and the job that answers it. Nothing has been computed yet.

    `names` are the fields of `request` that the caller knows by another name. `raw` is a prompt
    that is taken as it is, in place of what the chat template makes of the messages; its answer is
    text without parts, and with a text `behind` it, what stands between the two. `before` are token
    ids that stand before the prompt. `prefill` is a text that the answer goes on from. `clips`:
    where the context has no room for all tokens that are asked for, as many as it has room for are
    generated. Raises `InvalidRequest`, `HttpError` 404 for another model's name, and what the gate
    refuses with.
    """
    with in_words_of(names or {}):
        request.check()
        server = await choose(http, request.model, GENERATE)
        params = _sampling_params(request, server.llm.default_chat_parameters)
        server.check_room(http, request, params.sequences)
        reuse = request.reuse_params()
        if raw is None:
            text, plan = await render(server, request, body_bytes(http), params)
            text += prefill
        else:
            text, plan = raw, PLAIN
        prompt = await server.llm.in_thread(
            max(len(text), body_bytes(http)),
            lambda: _read(server, request, reuse, text, plan, behind),
        )
        fill_in = server.llm.prompts.tokenizer.fill_in if behind else None
        if fill_in is not None:
            params = fill_in.ending(params)
        if before:
            prompt = replace(prompt, token_ids=[*before, *prompt.token_ids])
        begun = NOT_BEGUN
        if request.prefix_token_ids:
            begun = await _begin(http, request, plan, params, len(prompt.token_ids))
            prompt = replace(prompt, token_ids=[*prompt.token_ids, *begun.token_ids])
        asked = params.max_tokens
        if clips:
            room = server.llm.ready.max_model_len - len(prompt.token_ids)
            params = _clipped(params, room, len(prompt.token_ids))
        job = server.job(http, [prompt], plan.params(params, text + begun.text), request)
    return Turn(request, params, text, prompt, plan, job, params.max_tokens != asked, begun)


async def _begin(
    http: Request, request: ChatRequest, plan: ChatPlan, params: SamplingParams, behind: int
) -> Begun:
    """What an answer begins with, `behind` so many tokens of prompt. Raises InvalidRequest."""
    server, tokens = serving(http), request.prefix_token_ids or []
    vocabulary, context = server.llm.ready.vocab_size, server.llm.ready.max_model_len
    if behind + len(tokens) >= context:
        raise InvalidRequest(
            f"prefix_token_ids has {len(tokens)} entries behind a prompt of {behind} tokens; the "
            f"context is {context} tokens.",
            "prefix_token_ids",
        )
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InvalidRequest(
            f"prefix_token_ids holds {shown(wrong)}; the vocabulary has ids from 0 to "
            f"{vocabulary - 1}.",
            "prefix_token_ids",
        )
    if params.structured_outputs is not None or plan.choice.bound or plan.choice.strict:
        raise InvalidRequest(
            "prefix_token_ids does not go together with what says what the answer must look like "
            "(response_format, structured_outputs, tool_choice, strict tools); leave one of the "
            "two out.",
            "prefix_token_ids",
        )
    tokenizer, skips = server.llm.prompts.tokenizer, plan.skips_special_tokens(params)
    text = await server.llm.in_thread(len(tokens), lambda: tokenizer.decode(tokens, skips))
    return Begun(text, tokens)


async def read_prompt(
    http: Request,
    request: ChatRequest,
    names: Mapping[str, str] | None = None,
    *,
    prefill: str = "",
) -> Encoded:
    """The prompt of a chat, without anything that would answer it. Raises what `take_turn` does for
    a chat that cannot be rendered, and `InvalidRequest` for a text that no tokenization could make
    fit the context."""
    with in_words_of(names or {}):
        request.check()
        server = await choose(http, request.model)
        text, plan = await render(server, request, body_bytes(http))
        text += prefill
        return await server.llm.in_thread(
            max(len(text), body_bytes(http)), lambda: _read(server, request, None, text, plan)
        )


def _clipped(params: SamplingParams, room: int, length: int) -> SamplingParams:
    """The parameters with no more tokens than there is room for behind a prompt of this length.
    Raises `InvalidRequest` if there is room for none."""
    if room < 1:
        # Agents read both figures, to know how much they must leave out.
        raise InvalidRequest(
            f"prompt is too long: {length} tokens > {length + room - 1} maximum. The context is "
            f"{length + room} tokens, one of which is the answer's at least. Shorten the prompt.",
            "prompt",
            TOO_LONG,
        )
    if params.max_tokens is not None and params.max_tokens <= room:
        return params
    return msgspec.structs.replace(params, max_tokens=room)


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about fields name them as the caller knows them: `names` has our name -> theirs."""
    try:
        yield
    except (InvalidRequest, HttpError) as error:
        param = error.param or ""
        ours = next((each for each in names if param == each or param.startswith(f"{each}[")), None)
        if ours is None:
            raise
        theirs = names[ours] + param.removeprefix(ours)
        raise _renamed(error, param, theirs) from None


def _renamed(error: InvalidRequest | HttpError, ours: str, theirs: str) -> OckhamError:
    text = str(error).replace(ours, theirs, 1)
    if isinstance(error, HttpError):
        return HttpError(error.status, text, param=theirs, code=error.code)
    return InvalidRequest(text, theirs, error.code)


def _read(
    server: Serving,
    request: ChatRequest,
    reuse: ReuseParams | None,
    text: str,
    plan: ChatPlan,
    behind: str | None = None,
) -> Encoded:
    """The prompt that a rendered chat is, or a text that is no chat."""
    if behind:
        return server.llm.prompts.read_fill_in(text, behind)[0]
    if plan is PLAIN:
        special = request.add_special_tokens is not False
        return server.llm.prompts.read(text, reuse, add_special_tokens=special)
    messages = (message.for_template() for message in request.messages)
    return server.llm.prompts.read_chat(
        text,
        messages,
        reuse,
        add_special_tokens=bool(request.add_special_tokens),
        tools=bool(plan.choice.offered),
    )


async def render(
    server: Serving,
    request: ChatRequest | TokenizeRequest,
    size: int,
    params: SamplingParams | None = None,
) -> tuple[str, ChatPlan]:
    """The prompt that the model's chat template makes of messages, which came in a body of `size`
    bytes, and how it is served. Raises `InvalidRequest`."""
    parallel = request.parallel_tool_calls if isinstance(request, ChatRequest) else None
    choice = read_tools(request.tools, request.tool_choice, parallel)
    plan = await server.llm.plan_chat(choice)
    if params is not None:
        plan.check(params)  # before the template is run
    variables = template_variables(request.chat_template_kwargs)
    messages = request.messages or []
    text = await server.llm.render_chat(
        lambda: [message.for_template() for message in messages],
        size,
        plan=plan,
        add_generation_prompt=request.add_generation_prompt is not False,
        variables=thinking_variables(variables, request.reasoning_effort),
        owner=getattr(request, "cache_salt", None) or "",
    )
    return text, plan


def _sampling_params(request: ChatRequest, defaults: dict[str, Any]) -> SamplingParams:
    given = (request.max_completion_tokens, request.max_tokens, defaults.get("max_tokens"))
    max_tokens = next((limit for limit in given if limit is not None), None)
    return request.sampling_params(
        defaults,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
        names={"logprobs": "top_logprobs", "max_tokens": request.length_field},
    )
