"""Texts that were indexed for drafting: what `ockham draft index` writes.

A directory holds `draft.json`, which names the method "corpus" and the tokenizer, `tokens.npy`,
int32: the texts one after another, with -1 after each; and `order.npy`, int32: all places of these,
sorted by the tokens that stand from there on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.errors import ModelError
from ockham.core.owned_files import USUAL_FILE, write_own
from ockham.model.checkpoint.draft_files import CONFIG_FILE, VERSION, read_config

METHOD = "corpus"
TOKENS_FILE, ORDER_FILE = "tokens.npy", "order.npy"
END = -1
"""After each text."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Indexed texts. `tokenizer` is the digest of what their tokens mean, "" if not known."""

    tokens: Ints
    order: Ints
    vocab_size: int
    tokenizer: str


def write_corpus(directory: Path, corpus: Corpus) -> None:
    """Write a new directory. Its `draft.json` comes last, so that half of it is no drafter.
    Raises ModelError if it exists."""
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise ModelError(f"{directory} cannot be made: {error.strerror}.") from error
    np.save(directory / TOKENS_FILE, corpus.tokens)
    np.save(directory / ORDER_FILE, corpus.order)
    facts = {
        "method": METHOD,
        "vocab_size": corpus.vocab_size,
        "tokenizer": corpus.tokenizer,
        "version": VERSION,
    }
    write_own(directory / CONFIG_FILE, (json.dumps(facts, indent=2) + "\n").encode(), USUAL_FILE)


def read_corpus(directory: Path) -> Corpus:
    """Read what `ockham draft index` wrote. Raises ModelError if a file is missing or damaged, or
    is something else."""
    if not all((directory / name).is_file() for name in (CONFIG_FILE, TOKENS_FILE, ORDER_FILE)):
        raise ModelError(
            f"{directory} holds no indexed texts; name a directory that `ockham draft index` wrote."
        )
    facts = read_config(directory / CONFIG_FILE)
    vocabulary, tokenizer = facts.get("vocab_size"), facts.get("tokenizer")
    if facts.get("method") != METHOD or type(vocabulary) is not int or type(tokenizer) is not str:
        raise ModelError(
            f"{directory} holds no indexed texts (its method is {facts.get('method')!r}); name a "
            "directory that `ockham draft index` wrote."
        )
    tokens, order = _array(directory / TOKENS_FILE), _array(directory / ORDER_FILE)
    if (
        len(tokens) != len(order)
        or not len(tokens)
        or not END <= tokens.min() <= tokens.max() < vocabulary
        or not _orders(order, tokens)
    ):
        raise ModelError(
            f"the texts of {directory} and their order do not belong together: index them anew."
        )
    return Corpus(tokens, order, vocabulary, tokenizer)


def _orders(order: Ints, tokens: Ints) -> bool:
    """Whether these are all places of the texts, in the order of the tokens that stand there."""
    if not 0 <= order.min() <= order.max() < len(tokens):
        return False
    seen = np.zeros(len(tokens), np.bool_)
    seen[order] = True
    return bool(seen.all() and (np.diff(tokens[order]) >= 0).all() and tokens.max() >= 0)


def _array(path: Path) -> Ints:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise ModelError(f"{path} cannot be read, or is cut short: index the texts anew.") from None
    if values.dtype != np.int32 or values.ndim != 1:
        raise ModelError(f"{path} holds no list of 32-bit integers.")
    return np.ascontiguousarray(values)
