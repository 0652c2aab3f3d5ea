"""What the process that tries grammars out does: see `ockham.core.worker_process`.

Its memory and time are limited; what a grammar does to it, it does to nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.worker_process import Service
from ockham.engine.structured.grammar import Grammar, grammar_text
from ockham.engine.structured.vocabulary import GrammarVocabulary

_STACK_BYTES = 4 << 20
"""Half of what the engine's threads have: what fits here fits there."""


class Vocabulary(msgspec.Struct):
    """A tokenizer as the `tokenizers` library's JSON, and for how many ids there are logits."""

    described: str
    size: int


class Outcome(msgspec.Struct, omit_defaults=True):
    """The grammar as llguidance reads it, or what is wrong with it."""

    text: str = ""
    wrong: str = ""


def _begin(vocabulary: Vocabulary) -> Callable[[StructuredOutputsParams], Outcome]:
    known = GrammarVocabulary(vocabulary.described, vocabulary.size)
    threading.stack_size(_STACK_BYTES)
    thread = ThreadPoolExecutor(1)

    def try_out(asked: StructuredOutputsParams) -> Outcome:
        try:
            text = grammar_text(asked)
            Grammar(known, text)
        except (ValueError, RecursionError) as error:
            return Outcome(wrong=str(error) or type(error).__name__)
        return Outcome(text=text)

    return lambda asked: thread.submit(try_out, asked).result()


SERVICE = Service(setup=Vocabulary, question=StructuredOutputsParams, begin=_begin)
