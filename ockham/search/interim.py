"""A text that ends as soon as it keeps giving the same answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Drop,
    End,
    Finish,
    Fork,
    Problem,
    SearchState,
    Split,
    Write,
)
from ockham.search.structures.answers import BEHAVIOUR, NUMBER, Reader, check_extract

MOST_TEXT = 1000
"""Characters of a border, and of what is written."""
MOST_TOKENS = 1024
MAIN = 0
"""The branch that answers as it would without the search."""


class InterimOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `border` is a text before which an answer may be asked for: a paragraph, or a word by which the
    model begins to doubt. There a fork goes on with `write`, and gives an answer of up to `tokens`
    tokens, or of one line; `extract` says what of it is compared. When `agree` answers in a row are
    the same, or the model is as `sure` of one (the mean probability of its tokens), the text ends
    with that. `every` is how many tokens lie between two forks at least.
    """

    border: str = "\n\n"
    write: str = "\n\nAnswer:"
    tokens: int = 16
    extract: str = NUMBER
    agree: int = 2
    sure: float | None = 0.99
    every: int = 16

    def __post_init__(self) -> None:
        said = _wrong(self)
        if said is not None:
            raise ConfigError(said)


class InterimAsk(Ask, kw_only=True, frozen=True):
    """As in `InterimOptions`; what is None is as the engine's options have it."""

    border: str | None = None
    write: str | None = None
    tokens: int | None = None
    extract: str | None = None
    agree: int | None = None
    sure: float | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        said = _wrong(self)
        if said is not None:
            raise InvalidRequest(f"interim: {said}")

    def check_params(self, params: SamplingParams) -> None:
        if params.n != 1 or params.max_tokens == 0:
            raise InvalidRequest(
                "interim ends one text early: it needs n=1 and max_tokens above 0, got "
                f"n={params.n} and max_tokens={params.max_tokens}.",
                "interim",
            )
        if params.structured_outputs is not None:
            raise InvalidRequest(
                "interim writes into the text, which a grammar does not allow; leave out "
                "response_format or structured_outputs, or interim.",
                "interim",
            )

    def sequences(self, choices: int) -> int:
        return 2


def _wrong(settings: InterimOptions | InterimAsk) -> str | None:
    """What of the settings cannot be; None if they can."""
    for name in ("border", "write"):
        text = getattr(settings, name)
        if text is not None and not 1 <= len(text) <= MOST_TEXT:
            return f"{name} must have 1 to {MOST_TEXT} characters, got {len(text)}."
    for name, least in (("tokens", 1), ("agree", 1), ("every", 1)):
        number = getattr(settings, name)
        if number is not None and not least <= number <= MOST_TOKENS:
            return f"{name} must lie in [{least}, {MOST_TOKENS}], got {number}."
    if settings.sure is not None and not 0.0 < settings.sure <= 1.0:
        return f"sure must be above 0 and at most 1, got {settings.sure}."
    if settings.extract == BEHAVIOUR:
        return f'extract cannot be "{BEHAVIOUR}": an answer in between is no program.'
    return None if settings.extract is None else check_extract(settings.extract)


