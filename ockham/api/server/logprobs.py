"""Log probabilities in the two shapes that OpenAI's API has for them.

JSON has no infinities: a probability of zero is shown as -9999.0, as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ockham.api.server.wire import (
    ChatLogprobs,
    ChosenLogprob,
    CompletionLogprobs,
    TokenLogprob,
)
from ockham.core.outputs import Logprob, PositionLogprobs

LOWEST = -9999.0

TokenText = Callable[[int], str]
TokenBytes = Callable[[int], bytes]


class CompletionLogprobsWriter:
    """Writes the log probabilities of one choice, in as many parts as its stream has."""

    def __init__(self, token_text: TokenText, top: int) -> None:
        self._token_text = token_text
        self._top = top
        self._offset = 0

    def write(
        self, tokens: Sequence[int], entries: Sequence[PositionLogprobs | None]
    ) -> CompletionLogprobs:
        """The entries of the next tokens. `text_offset` counts characters of the tokens' texts."""
        part = CompletionLogprobs([], [], [], [])
        for token, entry in zip(tokens, entries, strict=True):
            text = self._token_text(token)
            part.tokens.append(text)
            part.text_offset.append(self._offset)
            self._offset += len(text)
            part.token_logprobs.append(None if entry is None else _shown(entry[token]))
            part.top_logprobs.append(None if entry is None else self._by_text(token, entry))
        return part

    def _by_text(self, chosen: int, entry: PositionLogprobs) -> dict[str, float]:
        """Token text -> log probability of the chosen token and the likeliest ones. Of tokens that
        read the same (halves of a character do) the likeliest is shown."""
        by_text: dict[str, float] = {}
        for token, logprob in entry.items():
            if token != chosen and logprob.rank > self._top:
                continue
            text = self._token_text(token)
            by_text[text] = max(by_text.get(text, LOWEST), _shown(logprob))
        return by_text


def chat_logprobs(
    tokens: Sequence[int],
    entries: Sequence[PositionLogprobs],
    top: int,
    token_text: TokenText,
    token_bytes: TokenBytes,
    with_ids: bool = False,
) -> ChatLogprobs:
    """The log probabilities of a chat completion's tokens, with the `top` likeliest for each."""

    def shown(token: int, entry: PositionLogprobs) -> TokenLogprob:
        made = TokenLogprob(token_text(token), _shown(entry[token]), list(token_bytes(token)))
        if with_ids:
            made.token_id = token
        return made

    content = []
    for token, entry in zip(tokens, entries, strict=True):
        likeliest = sorted(
            (other for other in entry if entry[other].rank <= top),
            key=lambda other: entry[other].rank,
        )
        chosen = shown(token, entry)
        content.append(
            ChosenLogprob(
                chosen.token,
                chosen.logprob,
                chosen.bytes,
                chosen.token_id,
                top_logprobs=[shown(other, entry) for other in likeliest],
            )
        )
    return ChatLogprobs(content)


def prompt_logprobs(entries: list[PositionLogprobs | None] | None) -> Any:
    """vLLM's extension: for each prompt token an object by token id, null for the first."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): {
                "logprob": _shown(logprob),
                "rank": logprob.rank,
                "decoded_token": logprob.decoded_token,
            }
            for token, logprob in entry.items()
        }
        for entry in entries
    ]


def _shown(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST)
