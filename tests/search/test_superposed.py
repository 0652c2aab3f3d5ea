"""Several completions from one pass: their bookkeeping, and what they are worth."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.arrays import Floats
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import OwnRows, Seen
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.search.superposed import LONGEST, Drafts, Runs
from tests.helpers import serving
from tests.helpers.tiny import tiny_llama

VOCABULARY = 97


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("target"), vocab_size=VOCABULARY)


make_engine = partial(serving.make_engine, max_model_len=200, block_size=4)


def request(name: str, prompt: list[int], **params: Any) -> Request:
    values = {"n": 3, "temperature": 0.0, "superposed": True, "max_tokens": 12, **params}
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**values),
        detokenize=False,
    )


def run(engine: Engine) -> dict[str, dict[int, Delta]]:
    found: dict[str, dict[int, Delta]] = {}
    while engine.has_work:
        for delta in engine.step():
            choices = found.setdefault(delta.request_id, {})
            if delta.index in choices:
                before = choices[delta.index]
                delta.token_ids = before.token_ids + delta.token_ids
            choices[delta.index] = delta
        engine.check_integrity()
    return found


PROMPT = [(5 * i) % VOCABULARY for i in range(30)]


def test_all_choices_come_from_one_row_a_step(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    engine.add(request("a", PROMPT, ignore_eos=True))
    (choices,) = run(engine).values()
    assert sorted(choices) == [0, 1, 2]
    assert all(len(delta.token_ids) == 12 for delta in choices.values())
    assert len({tuple(delta.token_ids) for delta in choices.values()}) == 3
    assert all(delta.finish_reason == "length" for delta in choices.values())
    (ledger,) = [delta.ledger for delta in choices.values() if delta.ledger is not None]
    assert ledger.rows == len(PROMPT) + 11
    assert ledger.generated_tokens == 36
    assert ledger.saved["superposed"].tokens == 2 * 11
    assert engine.stats().pages_used == 0


def test_its_bits_depend_on_nothing_beside_it(checkpoint: Path) -> None:
    """Preempted, chunked, beside others and after a cached prompt: the same choices."""
    alone = make_engine(checkpoint, reuse="none")
    alone.add(request("a", PROMPT, ignore_eos=True))
    expected = {i: delta.token_ids for i, delta in run(alone)["a"].items()}
    crowded = make_engine(checkpoint, max_num_batched_tokens=8)
    plain = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.0)
    for name in ("before", "beside"):
        crowded.add(Request(request_id=name, prompt_token_ids=PROMPT, params=plain))
        if name == "before":
            run(crowded)
    crowded.add(request("a", PROMPT, ignore_eos=True))
    deltas = []
    for _ in range(9):
        deltas += crowded.step()
    (sequence,) = [s for s in crowded.scheduler.running if s.request_id == "a"]
    assert sequence.inputs
    crowded.scheduler.preempt(sequence)
    found = {i: delta.token_ids for i, delta in run(crowded)["a"].items()}
    assert found == expected
    # What it left behind is its prompt alone: no other goes on from what it computed after that.
    crowded.add(request("again", PROMPT, ignore_eos=True))
    assert {i: delta.token_ids for i, delta in run(crowded)["again"].items()} == expected


def test_a_choice_ends_where_it_stops(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    engine.add(request("a", PROMPT, ignore_eos=True))
    free = run(engine)["a"]
    stop = free[0].token_ids[4]
    engine.add(request("b", PROMPT, ignore_eos=True, stop_token_ids=[stop]))
    choices = run(engine)["b"]
    assert sorted(choices) == [0, 1, 2]
    for delta in choices.values():
        if delta.finish_reason == "stop":
            assert delta.token_ids.index(stop) == len(delta.token_ids) - 1
        else:
            assert stop not in delta.token_ids
            assert len(delta.token_ids) == 12
    assert any(delta.finish_reason == "stop" for delta in choices.values())


def test_one_that_is_given_up_frees_its_state(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    engine.add(request("a", PROMPT))
    for _ in range(4):
        engine.step()
    deltas = engine.abort("a")
    assert deltas[-1].finished
    assert not engine.has_work
    assert engine.stats().pages_used == 0


def test_it_cannot_be_moved(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    engine.add(request("a", PROMPT))
    engine.step()
    with pytest.raises(InvalidRequest, match="cannot be moved"):
        engine.export_request("a")
    assert run(engine)["a"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 1}, "n of at least 2"),
        ({"temperature": 0.5}, "temperature 0"),
        ({"logprobs": 2}, "have no logprobs"),
        ({"repetition_penalty": 1.1}, "have no repetition_penalty"),
    ],
)
def test_what_it_cannot_have_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        request("a", PROMPT, **params)


def go_on(drafts: Drafts, logits: Floats) -> list[tuple[int, float]]:
    row, none = np.zeros(1, np.int32), np.empty((0, 0), np.int32)
    drafts.saw(OwnRows(row, row, 1), Seen(False, row, none, logits[None], {}, {}))
    return drafts.go_on()


def test_without_runs_the_drafts_are_the_likeliest_products() -> None:
    """With nothing read, k drafts are those of all products of the tokens' chances."""
    rng = np.random.default_rng(0)
    drafts = Drafts(3, [], Runs(), frozenset())
    rows = [rng.standard_normal(9).astype(np.float32) for _ in range(3)]
    for row in rows:
        tokens = go_on(drafts, row)
        assert sum(weight for _, weight in tokens) == pytest.approx(1.0)
    chances = [row - np.log(np.exp(row).sum()) for row in rows]
    every = product(range(9), repeat=3)
    ranked = sorted(every, key=lambda path: -sum(c[t] for c, t in zip(chances, path, strict=True)))
    assert [tuple(draft) for draft in drafts.drafts] == ranked[:3]


def test_runs_keep_apart_what_belongs_apart() -> None:
    """Two beginnings that were read with different ends are not crossed, though the model gives
    both ends the same chance after their sum."""
    runs = Runs()
    runs.read(np.array([1, 10, 11, 12, 2, 20, 21, 22] * 3, np.int32))
    drafts = Drafts(2, [3], runs, frozenset())
    for pair in ((10, 20), (11, 21), (12, 22)):
        logits = np.zeros(30, np.float32)
        logits[list(pair)] = 5.0
        go_on(drafts, logits)
    assert sorted(drafts.drafts) == [[10, 11, 12], [20, 21, 22]]


def test_shares_are_those_of_the_counts() -> None:
    text = [1, 2, 3, 1, 2, 4, 1, 2, 3]
    runs = Runs()
    runs.read(np.array(text, np.int32))
    runs.read(np.array(text, np.int32))  # a second time changes nothing
    shares = runs.shares([9, 1, 2], [3, 4])
    assert shares is not None
    # After (2,) and after (1, 2): 3 twice, 4 once; after (9, 1, 2) nothing.
    assert shares.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert runs.shares([7], [3]) is None
    assert LONGEST > 3


def test_what_was_read_first_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ockham.search.superposed._MOST_TOKENS", 10)
    runs = Runs()
    for first in (10, 20, 30):
        runs.read(np.arange(first, first + 4, dtype=np.int32))
    assert runs.shares([10], [11]) is None
    assert runs.shares([20], [21]) is not None