@register("search", "interim", exact=False, books=("interim",))
class Interim:
    """A text ends early when the answers that forks of it give in between are the same.

    Reasoning models go on long after they know the answer. At each border a fork that shares all
    state is made to answer at once; the text itself goes on meanwhile. Agreement of answers in a
    row is what TrimR (Lin et al. 2025, arXiv:2505.17155) and Dynasor (Fu et al. 2024,
    arXiv:2412.20993) look at, without a verifier; `sure` is the criterion of DEER (Yang et al.
    2025, arXiv:2504.15895). Where the borders are follows from the text alone, and forks count in
    their order: the same seed gives the same answer, whatever ran beside it. `ockham techniques
    measure search/interim` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "interim"
    Options: ClassVar[type[InterimOptions]] = InterimOptions
    Ask: ClassVar[type[InterimAsk]] = InterimAsk

    def __init__(self, options: InterimOptions) -> None:
        self._options = options

    def begin(self, ask: InterimAsk, problem: Problem) -> Thought | None:
        """See `Search`."""
        params = problem.params
        fits = params.n == 1 and params.max_tokens != 0 and params.structured_outputs is None
        if not problem.asked and not (fits and problem.text and problem.seats > 1):
            return None
        ask.check_params(params)
        if not problem.text:
            raise InvalidRequest(
                "interim reads answers from text, and this request has none; load a tokenizer, or "
                "leave detokenization on.",
                "interim",
            )
        settings = merged(self._options, ask)
        return Thought(settings, list(problem.encode(settings.write)), len(problem.prompt))


class Thought(SearchState):
    """The text of one request, and the answers that forks of it gave so far."""

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(self, settings: InterimOptions, written: list[int], prompt: int) -> None:
        self._settings, self._written, self._prompt = settings, written, prompt
        self._read = Reader(settings.extract)
        self._looked = 0
        """Characters of the text in which borders were looked for."""
        self._places: list[tuple[int, int]] = []
        """Where forks begin that have not begun: tokens, and characters."""
        self._forks = 0
        self._last_place = 0
        self._trial: tuple[int, int, int] | None = None
        """The fork that runs: its number, and the tokens and characters before its answer."""
        self._answers: list[str | None] = []
        self._alike = 0
        self._begun_at = 0
        """How many tokens of the text the latest fork began with."""
        self._spent = 0
        """Tokens of forks that did not end the text."""
        self._shared = 0
        """Tokens of the text that forks began with."""

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return 2

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        main, actions = branches[MAIN], list[Action | Finish]()
        self._look(main)
        if self._trial is not None:
            number, tokens, characters = self._trial
            fork = branches[number]
            end = self._end(fork, tokens, characters)
            if end is None:
                return actions
            if end < fork.length:  # a step that verified drafts has brought more
                self._trial = (number + 1, tokens, characters)
                return [*actions, Split(number, [number + 1], end), End(number + 1)]
            if fork.finish_reason is None:
                return [*actions, End(number)]
            self._trial = None
            if self._decides(fork, tokens, characters):
                return [Drop(MAIN), self._finish(fork, main)]
            self._spent += fork.length - tokens + len(self._written)
            actions.append(Drop(number))
        if self._places:
            place, characters = self._places.pop(0)
            self._begun_at = place
            self._forks += 1
            self._shared += place
            answer = place + len(self._written), characters + len(self._settings.write)
            number = 2 * self._forks - 1  # the next one is kept for what is cut off
            self._trial = (number, *answer)
            return [*actions, Fork(MAIN, number, place), Write(number, self._written)]
        if main.finish_reason is not None:
            return [*actions, self._finish(main, main)]
        return actions

    # -- inside --------------------------------------------------------------------------------

    def _look(self, main: Branch) -> None:
        """Note the borders that have come up."""
        border, text = self._settings.border, main.text
        while (found := text.find(border, self._looked)) >= 0:
            self._looked = found + len(border)
            place = main.place(found)
            if place - self._last_place >= self._settings.every:
                self._last_place = place
                self._places.append((place, found))
        self._looked = max(self._looked, len(text) - len(border) + 1)

    def _end(self, fork: Branch, tokens: int, characters: int) -> int | None:
        """After how many tokens the answer of a fork ends; None if it goes on."""
        said = fork.text[characters:]
        found = said.find("\n", len(said) - len(said.lstrip()))
        lasts = min(fork.length, tokens + self._settings.tokens)
        if found >= 0:
            places = range(tokens + 1, lasts)
            wanted = characters + found + 1
            return next((end for end in places if fork.characters(end) >= wanted), lasts)
        whole = fork.finish_reason is not None or lasts == tokens + self._settings.tokens
        return lasts if whole else None

    def _decides(self, fork: Branch, tokens: int, characters: int) -> bool:
        """Whether the answer of a fork is the last that is needed."""
        answer = self._read(fork.text[characters:])
        last = self._answers[-1] if self._answers else None
        self._answers.append(answer)
        if answer is None:
            self._alike = 0
            return False
        self._alike = self._alike + 1 if answer == last else 1
        if self._alike >= self._settings.agree:
            return True
        sure, logprobs = self._settings.sure, fork.scores.logprobs[tokens:]
        return sure is not None and math.exp(sum(logprobs) / max(1, len(logprobs))) >= sure

    def _finish(self, winner: Branch, main: Branch) -> Finish:
        early = winner is not main
        report: dict[str, Any] = {
            "answers": list(self._answers),
            "stopped": "text" if not early else "agree" if self._enough else "sure",
            "branches": 1 + self._forks,
            "tokens": winner.length,
            "tokens_made": main.length + self._spent + self._own(winner),
            "tokens_shared": self._prompt * self._forks + self._shared,
        }
        return Finish([winner.number], (), report)

    def _own(self, winner: Branch) -> int:
        """Tokens of the branch that answers which the text itself did not make."""
        return 0 if winner.number == MAIN else winner.length - self._begun_at

    @property
    def _enough(self) -> bool:
        return self._alike >= self._settings.agree
