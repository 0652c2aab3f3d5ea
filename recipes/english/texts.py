"""The paragraphs of the English tasks: prose of Python's documentation and of its docstrings."""

from __future__ import annotations

import ast
import gzip
import json
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PARAGRAPHS = 1_200
SHORTEST, LONGEST = 160, 700
"""Characters of a paragraph."""
_LISTS = ("   ", "* ", "=", "*", "-", "^", "[", ">>>")
"""What lines of code, lists and headings begin with."""
_MARKS, _MOST_MARKS = "`_(){}[]<>=\\/|*@#", 6
_MOST_QUOTES = 8
_NOTES = ("::", "New in version", "Changed in", "See also")
_LEFT_OUT = ("test", "site-packages", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo")


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a text that are prose, without line breaks."""
    for paragraph in re.split(r"\n\s*\n", text):
        if any(line.startswith(_LISTS) for line in paragraph.split("\n")):
            continue
        flat = " ".join(paragraph.split())
        if (
            SHORTEST <= len(flat) <= LONGEST
            and re.match(r"[A-Z][a-z]*[ ,]", flat)
            and flat.endswith(".")
            and sum(character in _MARKS for character in flat) <= _MOST_MARKS
            and flat.count('"') <= _MOST_QUOTES
            and not any(note in flat for note in _NOTES)
        ):
            yield flat


def _docstrings(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        if any(part in str(path.relative_to(library)) for part in _LEFT_OUT):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def write_texts(path: Path) -> int:
    """Write the paragraphs of the Python that runs this, each once, spread evenly over all that
    there are: the same bytes each time. How many there are."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [*pydoc_data.topics.topics.values(), *_docstrings(library)]
    every = list(dict.fromkeys(found for text in texts for found in prose(text)))
    wanted = min(PARAGRAPHS, len(every))
    chosen = [every[number * len(every) // wanted] for number in range(wanted)]
    path.write_bytes(gzip.compress(json.dumps(chosen).encode(), mtime=0))
    return wanted
