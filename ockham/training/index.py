"""Text made ready to be drafted from: `ockham draft index`. It needs no PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.draft.structures.text_index import order_of
from ockham.model.checkpoint.corpus_files import END, Corpus, write_corpus
from ockham.model.hub import resolve
from ockham.text.tokenizer import load_tokenizer
from ockham.training.documents import texts_of

MOST_TOKENS = 1 << 30


def index_texts(
    target: str, out: Path, data: Sequence[Path], tell: Callable[[str], None]
) -> Corpus:
    """Index the texts of files and of all files below directories with the tokenizer of `target`.

    Files of a directory that are no UTF-8 text, or whose name begins with a dot, are left out, and
    said to be. Raises ConfigError if `out` exists, a file cannot be read, or there is no text.
    """
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists; name another directory, or remove it.")
    path = resolve(target)
    if path.is_dir() and not (path / "tokenizer.json").exists():
        raise ModelError(
            f"{target} has no tokenizer.json, and texts are indexed by their tokens; put the "
            "tokenizer's files into its directory."
        )
    tokenizer = load_tokenizer(EngineConfig(model=target), path)
    if tokenizer is None:
        raise ConfigError(f"{target} has no tokenizer, and texts are indexed by their tokens.")
    parts: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
    total = texts = 0
    for text in _texts(data, tell):
        ids = tokenizer.encode(text, add_special_tokens=False)
        parts.append(np.array([*ids, END], np.int32))
        total, texts = total + len(ids), texts + 1
        if total > MOST_TOKENS:
            raise ConfigError(f"the texts have more than {MOST_TOKENS} tokens; index fewer.")
    if not total:
        raise ConfigError(f"{', '.join(map(str, data))} hold no text.")
    tokens = np.concatenate(parts)
    tell(f"{texts:,} texts, {total:,} tokens")
    corpus = Corpus(tokens, order_of(tokens), tokenizer.vocab_size, tokenizer.digest)
    write_corpus(out, corpus)
    return corpus


def _texts(data: Sequence[Path], tell: Callable[[str], None]) -> Iterator[str]:
    for path in data:
        if not path.is_dir():
            yield from texts_of(path)
            continue
        left_out = 0
        for file in sorted(_files(path)):
            try:
                yield from texts_of(file)
            except ConfigError:
                left_out += 1
        if left_out:
            tell(f"{path}: {left_out:,} files are no text and were left out")


def _files(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))
