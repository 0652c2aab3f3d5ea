"""Threads that the model spawns and joins."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Finish, Problem
from ockham.search.structures.calls import Call, Said, Steps
from ockham.search.structures.programs import MOST_CALLS, MOST_LEVELS, Program

TEXT, NUMBER = "{text}", "{number}"
"""What stands for a thread's text or message in a setting, and for its number, from 1."""
MOST_MARKER = 1000
"""Characters of a marker, and of what is written."""
MOST_THREADS = 64
MOST_OF_ALL = 4096
"""Threads that a request may have at all."""
MOST_TOKENS = 1 << 20
PARALLEL = 4


class ThreadsOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    A text spawns threads by a list of texts, one for each: it stands between `spawn` and `close`,
    and `between` divides the texts. A thread goes on from there with `open`, where {text} is its
    text and {number} its number, until it writes `join`. What it said after its last `returns` is
    its message; all of it where `returns` is empty. For each thread `back` is written, where {text}
    is the message, then `go_on`, and the text that spawned them goes on.

    A list begins at most `threads`, a text has at most `spawns` lists, and threads spawn others
    down to `depth`. A thread has at most `tokens` tokens. `paths` begins so many threads at once at
    the prompt instead. At most `parallel` run at once.
    """

    spawn: str = "<spawn>"
    close: str = "</spawn>"
    between: str = "\n"
    open: str = "\n<thread>{text}\n"
    join: str = "</thread>"
    returns: str = ""
    back: str = "\n<result>{text}</result>"
    go_on: str = "\n"
    paths: int = 0
    threads: int = 8
    spawns: int = 8
    depth: int = 1
    tokens: int = 1024
    parallel: int = PARALLEL

    def __post_init__(self) -> None:
        said = _wrong(self) or _wrong_together(self)
        if said is not None:
            raise ConfigError(said)


class ThreadsAsk(Ask, kw_only=True, frozen=True):
    """As in `ThreadsOptions`; what is None is as the engine's options have it."""

    spawn: str | None = None
    close: str | None = None
    between: str | None = None
    open: str | None = None
    join: str | None = None
    returns: str | None = None
    back: str | None = None
    go_on: str | None = None
    paths: int | None = None
    threads: int | None = None
    spawns: int | None = None
    depth: int | None = None
    tokens: int | None = None
    parallel: int | None = None

    def __post_init__(self) -> None:
        said = _wrong(self)
        if said is not None:
            raise InvalidRequest(f"threads: {said}", "threads")

    def check_params(self, params: SamplingParams) -> None:
        if params.n != 1 or params.max_tokens == 0:
            raise InvalidRequest(
                "threads make one answer: they need n=1 and max_tokens above 0, got "
                f"n={params.n} and max_tokens={params.max_tokens}.",
                "threads",
            )
        if params.structured_outputs is not None:
            raise InvalidRequest(
                "threads write into the text, which a grammar does not allow; leave out "
                "response_format or structured_outputs, or threads.",
                "threads",
            )

    def sequences(self, choices: int) -> int:
        return (self.parallel or PARALLEL) + (self.depth or 1)


def _wrong(settings: ThreadsOptions | ThreadsAsk) -> str | None:
    """What of the settings cannot be by itself; None if they can."""
    for name in ("spawn", "close", "between", "join"):
        text = getattr(settings, name)
        if text is not None and not 1 <= len(text) <= MOST_MARKER:
            return f"{name} must have 1 to {MOST_MARKER} characters, got {len(text)}."
    for name in ("open", "returns", "back", "go_on"):
        text = getattr(settings, name)
        if text is not None and len(text) > MOST_MARKER:
            return f"{name} must have at most {MOST_MARKER} characters, got {len(text)}."
    if settings.back is not None and TEXT not in settings.back:
        return f"back must have {TEXT}, where a message is to stand, got {shown(settings.back)}."
    for name, least, most in (
        ("paths", 0, MOST_THREADS),
        ("threads", 1, MOST_THREADS),
        ("spawns", 1, MOST_THREADS),
        ("depth", 1, MOST_LEVELS - 1),
        ("tokens", 1, MOST_TOKENS),
        ("parallel", 1, MOST_THREADS),
    ):
        number = getattr(settings, name)
        if number is not None and not least <= number <= most:
            return f"{name} must lie in [{least}, {most}], got {number}."
    return None


def _wrong_together(settings: ThreadsOptions) -> str | None:
    """What of the settings cannot be beside the others; None if they can."""
    marks = {name: getattr(settings, name) for name in ("spawn", "close", "join")}
    for name, text in marks.items():
        for other, longer in marks.items():
            if name < other and (text in longer or longer in text):
                return (
                    f"{name} and {other} must be told apart, and one contains the other: "
                    f"{shown(text)} and {shown(longer)}."
                )
    if settings.spawns * (settings.threads + 1) >= MOST_CALLS:
        return (
            f"spawns times threads must be at most {MOST_CALLS - 1 - settings.spawns}, got "
            f"{settings.spawns} and {settings.threads}."
        )
    each = settings.threads * settings.spawns
    if max(settings.paths, 1) * each**settings.depth > MOST_OF_ALL:
        return (
            f"{settings.spawns} lists of {settings.threads} threads down to the depth of "
            f"{settings.depth} might be more than {MOST_OF_ALL} threads; lower one of these."
        )
    return None


