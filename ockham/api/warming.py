"""Preambles on disk: what the requests of an agent begin with, computed before the first one comes.

A preamble is what a request's prompt holds before its last message, or before the last part of
that: an agent's system prompt, its tools, what it tells of a project, what was said so far. It is
found by making the prompt twice, with two last messages, and taking what both begin with, so that
nothing need be known of the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ockham.api.chatting import plan_chat, read_tools, thinking_variables
from ockham.api.llm import LLM
from ockham.api.server.any_body import read_any_body
from ockham.api.server.protocol import ChatRequest, template_variables
from ockham.core.errors import ConfigError, InvalidRequest, OckhamError
from ockham.core.ledger import Ledger
from ockham.core.sampling_params import SamplingParams

PROBES = ("a", "1")
"""Two messages that share no token."""
FLUSH_S = 60.0


class Warmed(msgspec.Struct, kw_only=True):
    """A preamble that was computed. `stored` of its tokens stand on disk, in full pages, and
    `pinned` of them stay there."""

    where: str
    tokens: int
    computed: int
    stored: int = 0
    pinned: int = 0


def read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The requests of a file and where each stands: one JSON object, a list of them, or one on each
    line; or one request as it came over the wire, with its headers. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{path} cannot be read ({reason}).") from error
    if text.startswith("POST /"):
        head, _, text = text.partition("\n\n")
        body = _json(text)
        if body is None:
            raise ConfigError(f"{path}: behind the headers of the request there is no JSON.")
        yield str(path), {"url": head.split()[1].partition("?")[0], "body": body}
        return
    found = _json(text)
    if found is not None:
        bodies = found if isinstance(found, list) else [found]
        yield from (
            (f"{path}[{i}]" if len(bodies) > 1 else str(path), b) for i, b in enumerate(bodies)
        )
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            body = _json(line)
            if body is None:
                raise ConfigError(f"{path}, line {number}: this is no JSON.")
            yield f"{path}, line {number}", body


def warm(
    llm: LLM,
    bodies: Sequence[tuple[str, Any]],
    salts: Callable[[str], Sequence[str]],
    tell: Callable[[Warmed], None],
) -> list[Warmed]:
    """Compute the preambles of request bodies, write them to the engine's store, and let exactly
    these stay there. `salts` gives the salts under which a request's `cache_salt` keeps state.

    Raises InvalidRequest that names the body at fault, before anything is computed, and
    OckhamError if the engine has no store.
    """
    if llm.engine.tiers is None or llm.engine.tiers.disk is None:
        raise OckhamError(f"the store {llm.config.kv_store} cannot be used, so nothing is kept.")
    preambles = []
    for where, body in bodies:
        try:
            preambles += [(where, tokens, salt) for tokens, salt in _preambles(llm, body, salts)]
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error}", error.param) from error
    found = []
    for where, tokens, salt in preambles:
        found.append(_compute(llm, where, tokens, salt))
        tell(found[-1])
    key = llm.engine.techniques.plain_key
    pinned = llm.engine.tiers.pin([(np.array(t, np.int32), key(s)) for _, t, s in preambles])
    for each, count in zip(found, pinned, strict=True):
        each.pinned = min(count, each.stored)
    return found


def _preambles(
    llm: LLM, body: Any, salts: Callable[[str], Sequence[str]]
) -> Iterator[tuple[list[int], str]]:
    path = None
    if isinstance(body, dict) and isinstance(body.get("body"), dict):
        path, body = str(body.get("url") or "") or None, body["body"]  # a line of a batch file
    asked = read_any_body(body, path)
    found = [llm.read(prompt).token_ids for prompt in asked.prompts]
    if asked.chat is not None:
        chats = [read_any_body(_with_last(body, probe), path).chat for probe in PROBES]
        found = [_shared(*(_prompt(llm, chat) for chat in chats if chat is not None))]
    for tokens in found:
        if tokens:
            yield from ((tokens, salt) for salt in salts(asked.cache_salt))


def _with_last(body: dict[str, Any], text: str) -> dict[str, Any]:
    """A sound body whose last message says something else: of the user's last message the last part
    is changed, or there is one message more."""
    name = next((each for each in ("messages", "input") if each in body), "prompt")
    said = body.get(name)
    if not isinstance(said, list):
        return {**body, name: text}
    last = said[-1] if said else {}
    if last.get("role") != "user":
        return {**body, name: [*said, {"role": "user", "content": text}]}
    content: Any = text
    if isinstance(last.get("content"), list) and last["content"]:
        *parts, part = last["content"]
        if "text" not in part:  # the result of a tool, say
            parts, part = last["content"], {"type": "text"}
        content = [*parts, {**part, "text": text}]
    return {**body, name: [*said[:-1], {**last, "content": content}]}


def _shared(one: list[int], two: list[int]) -> list[int]:
    """What two lists begin with."""
    same = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return one[: next(same, min(len(one), len(two)))]


def _prompt(llm: LLM, request: ChatRequest) -> list[int]:
    tokenizer = llm.get_tokenizer()
    choice = read_tools(request.tools, request.tool_choice, request.parallel_tool_calls)
    plan = plan_chat(tokenizer, choice)
    variables = template_variables(request.chat_template_kwargs)
    text = tokenizer.apply_chat_template(
        plan.messages([message.for_template() for message in request.messages]),
        tools=plan.template_tools,
        add_generation_prompt=True,
        **thinking_variables(variables, request.reasoning_effort),
    )
    special = bool(request.add_special_tokens)
    return llm.read(text, add_special_tokens=special).token_ids


def _compute(llm: LLM, where: str, tokens: list[int], salt: str) -> Warmed:
    """Compute a preamble until all its full pages stand on disk: of what comes at once, only so
    much waits to be written."""
    tiers = llm.engine.tiers
    assert tiers is not None, "there is a store"
    params, key = SamplingParams(max_tokens=1, temperature=0.0), llm.engine.techniques.plain_key
    prefix = np.array(tokens, np.int32)
    most = len(tokens) // tiers.identity.page_tokens * tiers.identity.page_tokens
    bill, stored, before = Ledger(), -1, -2
    while before < stored < most or stored < 0:
        prompt = {"prompt_token_ids": tokens, "cache_salt": salt}
        [output] = llm.generate([prompt], params, use_tqdm=False)
        bill.add(output.ledger)
        tiers.flush(FLUSH_S)
        before, stored = stored, tiers.stored(prefix, key(salt))
    return Warmed(
        where=where,
        tokens=len(tokens),
        computed=bill.prompt_tokens_computed,
        stored=stored,
    )


def _json(text: str) -> Any:
    """A JSON value that holds requests, or None."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, (dict, list)) else None
