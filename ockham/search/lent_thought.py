"""A small model thinks, and the model itself answers."""

from __future__ import annotations

from concurrent.futures import Future
from typing import ClassVar

import msgspec

from ockham.core import asks
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import (
    Action,
    Branch,
    Continue,
    Finish,
    Problem,
    Write,
    Writer,
    Written,
)
from ockham.search.structures.pairs import MOST_TEXT, Pair, check_one, companion_of, fits

_NAME = "lent_thought"
MOST_TOKENS = 1 << 20


class LentThoughtOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `model` is the companion that thinks; None: the only one there is. It goes on with `begin` and
    stops at `end`, or after `tokens` tokens. The model goes on with the same text, and with `end`.
    If the companion says `pass_on`, the model thinks itself, from the prompt alone.
    """

    model: str | None = None
    begin: str = "<think>\n"
    end: str = "\n</think>\n\n"
    pass_on: str = "<STOP>"
    tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("begin", "end", "pass_on"):
            text = getattr(self, name)
            if len(text) > MOST_TEXT or (name != "begin" and not text.strip()):
                raise ConfigError(
                    f"{name} must have up to {MOST_TEXT} characters, and not be blank, got "
                    f"{len(text)}."
                )
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ConfigError(f"tokens must lie in [1, {MOST_TOKENS}], got {self.tokens}.")


@register("search", _NAME, exact=False, books=(_NAME,), paper="295")
class LentThought:
    """A companion writes the thought, and the model the answer that follows from it.

    ThoughtMani (Liu et al. 2025, arXiv:2504.13626, paper 295): a reasoning model that is given a
    thought skips most of its own, whoever wrote it. The companion's thought counts among
    `max_tokens`. `ockham techniques measure search/lent_thought` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("products",)
    name: ClassVar[str] = _NAME
    needs_companion: ClassVar[bool] = True
    Options: ClassVar[type[LentThoughtOptions]] = LentThoughtOptions
    Ask: ClassVar[type[asks.Ask]] = asks.ask_like(LentThoughtOptions, _NAME, check_one(_NAME))

    def __init__(self, options: LentThoughtOptions) -> None:
        self._options = options

    def begin(self, ask: asks.Ask, problem: Problem) -> Lent | None:
        """See `Search`."""
        if not problem.asked and not (fits(problem) and problem.text):
            return None
        ask.check_params(problem.params)
        if not problem.text:
            raise InvalidRequest(
                f"{_NAME} finds the end of a thought in text, and this request has none; load a "
                "tokenizer, or leave detokenization on.",
                _NAME,
            )
        settings = asks.merged(self._options, ask)
        who, companion = companion_of(settings.model, problem, _NAME)
        encode, stops = problem.encode, problem.stops
        begin, end = list(encode(settings.begin)), list(encode(settings.end))
        return Lent(settings, who, companion.open(), (begin, end), stops)


class Lent(Pair):
    """The thought of one request, and the answer."""

    def __init__(
        self,
        settings: LentThoughtOptions,
        who: str,
        writer: Writer,
        marks: tuple[list[int], list[int]],
        stops: frozenset[int],
    ) -> None:
        super().__init__()
        self._settings, self._who, self._writer = settings, who, writer
        self._begin, self._end = marks
        self._stops = stops
        self._coming: Future[Written] | None = None
        self._passed_on = False
        self._thought: int | None = None
        """How many tokens of the companion's text stand before the end of the thought."""
        self._lent = 0

    def go_on(self, main: Branch) -> list[Action | Finish]:
        """See `Pair`."""
        if main.finish_reason is not None:
            return [self._finish(main)]
        if self._coming is None:
            self._coming = self._writer.go_on(self._begin, self._settings.tokens, self._has_ended)
            self.await_(self._coming)
            return []
        if self._lent or not self._coming.done():
            return []
        written = self.taken(self._coming)
        self._writer.give_up()
        if written is None or self._passed_on:
            return [Continue(main.number)]
        thought = list(written.tokens)
        if self._thought is not None:
            thought = thought[: max(0, self._thought - len(self._begin))]
        elif written.finish_reason is not None and thought and thought[-1] in self._stops:
            thought = thought[:-1]
        tokens = [*self._begin, *thought, *self._end]
        self._lent = len(tokens)
        return [Write(main.number, tokens), Continue(main.number)]

    # -- inside --------------------------------------------------------------------------------

    def _has_ended(self, branch: Branch, start: int) -> bool:
        """Whether the companion has ended its thought, or does not want to think."""
        before = branch.characters(start) if start else 0
        said = branch.text[before:]
        if self._settings.pass_on in said:
            self._passed_on = True
            return True
        found = said.find(self._settings.end.strip())
        if found < 0:
            return False
        self._thought = branch.place(before + len(said[:found].rstrip()))
        return True

    def _finish(self, main: Branch) -> Finish:
        lent = min(self._lent, main.length)
        report = self.told(
            companion=self._who,
            tokens=main.length,
            tokens_lent=lent,
            passed_on=self._passed_on,
        )
        return Finish([main.number], [(0, lent)], report)
