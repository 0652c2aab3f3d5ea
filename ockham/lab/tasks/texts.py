"""`code` and `prose`: continuation, scored by perplexity on text that training never read."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ockham.core.errors import ConfigError
from ockham.lab.tasks.item import Count, Item, Split, level_of

_HELD_OUT = Path(__file__).with_name("held_out.json.gz")
"""Passages of the standard library of Python and its documentation (PSF-2.0), from files that the
recipe of the lab model holds out: {"code": [...], "prose": [...]}."""


@lru_cache(maxsize=1)
def held_out() -> dict[str, list[str]]:
    """Task -> its passages."""
    with gzip.open(_HELD_OUT, "rt", encoding="utf-8") as file:
        passages: dict[str, list[str]] = json.load(file)
    return passages


class _Texts:
    """Passages in a fixed order; the seed only decides where to begin."""

    name: ClassVar[str]
    summary: ClassVar[str]
    levels: ClassVar[tuple[str, ...]] = ("held out",)

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """See `Task`. There are no passages to train on here."""
        if split != "test":
            raise ConfigError(f"the passages of the task {self.name!r} are for tests only.")
        passages = held_out()[self.name]
        return Item(
            task=self.name,
            messages=(),
            text=passages[(seed + index) % len(passages)],
            answer="",
            max_tokens=0,
            level=level_of(self, index, level),
        )

    def score(self, item: Item, completion: str) -> float:
        """Raises ConfigError: a text is measured by its perplexity."""
        raise ConfigError(f"the task {self.name!r} is measured by perplexity, not by answers.")


class Code(_Texts):
    """Continue Python."""

    name: ClassVar[str] = "code"
    summary: ClassVar[str] = "perplexity of Python"


class Prose(_Texts):
    """Continue documentation."""

    name: ClassVar[str] = "prose"
    summary: ClassVar[str] = "perplexity of documentation"
