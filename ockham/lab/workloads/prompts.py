"""What the requests of a workload ask of a model, as token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ockham.core.errors import ConfigError
from ockham.lab.workloads.request import Request
from ockham.text.tokenizer import Tokenizer


def token_prompts(
    requests: Sequence[Request], tokenizer: Tokenizer | None
) -> Iterator[tuple[Request, list[int]]]:
    """Each request with its prompt. A chat goes on with the recorded answers, or empty ones.

    Raises ConfigError for text where there is no tokenizer, InvalidRequest for a chat where the
    model has no chat template.
    """
    chats: dict[str, list[dict[str, Any]]] = {}
    for request in requests:
        if request.prompt_token_ids is not None:
            yield request, request.prompt_token_ids
            continue
        if tokenizer is None:
            raise ConfigError(f"request {request.id!r} is text, and the model has no tokenizer.")
        if request.prompt is not None:
            yield request, tokenizer.encode(request.prompt)
            continue
        chat = [*chats.get(request.after or "", []), *map(dict, request.messages or [])]
        chats[request.id] = [*chat, {"role": "assistant", "content": request.answer or ""}]
        text = tokenizer.apply_chat_template(chat)
        yield request, tokenizer.encode(text, add_special_tokens=False)
