"""Grammars and a tokenizer so small that tiny random models follow them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.structured.compiler import Grammars
from ockham.text.tokenizer import Tokenizer
from tests.helpers.tiny_tokenizers import save

VOCABULARY = 97
TEXT = (
    '{"identifier": 12, "answer": "yes", "total": 3.45, "identifier": "negative", "kind": true}'
    " and the answers are neither here nor there, in the end: false, null, identity, 678 times 90"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer"},
        "answer": {"enum": ["negative", "neither"]},
        "total": {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
    },
    "required": ["identifier", "answer", "total"],
    "additionalProperties": False,
}
GRAMMARS = (
    StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True),
    StructuredOutputsParams(json=SCHEMA),
    StructuredOutputsParams(choice=["identifier", "identity", "total"]),
    StructuredOutputsParams(regex="(answer: [a-n]{1,6}, )*end"),
    StructuredOutputsParams(grammar='root ::= "total" (" " [0-9]+)+ "." | "answer" root'),
)


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """Of 97 tokens; `</s>` is number 1."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=[c for c in letters if c in TEXT + "0123456789" or c in "fghjlm"],
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    assert backend.get_vocab_size() == VOCABULARY
    return Tokenizer(save(backend, Path(tempfile.mkdtemp()), unk_token=None))


@functools.cache
def tiny_grammars() -> Grammars:
    """Compiled grammars that all engines of a test run share."""
    made = Grammars(lambda: tiny_tokenizer().described, VOCABULARY)
    made.close = lambda: None  # one of these engines must not close it for the others
    return made


def with_grammars(engine: Engine) -> Engine:
    """The engine, which was loaded without a tokenizer, with the tiny one."""
    engine.tokenizer, engine.grammars = tiny_tokenizer(), tiny_grammars()
    return engine
