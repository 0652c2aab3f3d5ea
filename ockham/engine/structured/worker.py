"""A process that tries grammars out: `python -m ockham.engine.structured.worker`.

It reads frames of msgpack from its standard input and answers on its standard output: first a
`Vocabulary`, then any number of `StructuredOutputsParams`, each answered by an `Outcome`. Whoever
started it ends it if an answer takes too long, or reads that it has died: what a grammar does to
it, it does to nothing else. It ends with its standard input.
"""

from __future__ import annotations

import resource
import struct
import sys
from typing import BinaryIO

import msgspec

from ockham.core.errors import OckhamError
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured.grammar import Grammar, grammar_text
from ockham.engine.structured.vocabulary import GrammarVocabulary

LENGTH = struct.Struct("<I")
MOST_BYTES = 2 << 30
"""Of memory, beside what the vocabulary takes."""


class Vocabulary(msgspec.Struct):
    """A tokenizer as the `tokenizers` library's JSON, and for how many ids there are logits."""

    described: str
    size: int


class Outcome(msgspec.Struct, omit_defaults=True):
    """The grammar as llguidance reads it, or what is wrong with it."""

    text: str = ""
    wrong: str = ""


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    vocabulary = msgspec.msgpack.decode(_read(source), type=Vocabulary)
    try:
        known = GrammarVocabulary(vocabulary.described, vocabulary.size)
    except OckhamError as error:
        _write(sink, Outcome(wrong=str(error)))
        return
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_BYTES, used + MOST_BYTES))
    _write(sink, Outcome())
    while body := _read(source):
        asked = msgspec.msgpack.decode(body, type=StructuredOutputsParams)
        try:
            text = grammar_text(asked)
            Grammar(known, text)
            outcome = Outcome(text=text)
        except (ValueError, RecursionError, MemoryError) as error:
            outcome = Outcome(wrong=str(error) or type(error).__name__)
        _write(sink, outcome)


def _read(source: BinaryIO) -> bytes:
    head = source.read(LENGTH.size)
    return source.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def _write(sink: BinaryIO, outcome: Outcome) -> None:
    body = msgspec.msgpack.encode(outcome)
    sink.write(LENGTH.pack(len(body)) + body)
    sink.flush()


if __name__ == "__main__":
    main()
