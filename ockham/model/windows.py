"""Text in windows of equal length, and steps that run some of them through a whole program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError
from ockham.core.rows import build_step, chains
from ockham.core.step import Step, Tables
from ockham.kernels.base import GroupLayout
from ockham.model.program.description import ModelDescription

PAGE_TOKENS = 16


def read_text(path: Path) -> tuple[str, str]:
    """The text of a file, and the digest of its bytes. A .jsonl file has an object with "text" in
    each line. Raises ConfigError if it cannot be read."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the text {path} cannot be read: {error}.") from None
    if path.suffix == ".jsonl":
        text = "\n".join(
            _text_of(line, f"line {number} of {path}")
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        )
    return text, hashlib.blake2b(raw, digest_size=16).hexdigest()


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ConfigError(f'{where} is no JSON object with a string "text".')
    return text


def cut(tokens: Sequence[int], length: int, most: int) -> Ints:
    """The first windows, (at most `most`, length); what is left over is not used. Text that does
    not fill one window makes a shorter one. Raises ConfigError if there are fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ConfigError(f"the text has {len(tokens)} tokens; at least 2 are needed.")
    length = min(length, len(tokens))
    count = min(most, len(tokens) // length)
    return np.array(tokens[: count * length], np.int32).reshape(count, length)


def layouts_for(
    description: ModelDescription, windows: int, length: int, state_dtype: str
) -> list[GroupLayout]:
    """State for so many windows at once."""
    pages = windows * -(-length // PAGE_TOKENS)
    return [
        GroupLayout(group.layers, group.spec(state_dtype, PAGE_TOKENS), pages, PAGE_TOKENS)
        for group in description.groups
    ]


def window_step(ids: Ints, groups: int, logits: bool = True) -> Step:
    """A step that computes windows (count, length) from their first tokens on, each on pages of its
    own; all rows' logits are wanted, or none."""
    count, length = ids.shape
    pages = -(-length // PAGE_TOKENS)
    table = Tables(
        np.arange(count * pages, dtype=np.int32), np.arange(count + 1, dtype=np.int32) * pages
    )
    rows = chains(np.zeros(count, np.int32), np.full(count, length, np.int32))
    return build_step(
        np.ascontiguousarray(ids.reshape(-1), np.int32),
        rows.places,
        rows.owner,
        (table,) * groups,
        PAGE_TOKENS,
        wants_logits=np.arange(ids.size if logits else 0, dtype=np.int32),
    )
