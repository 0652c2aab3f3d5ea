"""Programs of operators over texts: generate, combine, extend, verify, vote, fuse."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Any, ClassVar, Literal

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Finish, Problem
from ockham.search.structures.answers import NUMBER, Reader
from ockham.search.structures.calls import Call, Said, Steps
from ockham.search.structures.programs import Program
from ockham.search.structures.scorers import CHECKER, LIKELIHOOD, scorer_of
from ockham.search.structures.stages import (
    TEXTS,
    Best,
    Combine,
    Extend,
    Fuse,
    Generate,
    Stage,
    Sure,
    Verify,
    Vote,
    Writing,
    wrong_extract,
    wrong_stages,
)
from ockham.search.structures.verdict import Verdict, first_tokens

USER, ASSISTANT = "{user}", "{assistant}"
"""What stands for the marks that end a turn and begin one of the user, or of the assistant."""
PARALLEL, MOST_PARALLEL = 4, 64
SEATS_BESIDE = 2
"""One branch keeps the prompt's state, and one gives way to the next."""

Preset = Literal["plansearch", "hybrid"]
PRESETS: Mapping[str, tuple[Stage, ...]] = {
    "plansearch": (
        Generate(samples=3, write="One observation that helps here: ", until="\n", tokens=64),
        Combine(
            write=f"Observations:\n{TEXTS}\nFrom these it follows that ",
            until="\n",
            tokens=64,
            most=6,
        ),
        Extend(write="\n\nThe plan: ", until="\n", tokens=64),
        Extend(write="\n\nThe solution by this plan:\n"),
        Vote(),
    ),
    "hybrid": (Generate(), Sure(), Generate(samples=7, add=True), Vote()),
}
"""Pipelines that have a name."""


class PipelineOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `stages` are objects with an operator as `op` and its settings; without them `preset` names
    them: "plansearch" or "hybrid". `extract` says what of a text is its answer, for votes and the
    report. At most `parallel` texts are written at once.
    """

    stages: Sequence[Stage] = ()
    preset: Preset = "hybrid"
    extract: str = NUMBER
    parallel: int = PARALLEL

    def __post_init__(self) -> None:
        said = _wrong(self)
        if said is not None:
            raise ConfigError(said)

    @property
    def chosen(self) -> Sequence[Stage]:
        """The stages."""
        return self.stages or PRESETS[self.preset]


class PipelineAsk(Ask, kw_only=True, frozen=True):
    """As in `PipelineOptions`; what is None is as the engine's options have it."""

    stages: list[Stage] | None = None
    preset: Preset | None = None
    extract: str | None = None
    parallel: int | None = None

    def __post_init__(self) -> None:
        said = _wrong(self)
        if self.stages is not None and self.preset is not None:
            said = "stages and preset are two pipelines; leave one out."
        if said is not None:
            raise InvalidRequest(f"pipeline: {said}", "pipeline")

    def check_params(self, params: SamplingParams) -> None:
        if params.n != 1 or params.max_tokens == 0 or params.logprobs is not None:
            raise InvalidRequest(
                "a pipeline has one answer, which may be no whole branch: it needs n=1, max_tokens "
                f"above 0 and no logprobs, got n={params.n}, max_tokens={params.max_tokens} and "
                f"logprobs={params.logprobs}.",
                "pipeline",
            )
        if params.structured_outputs is not None:
            raise InvalidRequest(
                "a pipeline writes into texts, which a grammar does not allow; leave out "
                "response_format or structured_outputs, or pipeline.",
                "pipeline",
            )

    def sequences(self, choices: int) -> int:
        return (self.parallel or PARALLEL) + SEATS_BESIDE


def _wrong(settings: PipelineOptions | PipelineAsk) -> str | None:
    """What of the settings cannot be; None if they can."""
    parallel = settings.parallel
    if parallel is not None and not 1 <= parallel <= MOST_PARALLEL:
        return f"parallel must lie in [1, {MOST_PARALLEL}], got {parallel}."
    if settings.extract is not None and (said := wrong_extract(settings.extract)) is not None:
        return said
    if isinstance(settings, PipelineOptions):
        return wrong_stages(settings.chosen)
    return None if settings.stages is None else wrong_stages(settings.stages)


