"""What a model's chat template can do, for lists of models and for the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ockham.api.async_llm import AsyncLLM
from ockham.api.chatting import ToolChoice, plan_chat
from ockham.api.server.house import GENERATE
from ockham.core.errors import InvalidRequest, WorkerError
from ockham.text.tokenizer import Tokenizer

log = logging.getLogger("ockham.server")


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """`template` is the chat template's text, empty where there is none, or no default one."""

    template: str = ""
    thinks: bool = False
    fills_in: bool = False


def chat_facts(tokenizer: Tokenizer | None) -> ChatFacts:
    """The facts of a model with this tokenizer, or with none. Without a template nothing else is
    looked for."""
    if tokenizer is None:
        return ChatFacts()
    try:
        template = tokenizer.chat_template().source
    except InvalidRequest:
        return ChatFacts()
    if not template:
        return ChatFacts()
    thinks = plan_chat(tokenizer, ToolChoice()).style.thinks
    return ChatFacts(template, thinks, tokenizer.fill_in is not None)


async def report_chat_template(llm: AsyncLLM) -> None:
    """Log what is wrong with the model's chat template, once. Completions need none, nor do models
    that generate no text."""
    if GENERATE not in llm.ready.tasks:
        return
    try:
        fault, notes = await llm.check_chat_template()
    except WorkerError as error:
        fault, notes = str(error), ()
    for line in notes:
        log.info("%s", line)
    if fault is not None:
        log.warning(
            "%s Chats will be refused; give another template with --chat-template FILE.", fault
        )
