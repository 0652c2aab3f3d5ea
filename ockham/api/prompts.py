"""Prompts: the one way from what a caller says to the requests of an engine.

`LLM`, `AsyncLLM`, the server and batch files read prompts here, by the same rules and with the same
errors: what one of them accepts, all accept. The `Request` is made here too, and carried whole from
here on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ockham.core.asks import Ask
from ockham.core.errors import TOO_LONG, InvalidRequest
from ockham.core.numbers import shown, token_ids
from ockham.core.pooling import PoolingParams
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import HINTS, CacheHint, Request
from ockham.text.fill_in import Extra, missing
from ockham.text.marking import Piece, ReuseParams
from ockham.text.tokenizer import Tokenizer

T = TypeVar("T")

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, its token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`. The mappings may hold
`cache_salt` and `cache_hint` too, which then hold for that prompt."""

CHARACTERS_PER_TOKEN = 128
"""No prompt of more characters than this times the context's tokens is even tokenized."""

_CONTENT = ("prompt", "prompt_token_ids")
_CACHING = ("cache_salt", "cache_hint")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A prompt that was read, and what was said with it of how it is to be served."""

    text: str | None
    """None if the prompt came as token ids."""
    token_ids: list[int]
    asks: Mapping[str, Ask] = field(default_factory=dict)
    """What is asked of techniques for it, by key: what may be reused approximately."""
    cache_salt: str | None = None
    cache_hint: CacheHint | None = None
    has_tokenizer: bool
    second_text_at: int | None = None
    """Where the second text of a pair begins, for models that tell the two apart."""
    prompt_skip: int = 0
    """How many of the first tokens are an instruction before the text."""
    messages: list[dict[str, Any]] | None = None
    """Those of the chat that it was made of, where the engine's models read them."""
    workload: str = "completion"
    """What kind of request it is of: "completion", "chat" or "tools"."""

    def request(
        self,
        request_id: str,
        params: SamplingParams,
        *,
        detokenize: bool = True,
        cache_salt: str | None = None,
        cache_hint: CacheHint | None = None,
        asks: Mapping[str, Any] | None = None,
        tenant: str = "",
        priority: int = 0,
        progress: bool = False,
        pooling: PoolingParams | None = None,
    ) -> Request:
        """The request for this prompt; the keywords are the fields of `Request`. Raises
        InvalidRequest for a field that is wrong, or that was given another value with the
        prompt."""
        _check_caching(cache_salt, cache_hint)
        return Request(
            request_id=request_id,
            prompt_token_ids=self.token_ids,
            params=params,
            detokenize=detokenize and self.has_tokenizer,
            cache_salt=_one("cache_salt", self.cache_salt, cache_salt or None) or "",
            cache_hint=_one("cache_hint", self.cache_hint, cache_hint),
            asks={**(asks or {}), **self.asks},
            tenant=tenant,
            priority=priority,
            progress=progress,
            pooling=pooling,
            second_text_at=self.second_text_at,
            prompt_skip=self.prompt_skip,
            messages=self.messages,
            workload=self.workload,
        )


