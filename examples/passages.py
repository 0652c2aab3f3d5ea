"""Passages of text files, their vectors on the disk, and a search in them.

rag.py, rag_server.py, rag_recall.py and agent.py import it. It needs NumPy only: who makes the
vectors hands in a function.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""(texts, width), each row of length 1, so that a product of two rows is their cosine."""

ENDINGS = (".md", ".txt", ".rst")


@dataclass(frozen=True)
class Passage:
    source: str
    """The file, as a path from the directory of the documents."""
    text: str


def read_passages(directory: Path, most_characters: int) -> list[Passage]:
    """The passages of all text files below a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.suffix in ENDINGS)
    if not paths:
        raise SystemExit(f"{directory} has no files that end in {', '.join(ENDINGS)}.")
    return [
        Passage(path.relative_to(directory).as_posix(), text)
        for path in paths
        for text in cut(path.read_text("utf-8", errors="replace"), most_characters)
    ]


def cut(text: str, most_characters: int) -> list[str]:
    """A text in passages of whole paragraphs (whole lines, where a paragraph is too long).

    A passage ends where a heading begins, and starts with the headings above it: "it is off by
    default" says nothing to a search without them.
    """
    passages: list[str] = []
    headings: list[str] = []
    body = ""

    def finish() -> None:
        if body.strip():
            passages.append("\n".join([" > ".join(headings), body.strip()]).strip())

    for block in _blocks(text, most_characters):
        heading = re.match(r"(#+) +(.*)", block)
        if heading or len(body) + len(block) > most_characters:
            finish()
            body = ""
        if heading:
            headings = [*headings[: len(heading[1]) - 1], heading[2]]
            block = block[heading.end() :]
        body += f"{block}\n\n"
    finish()
    return passages


def _blocks(text: str, most_characters: int) -> Iterable[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if len(paragraph) <= most_characters:
            yield paragraph
            continue
        for line in paragraph.splitlines():
            for start in range(0, len(line), most_characters):
                yield line[start : start + most_characters]


class Index:
    """Passages, and the vector of each. Vectors are kept in a file and found again by what was
    embedded, so that only passages that are new or have changed are embedded."""

    def __init__(
        self, passages: list[Passage], embed: Callable[[list[str]], Vectors], kept: Path
    ) -> None:
        """`kept` is an .npz file of one model's vectors; it is written where anything changed."""
        self.passages = passages
        keys = [hashlib.sha256(each.text.encode()).hexdigest() for each in passages]
        found: dict[str, Vectors] = {}
        if kept.exists():
            with np.load(kept) as file:
                found = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))
        texts = dict(zip(keys, (each.text for each in passages), strict=True))
        new = [key for key in texts if key not in found]
        self.embedded = len(new)
        if new:
            found.update(zip(new, embed([texts[key] for key in new]), strict=True))
        self.vectors = np.stack([found[key] for key in keys])
        if new or found.keys() != texts.keys():
            whole = kept.with_suffix(".part.npz")  # a start that is killed leaves the old file
            np.savez(whole, keys=list(texts), vectors=np.stack([found[key] for key in texts]))
            whole.replace(kept)

    def search(self, query: NDArray[np.float32], count: int) -> list[tuple[float, Passage]]:
        """The `count` passages nearest to a query's vector, with their cosines, the best first."""
        cosines = self.vectors @ query
        return [(float(cosines[i]), self.passages[i]) for i in np.argsort(-cosines)[:count]]


def vectors_file(directory: Path, model: str) -> Path:
    """Where a model's vectors of the documents in a directory are kept: a hidden file in it."""
    name = re.sub(r"[^\w.-]+", "-", model).strip("-")[-80:]
    return directory / f".vectors-{name}.npz"
