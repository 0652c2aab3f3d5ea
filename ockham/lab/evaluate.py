"""Scores of a model: cases through the engine, results as they come, and what they add up to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case
from ockham.lab.interview import Talk
from ockham.lab.running import drive
from ockham.lab.statistics import Interval, ratio_interval, wilson

BITS = 1 / math.log(2)

Progress = Callable[[int], object]
"""Told how many cases have been done since it was last told."""


class Result(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a model made of one case. `nats` is the negative log likelihood of `scored_tokens`
    tokens of the prompt; `scores` has one entry for each completion, if they could be scored."""

    run: str
    """Which configuration: "baseline", or "candidate" of a comparison."""
    source: str
    index: int
    part: int = 0
    level: str
    prompt_tokens: int
    completions: list[str] = []
    token_ids: list[list[int]] = []
    finish_reasons: list[str] = []
    scores: list[float] | None = None
    nats: float | None = None
    scored_tokens: int = 0
    scored_bytes: int = 0

    @property
    def key(self) -> str:
        return f"{self.source}/{self.index}/{self.part}"


class Score(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The figures of one task, or of one of its levels, with 95% intervals (None: too few items).

    `score` is the share of right completions; `any_right` the share of items of which at least one
    of several completions is right. `perplexity` is per token, `bits_per_byte` of UTF-8 text.
    """

    source: str
    level: str | None = None
    """None for all levels together."""
    items: int
    score: float | None = None
    score_interval: Interval | None = None
    any_right: float | None = None
    any_right_interval: Interval | None = None
    perplexity: float | None = None
    perplexity_interval: Interval | None = None
    bits_per_byte: float | None = None
    bits_per_byte_interval: Interval | None = None
    scored_tokens: int = 0
    prompt_tokens: float = 0.0
    """Mean over the items, as are the generated tokens of a completion."""
    generated_tokens: float = 0.0
    cut_short: int = 0
    """Completions that ran into their limit of tokens."""


def evaluate(
    engine: Engine,
    cases: Iterable[Case],
    done: Callable[[Result], None],
    *,
    run: str = "baseline",
    temperature: float = 0.0,
    n: int = 1,
    seed: int = 0,
) -> None:
    """Run `cases` at full batch; `done` gets each result as it comes, in no particular order.

    Every case has a seed of its own, made of `seed` and its key, so that a run in two parts gives
    what a run in one piece gives. Questions over one context are answered greedily, whatever is
    asked; of each such case two results come, of its first question last. Raises InvalidRequest for
    a case that does not fit.
    """
    asked: dict[str, Case] = {}
    talks: dict[str, Talk] = {}

    def requests() -> Iterator[Request]:
        for case in cases:
            asked[case.key] = case
            if case.interview is not None:
                talks[case.key] = Talk(case.interview, engine.eos)
                yield case.interview.request(case.key)
                continue
            yield Request(
                request_id=case.key,
                prompt_token_ids=list(case.tokens),
                params=_params(case, temperature, n, seed),
                detokenize=case.max_tokens > 0,
            )

    def ended(output: RequestOutput) -> None:
        case = asked.pop(output.request_id)
        if case.interview is None:
            done(_result(run, case, output))
            return
        for result in _talked(run, case, talks.pop(case.key), engine):
            done(result)

    drive(engine, requests(), ended, talks)


def _talked(run: str, case: Case, talk: Talk, engine: Engine) -> Iterator[Result]:
    """Of questions over one context: the later ones, and the first."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "its questions were made with one"
    last = len(case.questions)
    texts = [tokenizer.decode(answer, True) for answer in talk.answers]
    scores = [question.score(text) for question, text in zip(case.questions, texts, strict=True)]
    for part, own, level in (
        (1, slice(1, None), f"questions 2 to {last}"),
        (0, slice(0, 1), "question 1"),
    ):
        yield Result(
            run=run,
            source=case.source,
            index=case.index,
            part=part,
            level=f"{case.level}, {level}",
            prompt_tokens=len(case.tokens),
            completions=texts[own],
            token_ids=talk.answers[own],
            finish_reasons=["stop" if ended else "length" for ended in talk.ended[own]],
            scores=scores[own],
        )


def _params(case: Case, temperature: float, n: int, seed: int) -> SamplingParams:
    digest = hashlib.blake2b(f"{seed}/{case.key}".encode(), digest_size=8).digest()
    return SamplingParams(
        n=n if case.max_tokens else 1,
        temperature=temperature,
        max_tokens=case.max_tokens,
        prompt_logprobs=0 if case.scores_prompt else None,
        seed=int.from_bytes(digest, "little"),
    )


def _result(run: str, case: Case, output: RequestOutput) -> Result:
    choices = output.outputs if case.max_tokens else []
    scored = output.prompt_logprobs or []
    return Result(
        run=run,
        source=case.source,
        index=case.index,
        part=case.part,
        level=case.level,
        prompt_tokens=len(case.tokens),
        completions=[choice.text for choice in choices],
        token_ids=[choice.token_ids for choice in choices],
        finish_reasons=[choice.finish_reason or "" for choice in choices],
        scores=None if case.score is None else [case.score(choice.text) for choice in choices],
        nats=nats_of(output) if scored else None,
        scored_tokens=max(0, len(scored) - 1),
        scored_bytes=case.scored_bytes,
    )


def nats_of(output: RequestOutput) -> float:
    """The negative log likelihood of the prompt tokens that were scored."""
    return -math.fsum(
        entry[token].logprob
        for token, entry in zip(output.prompt_token_ids, output.prompt_logprobs or [], strict=True)
        if entry is not None
    )


def summarise(results: Iterable[Result], seed: int = 0) -> list[Score]:
    """The scores of each source, and after them those of its levels where it has several.

    The order of the results changes nothing.
    """
    by_source: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (r.index, r.part)):
        by_source.setdefault(result.source, []).append(result)
    scores = []
    for source in sorted(by_source):
        found = by_source[source]
        scores.append(_score(source, None, found, seed))
        levels = dict.fromkeys(result.level for result in found)
        if len(levels) > 1:
            scores += [
                _score(source, level, [r for r in found if r.level == level], seed)
                for level in levels
            ]
    return scores