class PromptReader:
    """Reads prompts for one model. `tokenizer` is None where none was loaded; `context_limit` says
    in words what sets `max_model_len`. `keeps_messages`: chats go to the engine as messages, too.
    Safe to use from threads. Raises InvalidRequest."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        max_model_len: int,
        context_limit: str,
        *,
        keeps_messages: bool = False,
    ) -> None:
        self._keeps_messages = keeps_messages
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._context_limit = context_limit

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InvalidRequest where none was loaded."""
        if self._tokenizer is None:
            raise InvalidRequest(
                "text needs a tokenizer, and none was loaded (skip_tokenizer_init); send token "
                "ids.",
                "prompt",
            )
        return self._tokenizer

    def read(
        self,
        prompt: Prompt,
        reuse: ReuseParams | str | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """The token ids of a prompt. `reuse` says what may be reused approximately."""
        content, salt, hint = _parts(prompt)
        params = reuse_params(reuse)
        if params is not None and params.marks_chunks:
            if not isinstance(content, str):
                raise InvalidRequest(
                    f"reuse={params.reuse!r} finds chunks in text; send the prompt as text.",
                    "prompt",
                )
            self.check_characters(len(content))
            found = self._of_pieces(content, params.cut_text(content), params, add_special_tokens)
        elif isinstance(content, str):
            found = self._of_text(content, params, add_special_tokens)
        else:
            found = self._encoded(None, self._token_ids(content), _asks(params))
        return replace(found, cache_salt=salt, cache_hint=hint)

    def read_chat(
        self,
        text: str,
        messages: Iterable[Mapping[str, Any]],
        reuse: ReuseParams | str | None = None,
        *,
        add_special_tokens: bool = False,
        tools: bool = False,
    ) -> Encoded:
        """The token ids of the text that the chat template made of `messages`. The template writes
        special tokens itself, so that none are added unless asked for. `tools`: some are
        offered."""
        params, messages = reuse_params(reuse), list(messages)
        if params is None or not params.marks_chunks:
            made = self._of_text(text, params, add_special_tokens)
        else:
            self.check_characters(len(text))
            pieces = params.cut_chat(text, messages)
            made = self._of_pieces(text, pieces, params, add_special_tokens)
        if messages:
            made = replace(made, workload="tools" if tools else "chat")
        if not self._keeps_messages or not messages:
            return made
        return replace(made, messages=[dict(each) for each in messages])

    def read_fill_in(
        self, before: str, behind: str, extra: Sequence[Extra] = (), room: int | None = None
    ) -> tuple[Encoded, bool]:
        """The token ids of a prompt for what stands between two texts, and whether texts were cut.
        `extra` are other files. With `room` texts are cut so that the prompt has at most so many
        tokens; without, a prompt that is too long is refused where every other is. Raises
        InvalidRequest for a model that has no tokens for this."""
        tokenizer = self.tokenizer
        fill_in = tokenizer.fill_in
        if fill_in is None:
            raise missing()
        texts = (before, behind, *(each.text for each in extra))
        self.check_characters(sum(map(len, texts)))
        begin = tokenizer.encode("", add_special_tokens=True)[:1]
        made = fill_in.prompt(
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            begin,
            before,
            behind,
            extra,
            room,
        )
        return self._encoded(before, made.token_ids, {}), made.cut

    def _of_text(self, text: str, reuse: ReuseParams | None, add_special_tokens: bool) -> Encoded:
        tokenizer = self.tokenizer
        self.check_characters(len(text))
        tokens = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return self._encoded(text, tokens, _asks(reuse))

    def _of_pieces(
        self, text: str, pieces: Sequence[Piece], reuse: ReuseParams, add_special_tokens: bool
    ) -> Encoded:
        return self._encoded(text, *reuse.encode(self.tokenizer, pieces, add_special_tokens))

    def _encoded(self, text: str | None, tokens: list[int], asks: Mapping[str, Ask]) -> Encoded:
        return Encoded(
            text=text,
            token_ids=tokens,
            asks=asks,
            has_tokenizer=self._tokenizer is not None,
        )

    def encoded(self, tokens: list[int], text: str | None = None, prompt_skip: int = 0) -> Encoded:
        """Token ids that were made already, of which nothing is asked."""
        return Encoded(
            text=text,
            token_ids=tokens,
            has_tokenizer=self._tokenizer is not None,
            prompt_skip=prompt_skip,
        )

    @property
    def max_model_len(self) -> int:
        """The context, in tokens."""
        return self._max_model_len

    def _token_ids(self, content: Any) -> list[int]:
        if isinstance(content, Sequence) and len(content) > self._max_model_len:
            # before each of them is looked at
            raise InvalidRequest(
                f"the prompt is too long: it has {len(content)} tokens, and the context is "
                f"{self._max_model_len} tokens, {self._context_limit}. Shorten the prompt.",
                "prompt",
                TOO_LONG,
            )
        return token_ids(content)

    def check_characters(self, characters: int) -> None:
        """Refuse a text that no tokenization could make fit."""
        most = CHARACTERS_PER_TOKEN * self._max_model_len
        if characters > most:
            raise InvalidRequest(
                f"the prompt is too long: it has {characters} characters, and with a context of "
                f"{self._max_model_len} tokens at most {most} are taken. Shorten it.",
                "prompt",
                TOO_LONG,
            )


def characters(prompt: Any) -> int:
    """How many characters are to be tokenized: by this goes which thread reads the prompt."""
    content, _, _ = _parts(prompt)
    return len(content) if isinstance(content, str) else 0


def template_messages(messages: Any) -> Any:
    """A chat's messages as chat templates know them. OpenAI's newer word for the role `system` is
    `developer`, which no template knows."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        return messages  # what they are is checked where they are rendered
    return [
        {**message, "role": "system"}
        if isinstance(message, Mapping) and message.get("role") == "developer"
        else message
        for message in messages
    ]


def reuse_params(reuse: ReuseParams | str | None) -> ReuseParams | None:
    """What may be reused approximately, where a technique may be given by its name alone. Raises
    InvalidRequest."""
    if isinstance(reuse, str):
        return ReuseParams(reuse=reuse)
    if reuse is not None and not isinstance(reuse, ReuseParams):
        raise InvalidRequest(
            f"reuse must be ReuseParams or the name of a technique, got {shown(reuse)}.", "reuse"
        )
    return reuse


def as_list(prompts: Any) -> list[Any]:
    """The prompts of a batch: a text, an object or a list of token ids is a batch of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise InvalidRequest(
            "prompts must be text, token ids, a prompt object, or a list of these, got "
            f"{type(prompts).__name__}.",
            "prompt",
        )
    if prompts and all(isinstance(entry, int) for entry in prompts):
        return [prompts]
    return list(prompts)


def named(index: int, work: Callable[..., T], *args: Any) -> T:
    """Do something for the prompt at `index`; an error names it."""
    with naming_prompt(index):
        return work(*args)


@contextmanager
def naming_prompt(index: int) -> Iterator[None]:
    """What is wrong with a prompt says which one that is."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"prompt {index}: {error}", error.param) from error


def _parts(prompt: Any) -> tuple[Any, str | None, CacheHint | None]:
    """The text or token ids of a prompt, and the `cache_salt` and `cache_hint` of a prompt object.
    Raises InvalidRequest for an object that is none."""
    if not isinstance(prompt, Mapping):
        return prompt, None, None
    given = prompt.keys() - _CACHING
    if len(given) != 1 or not given <= set(_CONTENT):
        raise InvalidRequest(
            f"a prompt object must hold either {' or '.join(map(repr, _CONTENT))}, and may hold "
            f"{' and '.join(map(repr, _CACHING))}; got {sorted(map(str, prompt))}.",
            "prompt",
        )
    salt, hint = (prompt.get(name) for name in _CACHING)
    _check_caching(salt, hint)
    return prompt[given.pop()], salt, hint


def _asks(reuse: ReuseParams | None) -> Mapping[str, Ask]:
    """What the engine is asked for, of a prompt in which no chunks are marked."""
    return {} if reuse is None else reuse.asks


def _one(name: str, own: T | None, beside: T | None) -> T | None:
    """What was said of a field with the prompt, or beside it. Raises InvalidRequest if the two
    contradict each other."""
    if own is not None and beside is not None and own != beside:
        raise InvalidRequest(
            f"{name} is given twice: with the prompt it is {shown(own)}, beside it "
            f"{shown(beside)}. Give one of them.",
            name,
        )
    return beside if own is None else own


def _check_caching(salt: Any, hint: Any) -> None:
    """Raise InvalidRequest for a wrong `cache_salt` or `cache_hint`."""
    if salt is not None and not isinstance(salt, str):
        raise InvalidRequest(f"cache_salt must be a text, got {shown(salt)}.", "cache_salt")
    if hint is not None and (not isinstance(hint, str) or hint not in HINTS):
        raise InvalidRequest(
            f"cache_hint must be 'keep' or 'discard', got {shown(hint)}.", "cache_hint"
        )
