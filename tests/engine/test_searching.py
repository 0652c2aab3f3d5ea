"""Searches that fork, hold and drop branches in the middle of what they say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Continue,
    Drop,
    Finish,
    Fork,
    Hold,
    Problem,
    Say,
    SearchState,
)
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers import serving
from tests.helpers.beams import Beams, brute_force
from tests.helpers.searching import let_search
from tests.helpers.serving import ask, drain
from tests.helpers.tiny import tiny_llama

make_engine = partial(serving.make_engine, max_model_len=200, block_size=4)
PROMPT = [(5 * i) % 97 for i in range(30)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose layers see the latest 8 tokens only."""
    config = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    return tiny_llama(tmp_path_factory.mktemp("windowed"), sliding_window=8, **config)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("speaking"), tokenizer=True)


def searching(
    engine: Engine, request: Request, state: Callable[[Problem], SearchState], *others: Request
) -> dict[str, dict[int, Delta]]:
    """What is said of a request that a search answers, beside others. Nothing is told before the
    end; the bill is whole."""
    let_search(engine, {request.request_id: state})
    before = msgspec.msgpack.decode(msgspec.msgpack.encode(engine.total), type=type(engine.total))
    for each in (*others, request):
        engine.take(each)
    found: dict[str, dict[int, Delta]] = {}
    bills = []
    for delta in drain(engine):
        choices = found.setdefault(delta.request_id, {})
        if delta.index in choices:
            assert delta.request_id != request.request_id, "branches are not told"
            delta.token_ids = choices[delta.index].token_ids + delta.token_ids
        choices[delta.index] = delta
        if delta.ledger is not None:
            bills.append(delta.ledger)
    for field in ("rows", "flops", "weight_bytes", "generated_tokens", "state_read_bytes"):
        booked = sum(getattr(bill, field) for bill in bills)
        assert booked == getattr(engine.total, field) - getattr(before, field), field
    assert engine.scheduler.reserved_seats == 0
    return found


def tokens(choices: dict[int, Delta]) -> list[list[int]]:
    return [choices[index].token_ids for index in sorted(choices)]


# -- a search that says what comes next --------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_beams_are_those_of_brute_force(checkpoint: Path, backend: str) -> None:
    oracle = make_engine(checkpoint, backend=backend, reuse="none")
    expected = brute_force(oracle, PROMPT, 3, 7)
    engine = make_engine(checkpoint, backend=backend)
    found = searching(engine, ask("a", PROMPT, n=3, max_tokens=7), Beams)["a"]
    assert tokens(found) == expected
    assert [found[index].finish_reason for index in range(3)] == ["length"] * 3
    bill = found[2].ledger
    assert bill is not None
    assert bill.prompt_tokens == bill.prompt_tokens_computed == len(PROMPT)
    assert bill.saved["fork"].tokens >= 2 * len(PROMPT)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 2},
        {"max_num_batched_tokens": 8, "kv_cache_memory_bytes": 30_000, "max_model_len": 80},
        {"max_num_seqs": 3},
        {"reuse": "none", "speculative_config": "none"},
    ],
)
def test_beams_depend_on_nothing_beside_them(checkpoint: Path, settings: dict[str, Any]) -> None:
    alone = make_engine(checkpoint, reuse="none")
    expected = tokens(searching(alone, ask("a", PROMPT, n=3, max_tokens=9), Beams)["a"])
    engine = make_engine(checkpoint, **settings)
    others = [ask(f"other {i}", PROMPT[: 8 + i], max_tokens=12) for i in range(3)]
    found = searching(engine, ask("a", PROMPT, n=3, max_tokens=9), Beams, *others)
    assert tokens(found["a"]) == expected
    for other in others:
        alone.take(other)
        assert tokens(found[other.request_id]) == [[t for d in drain(alone) for t in d.token_ids]]


def test_beams_obey_masks_and_have_log_probabilities(checkpoint: Path) -> None:
    allowed = [3, 4, 5, 6, 7]
    params = {"n": 2, "max_tokens": 5, "allowed_token_ids": allowed, "logprobs": 2}
    found = searching(make_engine(checkpoint), ask("a", PROMPT, **params), Beams)["a"]
    for delta in found.values():
        assert set(delta.token_ids) <= set(allowed)
        assert delta.logprobs is not None
        assert [t in entry for t, entry in zip(delta.token_ids, delta.logprobs, strict=True)]
        scored = make_engine(checkpoint)
        scored.take(ask("b", PROMPT + delta.token_ids, max_tokens=0, prompt_logprobs=2))
        (said,) = drain(scored)
        assert said.prompt_logprobs is not None
        assert said.prompt_logprobs[len(PROMPT) :] == delta.logprobs


# -- searches over what the sampler draws ------------------------------------------------------