@register("search", "threads", exact=False, books=("threads",))
class Threads:
    """A text spawns threads, which share its state and run at once, and goes on with what they say.

    Adaptive Parallel Reasoning (Pan et al. 2025, arXiv:2504.15466): a model that was trained for it
    hands parts of its work to threads, by text, and gets their messages, so that its own context
    stays short. With `paths` it is ParaThinker (Wen et al. 2025, arXiv:2509.04475): so many lines
    of thought from the prompt, and a summary that reads them all. Which threads there are, and what
    each begins with, follows from the text alone: the same seed gives the same answer, whatever
    ran beside it. It saves time, not work: threads decode in one step what a text decodes in many.
    `ockham techniques measure search/threads` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("steps",)
    name: ClassVar[str] = "threads"
    Options: ClassVar[type[ThreadsOptions]] = ThreadsOptions
    Ask: ClassVar[type[ThreadsAsk]] = ThreadsAsk

    def __init__(self, options: ThreadsOptions) -> None:
        self._options = options

    def begin(self, ask: ThreadsAsk, problem: Problem) -> Spawning | None:
        """See `Search`."""
        params, levels = problem.params, ask.depth or self._options.depth
        fits = params.n == 1 and params.max_tokens != 0 and params.structured_outputs is None
        if not problem.asked and not (fits and problem.text and problem.seats > levels):
            return None
        ask.check_params(params)
        if not problem.text:
            raise InvalidRequest(
                "threads are spawned by text, and this request has none; load a tokenizer, or "
                "leave detokenization on.",
                "threads",
            )
        try:
            settings = merged(self._options, ask)
        except ConfigError as error:
            raise InvalidRequest(f"threads: {error}", "threads") from None
        if ask.parallel is None:
            most = max(1, problem.seats - settings.depth)
            settings = msgspec.structs.replace(settings, parallel=min(settings.parallel, most))
        return Spawning(settings, problem)


class _Thread(msgspec.Struct, frozen=True):
    """What a thread came to: its message, the tokens of the longest chain of tokens that had to be
    drawn one after the other, and its latest branch."""

    message: str
    critical: int
    branch: int


class Spawning(Program):
    """The threads of one request."""

    def __init__(self, settings: ThreadsOptions, problem: Problem) -> None:
        super().__init__(problem, settings.parallel, settings.depth)
        self._settings = settings
        self._threads = self._lists = self._unjoined = self._refused = 0

    def steps(self) -> Generator[Any, list[Any], _Thread]:
        """See `Program`."""
        settings = self._settings
        if not settings.paths:
            main: _Thread = yield from self._thread(Call(first=True), 0)
            return main
        openings = [Call(text=self._opening("", i)) for i in range(1, settings.paths + 1)]
        self._threads += settings.paths
        found: list[_Thread] = yield [self._thread(call, 1) for call in openings]
        main = yield from self._thread(Call(text=self._returned(found)), 0)
        return _Thread(main.message, main.critical + _longest(found), main.branch)

    def answer(self, value: _Thread) -> Finish:
        """See `Program`."""
        report = {
            "threads": self._threads,
            "spawns": self._lists,
            "unjoined": self._unjoined,
            "refused": self._refused,
            "tokens_critical": value.critical,
            **self.told(),
        }
        return Finish([value.branch], (), report)

    # -- inside --------------------------------------------------------------------------------

    def _thread(self, call: Call, depth: int) -> Steps:
        """One text from its beginning to its end, with the threads that it spawns."""
        settings = self._settings
        joins = (settings.join,) if depth else ()
        left, lists, critical, text = settings.tokens, 0, 0, ""
        while True:
            spawns = lists < settings.spawns and depth < settings.depth
            until = (*joins, settings.close) if spawns else joins
            changes: dict[str, Any] = {"until": until, "keep": spawns}
            if depth:
                changes["tokens"] = left
            said: Said = (yield [replace(call, **changes)])[0]
            critical, left, text = critical + said.drawn, left - said.drawn, text + said.text
            if said.marker != settings.close or (depth and left < 1):
                self._unjoined += bool(depth) and said.marker != settings.join
                return _Thread(self._message(text), critical, said.branch)
            lists += 1
            texts = self._texts(said.text)
            found: list[_Thread] = []
            if texts:
                self._lists += 1
                self._threads += len(texts)
                calls = [
                    Call(text=self._opening(each, number), after=said)
                    for number, each in enumerate(texts, 1)
                ]
                found = yield [self._thread(each, depth + 1) for each in calls]
                critical += _longest(found)
            back = self._returned(found) if texts else ""
            text += said.marker + back
            call = Call(text=back, after=said, last=True)

    def _texts(self, said: str) -> list[str]:
        """The texts of the threads that a list begins; those beyond `threads` are refused."""
        settings = self._settings
        _, found, listed = said.rpartition(settings.spawn)
        if not found:
            return []
        texts = [each.strip() for each in listed.split(settings.between)]
        texts = [each for each in texts if each]
        self._refused += max(0, len(texts) - settings.threads)
        return texts[: settings.threads]

    def _opening(self, text: str, number: int) -> str:
        return self._settings.open.replace(NUMBER, str(number)).replace(TEXT, text)

    def _message(self, text: str) -> str:
        """What a thread gives back of what it said."""
        returns = self._settings.returns
        return (text.rpartition(returns)[2] if returns else text).strip()

    def _returned(self, threads: list[_Thread]) -> str:
        back = self._settings.back
        messages = (
            back.replace(NUMBER, str(number)).replace(TEXT, each.message)
            for number, each in enumerate(threads, 1)
        )
        return "".join(messages) + self._settings.go_on


def _longest(threads: list[_Thread]) -> int:
    """Of threads that run at once."""
    return max((each.critical for each in threads), default=0)
