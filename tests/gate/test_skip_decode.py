"""Depth by place: the bits of rows computed one by one with that depth, in any company."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.cost import ATTENTION, RUNS_ALL
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.registry import make, make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Finish,
    Fork,
    GatedModel,
    Problem,
    SearchState,
    SequenceGate,
    Stretch,
)
from ockham.core.step import ActiveRows
from ockham.engine import gates
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.gate.test_skip_layers import answers
from tests.helpers.searching import let_search
from tests.helpers.steps import Part, Stepper
from tests.helpers.tiny import tiny_llama

LAYERS = 6
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6]]
ASK = {"least": 0.34, "over": 12, "warm_up": 1}
TOKENS = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deep")
    tiny_llama(directory, num_hidden_layers=LAYERS)
    return directory


def engine(path: Path, **settings: Any) -> Engine:
    fields = {"skip_tokenizer_init": True, "speculative_config": "none", "dtype": "bfloat16"}
    return Engine(EngineConfig(model=str(path), **{**fields, **settings}))


def request(name: str, prompt: list[int], ask: Any = None, **params: Any) -> Request:
    fields = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": 2}
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**fields, **params}),
        detokenize=False,
        asks={} if ask is None else make_asks({"gate/skip_decode": ask}),
    )


def skipped_at(generated: int) -> range:
    """The layers that the row of a generated token skips under ASK: 6 fall to 2 within 12."""
    depth = round(LAYERS * (1 - (1 - 0.34) * min(1, generated / 12)))
    return range(1, LAYERS - (depth - 1))


def one_by_one(path: Path, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """The greedy tokens and their logits, each row in a step of its own."""
    model = engine(path).model
    stepper, sublayers = Stepper(model), model.program.sublayers()
    [*_, logits] = stepper.step([Part(0, prompt)]).logits
    found, values = [int(logits.argmax())], [float(logits.max())]
    while len(found) < tokens:
        step = stepper.build([Part(0, [found[-1]])])
        skipped = skipped_at(len(found) - 1)
        step.active = tuple(
            ActiveRows(ops.start, ops.stop, np.empty(0, np.int32))
            for (layer, _), ops in sublayers.items()
            if layer in skipped
        )
        run = stepper.executor.begin(step)
        stepper.executor.run(run, 0, len(model.program.ops))
        [logits] = stepper.executor.finish(run).logits
        stepper._commit(Part(0, [found[-1]]))
        found.append(int(logits.argmax()))
        values.append(float(logits.max()))
    return found, values


def test_depths_fall_and_keep_the_bottom_and_the_top() -> None:
    gate = make("gate", "skip_decode:least=0.34,over=12,warm_up=1").open(
        make_asks({"gate/skip_decode": True})["gate/skip_decode"], GatedModel(LAYERS)
    )
    opened = gate.for_prompt(5)
    for place in range(40):
        stretch = opened.at(place)
        wanted = skipped_at(place - 5) if place >= 5 else range(0)
        assert {layer for layer, _ in stretch.skips} == set(wanted)
        assert stretch.until is None or stretch.until > place
        for later in range(place, 40 if stretch.until is None else stretch.until):
            assert opened.at(later).skips == stretch.skips
    assert opened.at(4).skips == RUNS_ALL != opened.at(20).skips
    assert opened.at(20).until is None


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_it_says_what_rows_of_that_depth_say(checkpoint: Path, number: int) -> None:
    """Alone, beside others, and with the steps that are kept."""
    expected, _ = one_by_one(checkpoint, PROMPTS[number], TOKENS)
    assert answers(engine(checkpoint), request("0", PROMPTS[number], ASK))["0"][0] == expected
    both = engine(checkpoint)
    found = answers(
        both,
        request("0", PROMPTS[number], ASK, logprobs=None),
        request("1", PROMPTS[0], logprobs=None),
        request("2", PROMPTS[1], {"least": 0.5, "over": 4}, logprobs=None),
    )
    assert found["0"][0] == expected
    plain = answers(engine(checkpoint), request("1", PROMPTS[0], logprobs=None))
    assert found["1"][0] == plain["1"][0]
    assert plain["1"][0] != expected or number


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 4},
        {"kv_cache_memory_bytes": 40_000},
        {"speculative_config": {"method": "copying", "adaptive": False}},
        {"speculative_config": {"method": "skip", "adaptive": False}},
    ],
    ids=["chunks", "preemption", "drafts", "drafts of its own layers"],
)
def test_how_it_is_computed_changes_no_bit(checkpoint: Path, settings: dict[str, Any]) -> None:
    params: dict[str, Any] = {"max_tokens": 40}
    if "speculative_config" in settings:
        params["logprobs"] = None
    prompts = [*PROMPTS, [7, 8, 9, 10] * 6]
    wanted = [request(str(i), p, ASK if i % 2 else None, **params) for i, p in enumerate(prompts)]
    under_test = engine(checkpoint, **settings)
    found = answers(under_test, *wanted)
    for each in wanted:
        alone = answers(engine(checkpoint), each)[each.request_id]
        assert found[each.request_id][:2] == alone[:2]
    if "kv_cache_memory_bytes" in settings:
        assert under_test.total.wasted["preemption"].tokens > 0
    if "speculative_config" in settings:
        [name] = [settings["speculative_config"]["method"]]
        assert under_test.total.saved[name].tokens > 0


@pytest.mark.parametrize("params", [{"n": 3, "temperature": 1.0, "seed": 3}], ids=["choices"])
def test_choices_share_the_prompt(checkpoint: Path, params: dict[str, Any]) -> None:
    found = answers(engine(checkpoint), request("0", PROMPTS[2], ASK, **params))["0"]
    again = answers(
        engine(checkpoint, max_num_batched_tokens=5),
        request("1", PROMPTS[0]),
        request("0", PROMPTS[2], ASK, **params),
    )["0"]
    assert sorted(found[0]) == sorted(again[0])


@pytest.mark.parametrize("kept_step", [True, False], ids=["kept step", "plain path"])
def test_the_ledger_books_what_ran(checkpoint: Path, kept_step: bool) -> None:
    params: dict[str, Any] = {"logprobs": None if kept_step else 2}
    under_test = engine(checkpoint)
    found = answers(
        under_test,
        request("0", PROMPTS[0], ASK, **params),
        request("1", PROMPTS[1], **params),
    )
    cost, prompt = under_test.cost, len(PROMPTS[0])
    alone = answers(engine(checkpoint), request("0", PROMPTS[0], ASK, **params))["0"][2]
    flops = cost.row_flops(1, prompt, 1)
    nbytes = cost.weight_bytes(prompt, 1)
    read, written = cost.state_read_bytes(1, prompt), cost.state_written_bytes(prompt)
    for generated in range(TOKENS - 1):
        skips = {(n, part) for n in skipped_at(generated) for part in ("attention", "feed_forward")}
        own = cost.without(frozenset(skips))
        flops += own.row_flops(prompt + generated + 1, 1, 1)
        nbytes += own.weight_bytes(1, 1)
        read += own.state_read_bytes(prompt + generated + 1, 1)
        written += own.state_written_bytes(1)
    assert alone.flops == found["0"][2].flops == flops
    assert alone.weight_bytes == nbytes
    assert alone.state_read_bytes == found["0"][2].state_read_bytes == read
    assert alone.state_written_bytes == found["0"][2].state_written_bytes == written
    full = answers(engine(checkpoint), request("0", PROMPTS[0], **params))["0"][2]
    assert alone.flops + alone.saved["skip_decode"].flops == full.flops
    moved = [b.weight_bytes + b.state_read_bytes + b.state_written_bytes for b in (alone, full)]
    assert moved[0] + alone.saved["skip_decode"].bytes == moved[1]
    for field in ("rows", "flops", "weight_bytes", "state_read_bytes", "state_written_bytes"):
        assert sum(getattr(bill, field) for *_, bill in found.values()) == getattr(
            under_test.total, field
        )
    assert "skip_decode" not in found["1"][2].saved


def test_rows_that_are_computed_again_cost_what_they_cost_before(checkpoint: Path) -> None:
    """A preempted text is computed again in chunks whose rows have different depths."""
    settings: dict[str, Any] = {"enable_prefix_caching": False}
    tight = engine(checkpoint, kv_cache_memory_bytes=40_000, **settings)
    wanted = [request(str(i), PROMPTS[i], ASK, max_tokens=40) for i in range(3)]
    found = answers(tight, *wanted)
    assert tight.total.wasted["preemption"].flops > 0
    for each in wanted:
        alone: Ledger = answers(engine(checkpoint), each)[each.request_id][2]
        bill: Ledger = found[each.request_id][2]
        wasted = bill.wasted.get("preemption")
        assert bill.flops == alone.flops + (wasted.flops if wasted else 0)


def test_prompts_are_everybodys_and_what_follows_is_nobodys(checkpoint: Path) -> None:
    whole = engine(checkpoint, enable_prefix_caching=True)
    prompt = PROMPTS[2] * 4
    gated = answers(whole, request("0", prompt, ASK))["0"]
    plain = answers(whole, request("1", prompt))["1"]
    assert plain[2].prompt_tokens_reused == len(prompt) - 1
    assert plain[:2] == answers(engine(checkpoint), request("1", prompt))["1"][:2]
    assert gated[:2] != plain[:2]
    longer, fresh = prompt + gated[0], engine(checkpoint)
    answers(fresh, request("0", prompt, ASK))
    after = answers(fresh, request("2", longer, ASK))["2"]
    assert after[2].prompt_tokens_reused <= len(prompt)
    assert after[:2] == answers(engine(checkpoint), request("2", longer, ASK))["2"][:2]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"least": 0.0}, "0 < least <= most <= 1"),
        ({"least": 0.9, "most": 0.5}, "got 0.9 and 0.5"),
        ({"over": 0}, "a number of tokens from 1"),
        ({"warm_up": -1}, "a number of layers, 0 or more"),
        ({"warm_up": LAYERS}, f"warm_up is {LAYERS}, but the model has {LAYERS} layers"),
    ],
    ids=["none", "rising", "at once", "below 0", "all"],
)
def test_what_does_not_fit_is_refused(checkpoint: Path, ask: dict[str, Any], words: str) -> None:
    whole = engine(checkpoint)
    with pytest.raises(InvalidRequest, match=words):
        whole.take(request("0", PROMPTS[0], ask))
    assert answers(whole, request("1", PROMPTS[1]))["1"][0]
    setting = ",".join(f"{name}={value}" for name, value in ask.items())
    with pytest.raises(ConfigError, match=words):
        engine(checkpoint, gate=f"skip_decode:{setting}")


def test_a_pattern_beside_it_is_refused(checkpoint: Path) -> None:
    whole, asking = engine(checkpoint), request("0", PROMPTS[0], ASK)
    asking.asks = {**asking.asks, **make_asks({"pattern/streaming": True})}
    with pytest.raises(InvalidRequest, match="leave one of the two out"):
        whole.take(asking)


class GoingBack(SearchState):
    """Once the first branch has said 12 tokens, another goes on from its first 4."""

    width: ClassVar[int] = 2

    def __init__(self, problem: Problem) -> None:
        self._forked = False

    def after(self, branches: Mapping[int, Branch]) -> Many[Action | Finish]:
        if not self._forked and len(branches[0].tokens) >= 12:
            self._forked = True
            return [Fork(0, 1, tokens=4)]
        if all(branch.finish_reason is not None for branch in branches.values()):
            return [Finish([0, 1])]
        return []


def test_a_branch_may_go_back_to_an_earlier_place(checkpoint: Path) -> None:
    """Its rows have the depths of their places, so that it says the same again."""
    expected, _ = one_by_one(checkpoint, PROMPTS[0], TOKENS)
    under_test = engine(checkpoint)
    let_search(under_test, {"0": GoingBack})
    under_test.take(request("0", PROMPTS[0], ASK, logprobs=None, n=2))
    said: dict[int, list[int]] = {}
    while under_test.has_work:
        for delta in under_test.step():
            said[delta.index] = said.get(delta.index, []) + delta.token_ids
    assert said == {0: expected, 1: expected}
    under_test.check_integrity()


class Deepening(SequenceGate):
    """Runs an attention again that earlier rows skipped: there are no keys."""

    skips = RUNS_ALL
    observes: ClassVar[bool] = False

    def at(self, place: int) -> Stretch:
        skipped = frozenset({(1, ATTENTION)})
        return Stretch(skipped, 4) if place < 4 else Stretch(RUNS_ALL, None)


def test_a_gate_that_looks_for_keys_that_are_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention of layer 1 at place 4.*no keys there"):
        gates._check_order("deepening", Deepening())