@register("search", "pipeline", exact=False, books=("pipeline",))
class Pipeline:
    """Texts are written, combined, extended, verified, voted on and fused, stage by stage.

    The operators are those that Archon (Saad-Falcon et al. 2024, arXiv:2409.15254) stacks. The
    preset "plansearch" is PlanSearch (Wang et al. 2024, arXiv:2409.03733): observations, what
    follows from subsets of them, plans, solutions. "hybrid" thinks fast first, and slowly only
    where it is not sure (after HDFlow, Yao et al. 2024, arXiv:2409.17433). All texts fork off the
    prompt's state, and share what they begin with. The same seed gives the same answer, whatever
    ran beside it. `ockham techniques measure search/pipeline` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "pipeline"
    Options: ClassVar[type[PipelineOptions]] = PipelineOptions
    Ask: ClassVar[type[PipelineAsk]] = PipelineAsk

    def __init__(self, options: PipelineOptions) -> None:
        self._options = options

    def begin(self, ask: PipelineAsk, problem: Problem) -> Stages | None:
        """See `Search`."""
        params = problem.params
        fits = params.n == 1 and params.max_tokens != 0 and params.structured_outputs is None
        fits = fits and params.logprobs is None and not params.greedy
        if not problem.asked and not (fits and problem.text and problem.seats > SEATS_BESIDE):
            return None
        ask.check_params(params)
        if not problem.text:
            raise InvalidRequest(
                "a pipeline works on texts, and this request has none; load a tokenizer, or leave "
                "detokenization on.",
                "pipeline",
            )
        settings = merged(self._options, ask)
        if ask.preset is not None:
            settings = msgspec.structs.replace(settings, stages=())
        if ask.parallel is None:
            most = max(1, problem.seats - SEATS_BESIDE)
            settings = msgspec.structs.replace(settings, parallel=min(settings.parallel, most))
        for number, stage in enumerate(settings.chosen, 1):
            if isinstance(stage, Generate) and stage.samples > 1 and params.greedy:
                raise InvalidRequest(
                    f"pipeline: stage {number} draws {stage.samples} samples, which are alike at "
                    "temperature 0; raise temperature, or lower samples.",
                    "pipeline",
                )
            if isinstance(stage, Best | Sure):
                scorer_of(stage.scorer, problem, self.name)  # refuses what the engine does not have
        likely = any(
            isinstance(stage, Best | Sure) and stage.scorer == LIKELIHOOD
            for stage in settings.chosen
        )
        return (ScoredStages if likely else Stages)(settings, problem)


@dataclass(slots=True, eq=False)
class _Text:
    """A text so far. `score` is what it was verified with, 0 before."""

    said: Said
    text: str
    score: float = 0.0


class Stages(Program):
    """The texts of one request."""

    def __init__(self, settings: PipelineOptions, problem: Problem) -> None:
        super().__init__(problem, settings.parallel, SEATS_BESIDE)
        self._settings, self._problem = settings, problem
        self._made: list[dict[str, Any]] = []
        self._stopped = "stages"

    def steps(self) -> Generator[Any, list[Any], _Text]:
        """See `Program`."""
        texts: list[_Text] = []
        stages = list(self._settings.chosen)
        at = 0
        while at < len(stages):
            stage = stages[at]
            after = at + 1
            if isinstance(stage, Generate | Combine | Fuse | Extend | Verify):
                # What follows goes on from each text as soon as that is there.
                while after < len(stages) and isinstance(stages[after], Extend | Verify):
                    if isinstance(stages[after - 1], Verify):
                        break  # some texts are gone after it
                    after += 1
                texts = yield from self._written(stages[at:after], texts)
                at = after
                continue
            elif isinstance(stage, Vote):
                texts = self._voted(stage, texts)
            else:
                scores: list[float] = yield from self._scored(stage.scorer, texts)
                texts = _ranked(texts, scores)
                if isinstance(stage, Best):
                    texts = texts[: stage.keep]
                elif max(scores) >= stage.at:
                    self._note(stage, texts, max(scores))
                    self._stopped = "sure"
                    break
            self._note(stage, texts)
            at = after
        return texts[0]

    def answer(self, value: _Text) -> Finish:
        """See `Program`."""
        said = value.said
        read = Reader(self._settings.extract)
        report = {
            "answer": read(said.text),
            "stages": self._made,
            "stopped": self._stopped,
            **self.told(),
        }
        whole = said.start == 0 and said.reason is not None
        choice: int | Sequence[int] = said.branch if whole else said.tokens
        return Finish([choice], (), report, cut=said.reason == "length")

    # -- inside --------------------------------------------------------------------------------

    def _note(self, stage: Stage, texts: list[_Text], score: float | None = None) -> None:
        """Tell of a stage: how many texts there are after it."""
        made: dict[str, Any] = {"op": stage.__struct_config__.tag, "texts": len(texts)}
        self._made.append(made if score is None else {**made, "score": round(score, 4)})

    def _written(self, stages: Sequence[Stage], texts: list[_Text]) -> Steps:
        """Texts that a stage writes, each with what the stages after it add to it."""
        first, *others = stages
        if isinstance(first, Generate):
            begun = not texts and not first.write  # the branch that there is is the first sample
            calls = [self._call(first, first=begun and not n) for n in range(first.samples)]
            every: list[Call | _Text] = [*(texts if first.add else []), *calls]
            programs = [self._chain(each, "", others) for each in every]
        elif isinstance(first, Combine | Fuse):
            programs = [
                self._chain(self._call(first, joined), joined, others)
                for joined in self._subsets(first, texts)
            ]
        else:
            programs = [self._chain(each, "", stages) for each in texts]
        made: list[_Text] = yield programs
        for stage in stages:
            if isinstance(stage, Verify):  # the last
                made = _ranked(made, [each.score for each in made])[: stage.keep]
            self._note(stage, made, made[0].score if isinstance(stage, Verify) else None)
        return made

    def _chain(self, begin: Call | _Text, before: str, stages: Sequence[Stage]) -> Steps:
        """One text, and what goes on from it."""
        if isinstance(begin, _Text):
            text = begin
        else:
            said: Said = (yield [begin])[0]
            text = _Text(said, "\n".join(filter(None, (before, said.text.strip()))))
        for stage in stages:
            if isinstance(stage, Extend):
                said = (yield [self._call(stage, after=text.said)])[0]
                parts = (text.text, said.text.strip())
                text = _Text(said, "\n".join(filter(None, parts)))
            elif isinstance(stage, Verify):
                verdict = Verdict(
                    first_tokens(self._encode, stage.yes), first_tokens(self._encode, stage.no)
                )
                question = self._marked(stage.ask)
                yield [Call(text=question, after=text.said, tokens=1, observer=verdict)]
                text.score = verdict.value or 0.0
        return text

    def _call(
        self, stage: Writing, texts: str = "", after: Said | None = None, first: bool = False
    ) -> Call:
        write = self._marked(stage.write).replace(TEXTS, texts)
        until = (stage.until,) if stage.until else ()
        return Call(text=write, after=after, until=until, tokens=stage.tokens, first=first)

    def _marked(self, text: str) -> str:
        """A text with the marks of turns in their places; a paragraph where none are known."""
        user, assistant = self._problem.turns or ("\n\n", "\n")
        return text.replace(USER, user).replace(ASSISTANT, assistant)

    @staticmethod
    def _subsets(stage: Combine | Fuse, texts: list[_Text]) -> list[str]:
        """The texts of each subset, the smallest subsets first."""
        said = [each.text for each in texts]
        if isinstance(stage, Fuse):
            return ["\n".join(said)]
        sizes = range(1, min(stage.size, len(said)) + 1)
        every = chain.from_iterable(combinations(said, size) for size in sizes)
        return ["\n".join(subset) for subset in islice(every, stage.most)]

    def _voted(self, stage: Vote, texts: list[_Text]) -> list[_Text]:
        """The first text of the majority; the first of all where none has an answer."""
        read = Reader(stage.extract or self._settings.extract)
        counts: dict[str, int] = {}
        answers = [read(each.text) for each in texts]
        for answer in answers:
            if answer is not None:
                counts[answer] = counts.get(answer, 0) + 1
        if not counts:
            return texts[:1]
        return [texts[answers.index(max(counts, key=counts.__getitem__))]]

    def _scored(self, scorer: str, texts: list[_Text]) -> Steps:
        """The scores of texts, which a checker or a reward model gives later."""
        if scorer == LIKELIHOOD:
            return [_likelihood(each.said) for each in texts]
        kind, _, name = scorer.partition(":")
        problem = self._problem
        judge = (problem.judges if kind == CHECKER else problem.rewards)[name]
        scores: list[float | None] = yield [
            judge.submit(problem.prompt, each.text) for each in texts
        ]
        return [0.0 if score is None else score for score in scores]


class ScoredStages(Stages):
    """The same, where the likelihood of a text decides."""

    scores: ClassVar[bool] = True


def _likelihood(said: Said) -> float:
    """The geometric mean of the probabilities of the tokens that were drawn."""
    logprobs = said.logprobs
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def _ranked(texts: list[_Text], scores: list[float]) -> list[_Text]:
    """The best first; of two as good, the earlier."""
    order = sorted(range(len(texts)), key=lambda place: (-scores[place], place))
    return [texts[place] for place in order]
