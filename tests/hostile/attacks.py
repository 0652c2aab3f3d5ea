"""What is thrown at the server: hostile, heavy and broken requests, and what each is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
REFUSED = frozenset({400})
SERVED = frozenset({200})
EITHER = REFUSED | SERVED
"""Where a limit decides, and not what is being tested."""
LATER = frozenset({429, 503})
HUGE = 10**400


@dataclass(frozen=True)
class Attack:
    """Requests of one kind: where they go, how their bodies are made, what they are answered."""

    name: str
    path: str
    bodies: Callable[[], list[bytes]]
    right: frozenset[int] = REFUSED
    quick: bool = True
    """Whether it is part of the suite, and not only of `make hostile`."""


def _json(name: str, path: str, *bodies: Any, right: Any = REFUSED, quick: bool = True) -> Attack:
    """An attack whose bodies are small enough to be kept."""
    return Attack(name, path, lambda: [json.dumps(body).encode() for body in bodies], right, quick)


def _raw(
    name: str,
    path: str,
    make: Callable[[], bytes],
    right: frozenset[int] = REFUSED,
    quick: bool = True,
) -> Attack:
    """An attack of one large body, made when it is needed."""
    return Attack(name, path, lambda: [make()], right, quick)


def _chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **fields}


def _calls(arguments: str) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return _chat(messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])


def _many(count: int, entry: bytes) -> bytes:
    return b"[" + entry + (b"," + entry) * (count - 1) + b"]"


def _keys(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":"v"' % number for number in range(count)) + b"}"


def _object(**fields: bytes) -> bytes:
    """A JSON object whose values are JSON already."""
    return b"{" + b",".join(b'"%s":%s' % (k.encode(), v) for k, v in fields.items()) + b"}"


def _prompt(value: bytes, **fields: bytes) -> bytes:
    return _object(prompt=value, max_tokens=b"1", **fields)


def _chat_with(**fields: bytes) -> bytes:
    return _object(messages=b'[{"role":"user","content":"a"}]', max_tokens=b"1", **fields)


SLOW_GRAMMAR = (
    "start: T\nT: /(.|\\n)*a(.|\\n){%d}/ & /(.|\\n)*b(.|\\n){15}/ & ~/(.|\\n)*c(.|\\n){14}/"
)
IDS = list(range(4096)) * 4
_NUMBERS = (
    *("n", "top_k", "max_tokens", "min_tokens", "seed", "logprobs", "prompt_logprobs"),
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "best_of"),
)

SIZES = (
    _raw(
        "tool arguments of millions of lists",
        CHAT,
        lambda: json.dumps(_calls(_many(4_000_000, b"[]").decode())).encode(),
    ),
    _raw(
        "700,000 template variables", CHAT, lambda: _chat_with(chat_template_kwargs=_keys(700000))
    ),
    _raw("700,000 labels", CHAT, lambda: _chat_with(metadata=_keys(700_000))),
    _raw(
        "400,000 messages",
        CHAT,
        lambda: _object(messages=_many(400_000, b'{"role":"user","content":"a"}')),
    ),
    _raw("a million empty tools", CHAT, lambda: _chat_with(tools=_many(1_000_000, b"{}"))),
    _raw("a text of 15 MB", COMPLETIONS, lambda: _prompt(b'"' + b"a " * (7 << 20) + b'"')),
    _raw("15 MB of escapes", COMPLETIONS, lambda: _prompt(b'"' + b'\\"' * (7 << 20) + b'"')),
    _raw("15 MB of \\u", COMPLETIONS, lambda: _prompt(b'"' + b"\\u00e9" * (5 << 19) + b'"')),
    _raw("a name of 15 MB", COMPLETIONS, lambda: b'{"' + b"k" * (15 << 20) + b'":1}'),
    _raw(
        "a model of 15 MB",
        COMPLETIONS,
        lambda: _prompt(b'"a"', model=b'"' + b"m" * (15 << 20) + b'"'),
        frozenset({404}),
    ),
    _raw("five million numbers", COMPLETIONS, lambda: _prompt(_many(5_000_000, b"5"))),
    _raw("a million token ids", COMPLETIONS, lambda: _prompt(_many(999_000, b"500"))),
    _raw("a million lists in one another", COMPLETIONS, lambda: _prompt(b"[" * 1_000_000)),
    _json("a million brackets in the arguments", CHAT, _calls("[" * 990 + "]" * 990)),
    _raw("a body over the limit", COMPLETIONS, lambda: b" " * (17 << 20), frozenset({413})),
    _raw("15 MB that are no JSON", COMPLETIONS, lambda: b"\xff" * (15 << 20)),
    _raw("a schema of 15 MB", COMPLETIONS, lambda: _prompt(b'"a"', structured_outputs=_schema())),
)


def _schema() -> bytes:
    return _object(json=b'"{\\"a\\":' + _many(4_000_000, b"[]") + b'}"')


HEAVY = (
    _raw("a megabyte to tokenize", "/tokenize", lambda: _text(1_000_000, b"ab c1 "), SERVED),
    _raw("a megabyte of one letter", "/tokenize", lambda: _text(1_000_000, b"a"), SERVED),
    _raw("a megabyte of spaces", COMPLETIONS, lambda: _text(1_000_000, b" "), EITHER),
    _raw(
        "a megabyte of tokens to be spelled",
        "/tokenize",
        lambda: _object(prompt=b'"' + b"ab c1 " * 160_000 + b'"', return_token_strs=b"true"),
        SERVED,
    ),
    _raw("262,144 tokens to spell", "/detokenize", lambda: _ids(1 << 18), SERVED),
    _raw(
        "a thousand texts",
        COMPLETIONS,
        lambda: _prompt(_many(1000, b'"' + b"ab " * 300 + b'"')),
        SERVED | LATER,
        quick=False,
    ),
    _raw(
        "a thousand lists of tokens",
        COMPLETIONS,
        lambda: _prompt(_many(1000, _many(900, b"500"))),
        SERVED | LATER,
        quick=False,
    ),
    _raw(
        "4,000 messages",
        CHAT,
        lambda: _object(messages=_many(4000, b'{"role":"user","content":"a b c"}')),
        EITHER,
    ),
    _raw(
        "a long prompt with its likeliest tokens",
        COMPLETIONS,
        lambda: _prompt(_many(6000, b"500"), prompt_logprobs=b"20"),
        SERVED,
        quick=False,
    ),
    _raw(
        "a long prompt said again with its likeliest tokens, as a stream",
        COMPLETIONS,
        lambda: _prompt(_many(6000, b"500"), logprobs=b"20", echo=b"true", stream=b"true"),
        SERVED,
        quick=False,
    ),
    _json(
        "long lists",
        COMPLETIONS,
        {"prompt": "a", "max_tokens": 1, "allowed_token_ids": IDS, "stop_token_ids": IDS},
        {"prompt": "a", "max_tokens": 1, "logit_bias": {str(token): 1.0 for token in IDS}},
        {"prompt": "a", "max_tokens": 1, "stop": ["x" * 4000] * 64},
        right=SERVED,
    ),
    _json(
        "long lists for many prompts",
        COMPLETIONS,
        {"prompt": ["a"] * 500, "max_tokens": 1, "allowed_token_ids": IDS, "stop_token_ids": IDS},
        right=EITHER | LATER,
    ),
    _json(
        "thousands of forbidden words",
        COMPLETIONS,
        {"prompt": "a", "max_tokens": 1, "bad_words": ["word " * 200] * 10_000},
        {"prompt": "a", "max_tokens": 1, "bad_words": [f"w{n}" for n in range(16_000)]},
    ),
    _json(
        "as many forbidden words as are taken",
        COMPLETIONS,
        *([{"prompt": "a", "max_tokens": 8, "bad_words": [f"w{n}" * 5 for n in range(1024)]}] * 8),
        right=SERVED,
    ),
    _json(
        "a text cut at every letter",
        COMPLETIONS,
        {"prompt": "ab" * 400_000, "reuse": "chunk", "chunk_separator": "a"},
    ),
)


def _text(size: int, piece: bytes) -> bytes:
    return _object(prompt=b'"' + piece * (size // len(piece)) + b'"')


def _ids(count: int) -> bytes:
    return _object(tokens=_many(count, b"500"))


BROKEN = (
    _json(
        "ids that no integer holds",
        COMPLETIONS,
        {"prompt": "a", "max_tokens": 1, "stop_token_ids": [2**64 - 1]},
        {"prompt": "a", "max_tokens": 1, "stop_token_ids": [2**64]},
        {"prompt": "a", "max_tokens": 1, "allowed_token_ids": [2**64]},
        {"prompt": "a", "max_tokens": 1, "logit_bias": {str(2**64): 1}},
        {"prompt": [2**64]},
    ),
    _json(
        "numbers of 400 digits",
        COMPLETIONS,
        *({"prompt": "a", name: HUGE} for name in _NUMBERS),
        {"prompt": "a", "stop_token_ids": [HUGE]},
        {"prompt": [HUGE]},
    ),
    _json("numbers of 400 digits in a chat", CHAT, _chat(top_logprobs=HUGE), _chat(n=HUGE)),
    _json(
        "a huge integer in a schema",
        COMPLETIONS,
        {"prompt": "a", "max_tokens": 4, "structured_outputs": {"json": {"const": 2**64}}},
        {"prompt": "a", "max_tokens": 4, "structured_outputs": {"json": {"minimum": HUGE}}},
        right=EITHER,
    ),
    _json("more nodes than there can be", "/v1/cache", {"most_nodes": 2**64}),
    _json(
        "an echoed prompt of one token",
        COMPLETIONS,
        {"prompt": [5], "echo": True, "logprobs": 1, "max_tokens": 1},
        {"prompt": [[5], [6, 7]], "echo": True, "logprobs": 0, "max_tokens": 1, "n": 2},
        {"prompt": [5], "echo": True, "logprobs": 1, "max_tokens": 1, "stream": True},
        right=SERVED,
    ),
    _json("no field at all", COMPLETIONS, {}, [], None, 5, "a", {"nonsense": 1}),
)

GRAMMARS = (
    _json(
        "eight grammars that compile slowly",
        COMPLETIONS,
        *(
            {"prompt": "a", "max_tokens": 4, "structured_outputs": {"grammar": SLOW_GRAMMAR % size}}
            for size in range(16, 24)
        ),
        right=EITHER,
    ),
    _json(
        "a hundred honest schemas",
        COMPLETIONS,
        *(
            {
                "prompt": "a",
                "max_tokens": 4,
                "structured_outputs": {
                    "json": {
                        "type": "object",
                        "properties": {f"field{number}": {"type": "string", "maxLength": 5}},
                        "required": [f"field{number}"],
                    }
                },
            }
            for number in range(100)
        ),
        right=SERVED,
        quick=False,
    ),
    _json(
        "schemas and expressions that blow up",
        COMPLETIONS,
        *(
            {"prompt": "a", "max_tokens": 4, "structured_outputs": asked}
            for asked in (
                {"regex": "(a|aa)*" * 200},
                {"regex": "(" * 500 + "a" + ")*" * 500},
                {"regex": "(.{0,500}){0,500}"},
                {"json": {"type": "string", "pattern": "(x+x+)+y", "minLength": 10_000}},
                {"json": {"allOf": [{"$ref": "#"}]}},
                {"choice": ["x" * 2000] * 100},
            )
        ),
        right=EITHER,
    ),
)

ATTACKS = (*SIZES, *HEAVY, *BROKEN, *GRAMMARS)