class Resampling(SearchState):
    """A few samples, which wait for each other after every `every` tokens. The least then goes,
    and the greatest goes on twice."""

    watches: ClassVar[bool] = True

    def __init__(self, problem: Problem, count: int = 3, every: int = 3) -> None:
        self.count, self.every, self.at = count, every, every
        self.number = count - 1
        self.parents: dict[int, tuple[int, int]] = {}

    @property
    def width(self) -> int:
        return self.count

    @property
    def begins(self) -> int:
        return self.count

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        live = [n for n, b in branches.items() if b.finish_reason is None]
        if not live:
            return [Finish(sorted(branches)[: self.count])]
        there = [n for n in live if len(branches[n].tokens) == self.at]
        if len(there) < len(live):
            return [Hold(n) for n in there]
        at, self.at = self.at, self.at + self.every
        order = sorted(live, key=lambda n: (branches[n].tokens, n))
        self.number += 1
        self.parents[self.number] = (order[-1], at)
        again: list[Action] = [Continue(n) for n in live if n != order[0]]
        return [Drop(order[0]), Fork(order[-1], self.number), Continue(self.number), *again]


SAMPLED = {"temperature": 1.0, "seed": 3, "n": 3, "max_tokens": 11}


def sampled_alone(engine: Engine, said: list[int], number: int, room: int) -> list[int]:
    """What the noise stream `number` makes of what was said before."""
    params = {**SAMPLED, "n": number + 1, "max_tokens": room}
    engine.take(ask("alone", PROMPT + said, **params))
    return serving.tokens_of(drain(engine))["alone", number]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 2},
        {"kv_cache_memory_bytes": 20_000, "reuse": "none", "max_model_len": 60},
        {"kv_cache_memory_bytes": 20_000, "max_model_len": 60},
    ],
)
@pytest.mark.parametrize("which", ["checkpoint", "windowed"])
def test_a_fork_says_what_its_noise_makes_of_it(
    which: str, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    made: list[Resampling] = []

    def state(problem: Problem) -> Resampling:
        made.append(Resampling(problem))
        return made[-1]

    # Without drafts, each step brings a branch one token, so that all are held at the same place.
    engine = make_engine(path, speculative_config="none", **settings)
    others = [ask(f"other {i}", PROMPT[: 9 + i], max_tokens=12) for i in range(3)]
    found = searching(engine, ask("a", PROMPT, **SAMPLED), state, *others)["a"]
    (search,) = made
    assert len(search.parents) == 3
    said: dict[int, list[int]] = {}
    oracle = make_engine(path, reuse="none")
    for number in range(search.number + 1):
        parent, at = search.parents.get(number, (0, 0))
        before = said[parent][:at] if number in search.parents else []
        room = SAMPLED["max_tokens"] - len(before)
        said[number] = before + sampled_alone(oracle, before, number, room)
    for delta in found.values():
        assert delta.token_ids in said.values()
    bill = found[2].ledger
    assert bill is not None
    assert bill.wasted["tested"].tokens > 0


class OneByOne(SearchState):
    """Samples one after the other, each from where another was after so many tokens."""

    def __init__(self, problem: Problem, forks: Sequence[tuple[int, int]]) -> None:
        self.forks = list(forks)
        self.number = 0

    @property
    def width(self) -> int:
        return 1

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        if self.number == len(self.forks):
            return [Finish([*branches], spared=[(2, 5)], report={"branches": len(branches)})]
        parent, at = self.forks[self.number]
        self.number += 1
        return [Fork(parent, self.number, at)]


@pytest.mark.parametrize("drafts", ["none", "copying"])
@pytest.mark.parametrize("which", ["checkpoint", "windowed"])
def test_a_branch_that_has_ended_is_gone_on_from_anywhere(
    which: str, drafts: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    forks = [(0, 0), (1, 4), (2, 10)]
    state = partial(OneByOne, forks=forks)
    engine = make_engine(path, speculative_config=drafts, reuse="none")
    found = searching(engine, ask("a", PROMPT, **{**SAMPLED, "n": 4}), state)["a"]
    oracle = make_engine(path, reuse="none")
    said = [sampled_alone(oracle, [], 0, 11)]
    for number, (parent, at) in enumerate(forks, 1):
        before = said[parent][:at]
        said.append(before + sampled_alone(oracle, before, number, 11 - at))
    assert tokens(found) == said
    assert found[0].report == {"tested": {"branches": 4}}
    bill = found[3].ledger
    assert bill is not None
    assert bill.saved["tested"].tokens == 3
    if which == "checkpoint":  # a window lets go of cells: they are computed again
        assert bill.rows <= len(PROMPT) + 10 + 11 + 7 + 1 + bill.wasted.get("copying", NONE).tokens
        assert bill.prompt_tokens_computed == len(PROMPT)
        assert bill.wasted["fork"].tokens == 3


NONE = type("None_", (), {"tokens": 0})


class Twins(SearchState):
    """One branch, and a fork of it after so many tokens."""

    watches: ClassVar[bool] = True

    def __init__(self, problem: Problem, at: int, *, whole: bool) -> None:
        self.at, self.whole, self.forked = at, whole, False

    @property
    def width(self) -> int:
        return 2

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        if all(branch.finish_reason for branch in branches.values()):
            return [Finish([*branches])]
        (first, *_) = branches.values()
        if not self.forked and len(first.tokens) >= self.at:
            self.forked = True
            return [Fork(0, 1, None if self.whole else self.at - 2)]
        return []


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "logprobs": 2},
        {"structured_outputs": StructuredOutputsParams(regex="[a-f]{3}( [a-z]{2,9}){1,4}!")},
        {"stop": ["zq", "e"], "min_tokens": 5},
        {"bad_words": ["the", "a"]},
    ],
)
def test_a_greedy_fork_says_what_the_other_says(
    speaking: Path, params: dict[str, Any], whole: bool
) -> None:
    """So it has its text, its place in the grammar, its penalties and its log probabilities."""
    engine = make_engine(speaking, skip_tokenizer_init=False)
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode("def add(one, two):\n    return")
    values = {"temperature": 0.0, "max_tokens": 24, "n": 2, "ignore_eos": True, **params}
    request = Request(request_id="a", prompt_token_ids=prompt, params=SamplingParams(**values))
    found = searching(engine, request, partial(Twins, at=4, whole=whole))["a"]
    first, second = found[0], found[1]
    assert len(first.token_ids) > 4
    assert first.token_ids == second.token_ids
    assert first.text == second.text
    assert (first.finish_reason, first.stop_reason) == (second.finish_reason, second.stop_reason)
    assert first.logprobs == second.logprobs
    alone = msgspec.structs.replace(
        request, request_id="b", params=msgspec.structs.replace(request.params, n=1)
    )
    engine.take(alone)
    said = drain(engine)
    assert [t for delta in said for t in delta.token_ids] == first.token_ids
    assert "".join(delta.text for delta in said) == first.text
    if "structured_outputs" in params:
        assert re.fullmatch("[a-f]{3}( [a-z]{2,9}){1,4}!", first.text)


