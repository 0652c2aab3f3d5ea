"""Token streams, and the windows that training and evaluation read from them.

Which window a row of a batch reads is a pure function of (seed, phase, row), so a run is resumed
from its step number alone.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from recipes.lab.corpus import SOURCES, Document, corpus_digest
from recipes.lab.tokenizer import END_OF_TEXT

Tokens = npt.NDArray[np.uint16]

# The sources of twenty consecutive rows. Tests are the most plentiful Python, and make the model
# answer everything with an assertion; so a run ends without them.
MIXTURES = {
    "broad": {"code": 10, "tests": 5, "prose": 2, "chat": 3},
    "library": {"code": 15, "tests": 0, "prose": 2, "chat": 3},
    "distilled": {"code": 8, "prose": 2, "chat": 2, "sampled": 4, "greedy": 1, "answers": 3},
}
OUTPUTS = ("sampled", "greedy", "answers")
"""What the lab model wrote: see outputs.py."""


@dataclass(frozen=True)
class Streams:
    """For each source, its documents one after the other, each ended by the end-of-text token."""

    train: dict[str, Tokens]
    held_out: dict[str, Tokens]
    corpus_sha256: str


def build_streams(documents: list[Document], tokenizer: Tokenizer, cache: Path) -> Streams:
    """Encode the corpus, or read it from ``cache`` where the same corpus was encoded before."""
    corpus_sha256 = corpus_digest(documents)
    vocabulary = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    path = cache / f"tokens-{corpus_sha256[:16]}-{vocabulary[:16]}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        arrays: dict[str, Any] = _encode(documents, tokenizer)
        np.savez(partial, **arrays)
        os.replace(partial, path)
    with np.load(path) as stored:
        return Streams(
            {source: stored[f"train-{source}"] for source in SOURCES},
            {source: stored[f"held_out-{source}"] for source in SOURCES},
            corpus_sha256,
        )


def _encode(documents: list[Document], tokenizer: Tokenizer) -> dict[str, Tokens]:
    end: Any = tokenizer.token_to_id(END_OF_TEXT)
    streams: dict[str, list[int]] = defaultdict(list)
    for document in documents:
        split = "held_out" if document.held_out else "train"
        ids = tokenizer.encode(document.text).ids
        streams[f"{split}-{document.source}"] += [*ids, end]
    return {
        f"{split}-{source}": np.array(streams[f"{split}-{source}"], dtype=np.uint16)
        for split in ("train", "held_out")
        for source in SOURCES
    }


class Batches:
    """The batches of one phase: which windows each step reads."""

    def __init__(
        self,
        streams: dict[str, Tokens],
        seed: int,
        phase: int,
        context: int,
        mixture: str = "broad",
    ) -> None:
        self._streams = {
            source: stream for source, stream in streams.items() if len(stream) > 2 * context
        }
        if not self._streams:
            raise ValueError(f"No source has enough text for windows of {context} tokens.")
        self._seed, self._phase, self._context = seed, phase, context
        shares = MIXTURES[mixture]
        slots = [source for source in self._streams for _ in range(shares.get(source, 0))]
        order = np.random.default_rng([seed, phase]).permutation(len(slots))
        self._slots = [slots[i] for i in order]
        self._permutation = lru_cache(maxsize=2 * len(SOURCES))(self._draw_permutation)

    def batch(self, step: int, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Of the phase's step number ``step``: token ids (rows, context + 1), and for each but the
        first the weight of its loss, which is 1."""
        windows = [self.window(row) for row in range(step * rows, (step + 1) * rows)]
        return np.stack(windows).astype(np.int64), np.ones((rows, self._context), np.float32)

    def window(self, row: int) -> Tokens:
        """The (context + 1) tokens of a row.

        Windows of a source are read in a shuffled order, each once before any is read again."""
        cycle, slot = divmod(row, len(self._slots))
        source = self._slots[slot]
        drawn = cycle * self._slots.count(source) + self._slots[:slot].count(source)
        stream = self._streams[source]
        windows = (len(stream) - 1) // self._context - 1
        epoch, i = divmod(drawn, windows)
        offset, order = self._permutation(source, epoch, windows)
        start = offset + int(order[i]) * self._context
        return stream[start : start + self._context + 1]

    def _draw_permutation(
        self, source: str, epoch: int, windows: int
    ) -> tuple[int, npt.NDArray[np.int64]]:
        number = (*SOURCES, *OUTPUTS).index(source)
        generator = np.random.default_rng([self._seed, self._phase, number, epoch])
        return int(generator.integers(self._context)), generator.permutation(windows)
