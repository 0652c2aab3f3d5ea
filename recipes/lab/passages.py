"""The passages of the tasks `code` and `prose`: text that the recipe holds out of training."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from recipes.lab.corpus import Document

PASSAGE_CHARS = 3_000
"""About 1,000 tokens of code."""
_PASSAGES_PER_SOURCE = 100


def passages(documents: list[Document], source: str) -> list[str]:
    """Beginnings of lines to ends of lines; spread evenly over the files that are held out."""
    every: list[str] = []
    for document in documents:
        if not document.held_out or document.source != source:
            continue
        passage = ""
        for line in document.text.splitlines(keepends=True):
            passage += line
            if len(passage) >= PASSAGE_CHARS:
                every.append(passage)
                passage = ""
    wanted = min(_PASSAGES_PER_SOURCE, len(every))
    return [every[i * len(every) // wanted] for i in range(wanted)]


def write_passages(documents: list[Document], path: Path) -> None:
    """Write {"code": [...], "prose": [...]}, compressed, the same bytes each time."""
    fields = {source: passages(documents, source) for source in ("code", "prose")}
    path.write_bytes(gzip.compress(json.dumps(fields).encode(), mtime=0))