# -- how a search's request ends ---------------------------------------------------------------


def test_a_search_that_is_given_up_frees_its_state_and_seats(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    let_search(engine, {"a": Resampling})
    engine.take(ask("a", PROMPT, **SAMPLED))
    for _ in range(6):
        assert engine.step() == []
        engine.check_integrity()
    deltas = engine.abort("a")
    assert [(d.index, d.finish_reason) for d in deltas] == [(i, "abort") for i in range(3)]
    bill = deltas[-1].ledger
    assert bill is not None
    assert bill.rows == engine.total.rows
    assert not engine.has_work
    assert engine.stats().pages_used == 0
    assert engine.scheduler.reserved_seats == 0


def test_a_search_cannot_be_moved(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    let_search(engine, {"a": Resampling})
    engine.take(ask("a", PROMPT, **SAMPLED))
    engine.step()
    with pytest.raises(InvalidRequest, match="the search 'tested', whose branches cannot be moved"):
        engine.export_request("a")
    assert drain(engine)


class Wrong(SearchState):
    """Says what cannot be done."""

    watches: ClassVar[bool] = True

    def __init__(self, problem: Problem, actions: Sequence[Action]) -> None:
        self.actions = actions

    @property
    def width(self) -> int:
        return 2

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action]:
        return self.actions


@pytest.mark.parametrize(
    "actions",
    [
        [Hold(0)],
        [Drop(0)],
        [Say(0, 5)],
        [Drop(7)],
        [Fork(0, 0)],
        [Fork(0, 1, 9)],
        [Fork(0, 1), Fork(0, 2)],
    ],
)
def test_a_search_that_fails_ends_its_own_request(
    checkpoint: Path, actions: Sequence[Action]
) -> None:
    engine = make_engine(checkpoint)
    other = ask("other", PROMPT, max_tokens=9)
    found = searching(
        engine, ask("a", PROMPT, max_tokens=9), partial(Wrong, actions=actions), other
    )
    assert found["a"][0].finish_reason == "error"
    assert len(found["other"][0].token_ids) == 9


def test_a_search_wider_than_the_engine_is_refused(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, max_num_seqs=2)
    let_search(engine, {"a": Resampling})
    with pytest.raises(InvalidRequest, match="runs 3 sequences at once, but at most 2"):
        engine.take(ask("a", PROMPT, max_tokens=9))
    assert not engine.has_work


def test_searches_that_hold_branches_do_not_keep_each_other_from_running(checkpoint: Path) -> None:
    """Two that have room for one only, as each of them waits for all of its branches."""
    small = make_engine(
        checkpoint,
        kv_cache_memory_bytes=22_000,
        max_model_len=80,
        reuse="none",
        max_num_seqs=6,
        speculative_config="none",
    )
    roomy = make_engine(checkpoint, speculative_config="none")
    said = []
    for engine in (small, roomy):
        let_search(engine, {"a": Resampling, "b": Resampling})
        for name, seed in (("a", 1), ("b", 2)):
            values = {**SAMPLED, "seed": seed, "max_tokens": 40}
            engine.take(ask(name, PROMPT[: 20 + seed], **values))
        said.append(serving.tokens_of(drain(engine)))
    assert said[0] == said[1]
    assert small.scheduler.preemptions
