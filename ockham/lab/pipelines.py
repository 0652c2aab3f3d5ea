"""Which pipeline of operators over texts is right most often under a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case, task_cases
from ockham.lab.running import drive
from ockham.lab.statistics import Interval, wilson

FIRST_ITEMS = 8
"""Of the first rung. Each has twice as many as the one before, and half of the pipelines."""
MARGIN = 1.05
"""How far above the budget the mean tokens of a pipeline may be."""
COUNTS = (2, 3, 4, 6, 8, 12, 16)
SURES = (0.97, 0.98, 0.99)


class Tried(msgspec.Struct, kw_only=True):
    """A search, and how it did on the items that it was tried on: the share that it answered
    rightly, and the tokens that all of its branches made for an item, on average."""

    search: dict[str, Any]
    label: str
    right: float = 0.0
    tokens: float = 0.0
    items: int = 0
    right_interval: Interval | None = None

    def add(self, right: Sequence[float], tokens: Sequence[int]) -> None:
        """What it did on more items."""
        made = self.items + len(right)
        self.right = (self.right * self.items + sum(right)) / made
        self.tokens = (self.tokens * self.items + sum(tokens)) / made
        self.items = made
        self.right_interval = wilson(self.right * made, made)


class Found(msgspec.Struct, kw_only=True):
    """The best pipeline, and how it did on items that nothing was chosen by, beside a single call
    and a vote of about as many tokens. `tried` are all pipelines, on the items that each was tried
    on, and `dropped` those of them that need more than the budget."""

    best: Tried
    single: Tried
    vote: Tried
    tried: list[Tried]
    dropped: list[str]


def operators(extract: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pipelines that are tried: label and search, the cheapest first."""
    one = {"op": "generate"}
    vote = {"op": "vote"}

    def search(*stages: Mapping[str, Any]) -> dict[str, Any]:
        return {"method": "pipeline", "stages": list(stages), "extract": extract}

    yield "one call", search(one)
    for count in COUNTS:
        several = {"op": "generate", "samples": count}
        keep = (count + 1) // 2
        yield f"vote of {count}", search(several, vote)
        yield f"likeliest of {count}", search(several, {"op": "best"})
        yield (
            f"vote of the likelier half of {count}",
            search(several, {"op": "best", "keep": keep}, vote),
        )
        yield f"verified best of {count}", search(several, {"op": "verify"})
        yield (
            f"vote of the better verified half of {count}",
            search(several, {"op": "verify", "keep": keep}, vote),
        )
        yield f"fused from {count}", search(several, {"op": "fuse"})
        for at in SURES:
            slow = {"op": "generate", "samples": count, "add": True}
            sure = {"op": "sure", "at": at}
            yield f"one, vote of {count} more below {at}", search(one, sure, slow, vote)
            yield (
                f"one, likeliest of {count} more below {at}",
                search(one, sure, slow, {"op": "best"}),
            )
    yield "plansearch", {"method": "pipeline", "preset": "plansearch", "extract": extract}