def _score(source: str, level: str | None, results: Sequence[Result], seed: int) -> Score:
    score = Score(
        source=source,
        level=level,
        items=len({r.index for r in results}),
        prompt_tokens=sum(r.prompt_tokens for r in results) / len(results),
    )
    lengths = [len(ids) for r in results for ids in r.token_ids]
    score.generated_tokens = sum(lengths) / len(lengths) if lengths else 0.0
    score.cut_short = sum(reason == "length" for r in results for reason in r.finish_reasons)
    by_item: dict[int, list[float]] = {}
    for r in results:
        if r.scores:
            by_item.setdefault(r.index, []).extend(r.scores)
    apart = any(r.part for r in results)  # different questions are no samples of one
    _fill_right(score, list(by_item.values()), seed, samples=not apart)
    _fill_perplexity(score, [r for r in results if r.nats is not None], seed)
    return score


def _fill_right(score: Score, scores: list[list[float]], seed: int, *, samples: bool) -> None:
    if not scores:
        return
    right, tried = [math.fsum(each) for each in scores], [float(len(each)) for each in scores]
    score.score = math.fsum(right) / sum(tried)
    if {value for each in scores for value in each} <= {0.0, 1.0} and max(tried) == 1:
        score.score_interval = wilson(math.fsum(right), len(scores))
        return
    score.score_interval = ratio_interval(right, tried, seed)
    if not samples:
        return
    solved = sum(any(each) for each in scores)
    score.any_right = solved / len(scores)
    score.any_right_interval = wilson(solved, len(scores))


def _fill_perplexity(score: Score, results: Sequence[Result], seed: int) -> None:
    """Windows of one text are one item: what is resampled is the text."""
    if not results:
        return
    texts: dict[int, list[Result]] = {}
    for r in results:
        texts.setdefault(r.index, []).append(r)
    nats = [math.fsum(r.nats or 0.0 for r in parts) for parts in texts.values()]
    tokens = [sum(r.scored_tokens for r in parts) for parts in texts.values()]
    sizes = [sum(r.scored_bytes for r in parts) for parts in texts.values()]
    score.scored_tokens = sum(tokens)
    score.perplexity = math.exp(math.fsum(nats) / sum(tokens))
    interval = ratio_interval(nats, tokens, seed)
    score.perplexity_interval = None if interval is None else _mapped(math.exp, interval)
    if sum(sizes):
        score.bits_per_byte = BITS * math.fsum(nats) / sum(sizes)
        interval = ratio_interval(nats, sizes, seed)
        score.bits_per_byte_interval = (
            None if interval is None else _mapped(lambda value: BITS * value, interval)
        )


def _mapped(function: Callable[[float], float], interval: Interval) -> Interval:
    return function(interval[0]), function(interval[1])


def settings(engine: Engine, **others: Any) -> dict[str, Any]:
    """What decides the results of a run: the numerics id, the context, and `others`."""
    return {
        "model": engine.config.model,
        "numerics_id": engine.model.numerics_id,
        "context": engine.max_model_len,
        **others,
    }
