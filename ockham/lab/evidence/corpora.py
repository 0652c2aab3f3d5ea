"""Evidence for drafts from texts that were indexed before."""

from __future__ import annotations

import sysconfig
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ockham.core.errors import ConfigError
from ockham.draft.structures.text_index import order_of
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench, greedy
from ockham.lab.evidence.drafts import ALWAYS, LOOKAHEAD, compared
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.texts import held_out
from ockham.model.checkpoint.corpus_files import END, Corpus, write_corpus

PROMPTS, BEFORE, ANSWERED = 6, 300, 96
_MOST_FILES = 400
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@evidence("drafter", "corpus")
def corpus(bench: Bench) -> Row:
    """Code that goes on, drafted from Python's standard library without the files it is from."""
    engine = bench.engine()
    with TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        prompts = _prompts(bench, engine)
        write_corpus(index, _indexed(engine, prompts))
        what = f"{PROMPTS} passages of code, one after the other, {ANSWERED} tokens each"
        return compared(
            bench,
            "corpus",
            LOOKAHEAD,
            greedy(ANSWERED),
            what,
            prompts,
            model=str(index),
            **ALWAYS,
        )


def _prompts(bench: Bench, engine: Engine) -> list[list[int]]:
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [BEFORE] * PROMPTS)
    texts = held_out()["code"][:PROMPTS]
    return [engine.tokenizer.encode(text, add_special_tokens=False)[:BEFORE] for text in texts]


def _indexed(engine: Engine, prompts: list[list[int]]) -> Corpus:
    """The library; where there is no tokenizer, the prompts and what comes after them at random."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        tokens = np.array([t for prompt in prompts for t in [*prompt, END]], np.int32)
        return Corpus(tokens, order_of(tokens), engine.vocabulary, "")
    parts = [
        np.array([*tokenizer.encode(text, add_special_tokens=False), END], np.int32)
        for text in library()
    ]
    tokens = np.concatenate(parts)
    return Corpus(tokens, order_of(tokens), tokenizer.vocab_size, tokenizer.digest)


@lru_cache(maxsize=1)
def library() -> tuple[str, ...]:
    """Modules of Python's standard library on this machine, but for those that passages which no
    training read are from. Raises ConfigError if there is none."""
    known = [passage.strip()[:200] for passage in held_out()["code"]]
    root = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED & set(path.relative_to(root).parts) or len(found) == _MOST_FILES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if not any(passage in text for passage in known):
            found.append(text)
    if not found:
        raise ConfigError(f"{root} has no modules to index: Python's library is packed here.")
    return tuple(found)