class Trial:
    """A model that answers the items of a task by searches."""

    def __init__(
        self,
        engine: Engine,
        task: str,
        *,
        temperature: float,
        seed: int,
        adapter: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ConfigError for a model without a tokenizer."""
        if engine.tokenizer is None:
            raise ConfigError("answers are read from text: this needs a model with a tokenizer.")
        self._engine, self._task = engine, task
        self._temperature, self._seed = temperature, seed
        self._asks: dict[str, Any] = make_asks({"adapter/lora": dict(adapter)}) if adapter else {}

    def cases(self, items: int, split: str) -> list[Case]:
        """The first items of a split that have a right answer. Raises ConfigError if there are
        none."""
        assert self._engine.tokenizer is not None, "checked above"
        found = task_cases(
            [self._task],
            items,
            self._seed,
            (),
            self._engine.tokenizer,
            self._engine.max_model_len,
            "train" if split == "train" else "test",
        ).cases
        found = [case for case in found if case.score is not None]
        if not found:
            raise ConfigError(f"the items of {self._task!r} have no right answers that fit here.")
        return found

    def answer(self, tried: Tried, cases: Sequence[Case]) -> None:
        """Let a search answer these."""
        outputs: dict[str, RequestOutput] = {}
        wanted = [
            Request(
                request_id=case.key,
                prompt_token_ids=list(case.tokens),
                params=SamplingParams(
                    temperature=self._temperature,
                    seed=self._seed + case.index,
                    max_tokens=case.max_tokens,
                    search=tried.search,  # type: ignore[call-arg]
                ),
                asks=dict(self._asks),
            )
            for case in cases
        ]
        drive(self._engine, wanted, lambda output: outputs.update({output.request_id: output}))
        ordered = [(case, outputs[case.key]) for case in cases]
        right = [case.score(output.outputs[0].text) for case, output in ordered if case.score]
        tried.add(right, [output.ledger.generated_tokens for _, output in ordered])


def search_pipelines(
    trial: Trial,
    *,
    budget: int,
    items: int,
    held_out: int,
    extract: str,
    tell: Callable[[str], None],
    among: Iterable[tuple[str, dict[str, Any]]] | None = None,
) -> Found:
    """Try pipelines by successive halving: each on a few items of the train split, the better half
    on twice as many, until one is left or there are no more `items`. Those that take more than
    `budget` tokens for an item, on average, are dropped. `among` are the pipelines, the first of
    them one call; all of `operators` if None.

    Raises ConfigError if one call takes more than the budget already.
    """
    cases = trial.cases(items, "train")
    every = [Tried(label=label, search=search) for label, search in among or operators(extract)]
    single = every[0]
    trial.answer(single, cases[:FIRST_ITEMS])
    if single.tokens > budget * MARGIN:
        raise ConfigError(
            f"one call takes {single.tokens:.0f} tokens already; a budget of {budget} is too small."
        )
    rest, dropped = [], []
    for tried in every[1:]:
        over = _calls(tried.search) * single.tokens > 2 * budget and "sure" not in str(tried.search)
        if over:  # twice as much as one call says: not worth trying
            dropped.append(tried.label)
        else:
            rest.append(tried)
    used, size, first = 0, FIRST_ITEMS, True
    while True:
        some = cases[used : used + size]
        for tried in rest if first else [single, *rest]:
            trial.answer(tried, some)
        dropped += [each.label for each in rest if each.tokens > budget * MARGIN]
        rest = [each for each in rest if each.tokens <= budget * MARGIN]
        used, first = used + len(some), False
        rest.sort(key=_rank)
        tell(
            f"{used} of {len(cases)} items: {len(rest)} pipelines are left; best is "
            f"{min([single, *rest], key=_rank).label}"
        )
        if used >= len(cases) or len(rest) < 2:
            break
        size *= 2
        rest = rest[: (len(rest) + 1) // 2]
    best = min([single, *rest], key=_rank)
    tests = trial.cases(held_out, "test")
    tell(f"{len(tests)} items that nothing was chosen by")
    count = max(2, round(best.tokens / single.tokens))
    stages = [{"op": "generate", "samples": count}, {"op": "vote"}]
    vote = {"method": "pipeline", "stages": stages, "extract": extract}
    judged = [
        Tried(label=best.label, search=best.search),
        Tried(label=single.label, search=single.search),
        Tried(label=f"vote of {count}", search=vote),
    ]
    for tried in judged:
        trial.answer(tried, tests)
    return Found(best=judged[0], single=judged[1], vote=judged[2], tried=every, dropped=dropped)


def _rank(tried: Tried) -> tuple[float, float]:
    """The most often right first, and of two the cheaper."""
    return -tried.right, tried.tokens


def _calls(search: Mapping[str, Any]) -> int:
    """The texts that a pipeline writes at least."""
    return sum(int(stage.get("samples", 1)) for stage in search.get("stages", ()) if "op" in stage)


def told(found: Found) -> Iterator[str]:
    """What was found, in words."""
    for name, tried in (("best", found.best), ("one call", found.single), ("vote", found.vote)):
        interval = tried.right_interval
        bounds = f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else ""
        yield (
            f"{name + ':':<10} {tried.label}: {tried.right:.1%}{bounds} of {tried.items} right, "
            f"{tried.tokens:.0f} tokens each"
        )
