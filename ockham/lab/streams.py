"""Texts with a place where an answer begins, as streams of tokens to replay.

None of them was written by a model of ours. `code` and `prose` are passages that no training read;
the answers of `edit` and `documents` are those of the tasks. `chat` and `agents` are put together
from such passages as such traffic is: an answer that is asked for again with changes, and calls of
a tool whose arguments stand in the results before. `random` is what nothing can foretell.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ockham.core.errors import ConfigError
from ockham.lab.tasks import TASKS
from ockham.lab.tasks.texts import held_out
from ockham.text.tokenizer import Tokenizer

LONGEST = 2048
"""Tokens of a prompt and its answer, at most: what models of any kind have room for."""
MOST_ANSWERED = 192
"""Tokens of an answer that are replayed."""
_SPARE = 80
"""Tokens after an answer, so that a draft at its end is judged by what follows."""


@dataclass(frozen=True, slots=True)
class Stream:
    """`tokens[:prompt]` is what is asked; the rest is what is said, and `answered` of it is to be
    replayed."""

    tokens: list[int]
    prompt: int
    answered: int


def make_streams(kind: str, tokenizer: Tokenizer, seed: int, count: int) -> list[Stream]:
    """`count` streams of a kind; texts that are too long are left out. Raises ConfigError for an
    unknown kind."""
    if kind not in KINDS:
        raise ConfigError(f"there are no streams {kind!r}; there are {', '.join(KINDS)}.")
    rng = Random(f"streams {kind} {seed}")
    streams: list[Stream] = []
    for number in itertools.count():
        if len(streams) == count:
            break
        asked, said = KINDS[kind](rng, number)
        prompt = _ids(tokenizer, asked)
        answer = _ids(tokenizer, [said]) if isinstance(said, str) else said
        if kind == "random":
            answer = [rng.randrange(tokenizer.vocab_size) for _ in range(MOST_ANSWERED + _SPARE)]
        answered = min(MOST_ANSWERED, len(answer))
        filler = [rng.randrange(tokenizer.vocab_size) for _ in range(_SPARE)]
        if len(prompt) + answered <= LONGEST:
            streams.append(Stream(prompt + answer + filler, len(prompt), answered))
    return streams


def _ids(tokenizer: Tokenizer, parts: list[str]) -> list[int]:
    return [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]


Asked = tuple[list[str], str | list[int]]


def _code(rng: Random, number: int) -> Asked:
    passages = held_out()["code"]
    text = passages[number % len(passages)]
    cut = text.index("\n", len(text) // 3)
    return [text[:cut]], text[cut:]


def _prose(rng: Random, number: int) -> Asked:
    passages = held_out()["prose"]
    text = passages[number % len(passages)]
    cut = text.index("\n", len(text) // 3)
    return [text[:cut]], text[cut:]


def _edit(rng: Random, number: int) -> Asked:
    item = TASKS["edit"].item(rng.randrange(1 << 30), number, "test")
    return [item.messages[0]["content"], "\n\n"], item.answer


def _documents(rng: Random, number: int) -> Asked:
    """A question over passages, answered by two sentences of one of them and one of one's own."""
    passages = rng.sample(held_out()["prose"], 5)
    texts = [_sentences(passage)[:12] for passage in passages]
    asked = "\n\n".join(f"Document {i}: {' '.join(t)}" for i, t in enumerate(texts[:4]))
    chosen = rng.choice(texts[:4])
    start = rng.randrange(max(1, len(chosen) - 2))
    own = rng.choice(texts[4])
    said = f"{own} It says: {' '.join(chosen[start : start + 2])} {rng.choice(texts[4])}"
    return [f"{asked}\n\nWhat do the documents say of this?\n"], said


def _chat(rng: Random, number: int) -> Asked:
    """An answer, and the wish to have it again with changes: every fourth sentence is another."""
    one, other = rng.sample(held_out()["prose"], 2)
    first, instead = _sentences(one)[:16], _sentences(other)
    again = [
        instead[i % len(instead)] if i % 4 == 3 else sentence for i, sentence in enumerate(first)
    ]
    asked = f"Tell me about this.\n{' '.join(first)}\nSay it again, with the changes.\n"
    return [asked], " ".join(again)


def _agents(rng: Random, number: int) -> Asked:
    """Calls of a tool in JSON; what they name stands in the results before."""
    words = [word for word in rng.choice(held_out()["code"]).split() if word.isidentifier()]
    names = sorted({word for word in words if len(word) > 3})[:40]
    turns = []
    for step in range(6):
        name = rng.choice(names)
        call = {
            "tool": rng.choice(("read_file", "search", "edit_file")),
            "arguments": {"path": f"src/{rng.choice(names)}.py", "query": name, "limit": step},
        }
        found = ", ".join(f"src/{each}.py" for each in rng.sample(names, min(4, len(names))))
        turns.append(f"{json.dumps(call)}\nResult: {found}\n")
    return ["Call a tool.\n", *turns[:4]], "".join(turns[4:])


def _random(rng: Random, number: int) -> Asked:
    passages = held_out()["prose"]
    return [passages[number % len(passages)][:1200]], ""


def _sentences(text: str) -> list[str]:
    """The sentences of a passage that are long enough to say something."""
    return [f"{' '.join(part.split())}." for part in text.split(".") if len(part.split()) > 3]


KINDS: dict[str, Callable[[Random, int], Asked]] = {
    "chat": _chat,
    "documents": _documents,
    "edit": _edit,
    "code": _code,
    "agents": _agents,
    "prose": _prose,
    "random": _random,
}
