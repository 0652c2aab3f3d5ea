"""Rows that run a model's middle layers as often as they decide: cells, bits and the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.engine.test_decoding import drain
from tests.helpers.tiny import tiny_llama, tiny_recursive

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], list(range(90, 20, -1))]
COUNTED = ("rows", "flops", "weight_bytes", "state_read_bytes", "state_written_bytes")
FIXED = [{"gate/recursions": {"depth": depth}} for depth in (1, 2, 3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recursive(tmp_path_factory.mktemp("recursive"))


def engine(path: Path, **settings: Any) -> Engine:
    fields = {"skip_tokenizer_init": True, "dtype": "bfloat16", "max_model_len": 128}
    return Engine(EngineConfig(model=str(path), **{**fields, **settings}))


def request(name: str, prompt: list[int], ask: Any = None, **params: Any) -> Request:
    fields = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "logprobs": 2}
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**fields, **params}),
        detokenize=False,
        asks={} if ask is None else make_asks(ask),
    )


Answers = dict[tuple[str, int], tuple[list[int], list[Any]]]


def answers(made: Engine, requests: list[Request], preempt: tuple[int, ...] = ()) -> Answers:
    """The tokens and log probabilities of each choice. In the steps `preempt` the sequence that
    came last gives up its state."""
    for each in requests:
        made.take(each)
    found: Answers = {}
    step = 0
    while made.has_work:
        for delta in made.step():
            tokens, scores = found.setdefault((delta.request_id, delta.index), ([], []))
            tokens += delta.token_ids
            scores += delta.logprobs or []
        if step in preempt:
            made.scheduler.preempt(made.scheduler.running[-1])
        made.check_integrity()
        step += 1
    return found


def test_rows_say_the_same_in_any_company_and_any_chunks(checkpoint: Path) -> None:
    asks = [None, *FIXED, {"gate/recursions": {"threshold": 0.7}}]
    requests = [
        request(f"{n}-{m}", prompt, ask)
        for n, prompt in enumerate(PROMPTS)
        for m, ask in enumerate(asks)
    ]
    alone = {}
    for each in requests:
        alone |= answers(engine(checkpoint), [each])
    for rows in (1, 7, 64):
        found = answers(engine(checkpoint, max_num_batched_tokens=rows), requests)
        assert found == alone


def test_only_rows_that_take_a_pass_have_cells_there(checkpoint: Path) -> None:
    made = engine(checkpoint)
    made.take(request("0", PROMPTS[2]))
    made.step()
    [sequence] = made.scheduler.running
    assert sequence.view is not None
    first, second, third = (held.length for held in sequence.view.groups)
    assert first == len(PROMPTS[2])
    assert 0 < third < second < first
    assert sequence.view.groups[1].written is not None
    assert set(sequence.view.groups[2].written or ()) < set(sequence.view.groups[1].written)
    made.check_integrity()
    pages = made.state.pools[2].page_tokens
    assert sequence.view.groups[2].pages == -(-third // pages)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_fixed_depth_holds_for_every_row(checkpoint: Path, depth: int) -> None:
    made = engine(checkpoint, gate=f"recursions:depth={depth}")
    made.take(request("0", PROMPTS[2]))
    made.step()
    [sequence] = made.scheduler.running
    assert sequence.view is not None
    lengths = [held.length for held in sequence.view.groups]
    assert lengths == [len(PROMPTS[2]) if n < depth else 0 for n in range(3)]


def test_a_preempted_sequence_says_the_same(checkpoint: Path) -> None:
    asked = request("0", PROMPTS[2], temperature=1.0, seed=3, n=2)
    expected = answers(engine(checkpoint), [asked])
    assert answers(engine(checkpoint), [asked], preempt=(3, 9, 20)) == expected


def test_the_bill_counts_what_ran(checkpoint: Path) -> None:
    """A depth of all passes costs the most, one the least, and all is booked."""
    bills = {}
    for number, ask in enumerate([*FIXED, None]):
        made = engine(checkpoint)
        made.take(request("0", PROMPTS[2], ask))
        bill = None
        while made.has_work:
            for delta in made.step():
                bill = delta.ledger or bill
        assert bill is not None
        for name in COUNTED:
            assert getattr(bill, name) == getattr(made.total, name)
        bills[number] = bill
    one, two, three, routed = (bills[n] for n in range(4))
    for name in COUNTED[1:]:
        assert getattr(one, name) < getattr(two, name) < getattr(three, name)
        assert getattr(one, name) < getattr(routed, name) < getattr(three, name)
    assert "passes" not in {k for k, saving in three.saved.items() if saving.flops}
    for cheaper in (one, two, routed):
        assert cheaper.flops + cheaper.saved["passes"].flops == three.flops


def test_a_decoding_that_goes_on_says_and_books_what_the_plain_path_does(checkpoint: Path) -> None:
    for block_size in (4, 16):
        kept, plain = (engine(checkpoint, block_size=block_size) for _ in range(2))
        plain.attach(next(iter(plain.model.program.breakpoints)), lambda run: None)
        later = {"gate/recursions": {"depth": 1, "first": 80}}
        for number, ask in enumerate([None, FIXED[1], later, None]):
            for each in (kept, plain):
                each.take(request(str(number), PROMPTS[number % 3], ask, logprobs=None))
        went_on = drain(kept, plain)
        assert went_on > 15
        kept.check_integrity()


def test_many_steps_are_booked_as_one_by_one(checkpoint: Path) -> None:
    bills = []
    for often in (True, False):
        made = engine(checkpoint)
        for number, prompt in enumerate(PROMPTS):
            made.take(request(str(number), prompt, logprobs=None))
        while made.has_work:
            made.step()
            if often:
                assert made.total.rows
        bills.append(made.total)
    assert all(getattr(bills[0], name) == getattr(bills[1], name) for name in COUNTED)
    assert bills[0].saved == bills[1].saved


def test_what_does_not_fit_such_a_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    made = engine(checkpoint)
    for ask, said in (
        ({"gate/recursions": {"depth": 4}}, r"depth is 4, but the model has 3 passes"),
        ({"gate/recursions": {"threshold": 1.0}}, r"a probability between 0 and 1"),
        ({"gate/skip_layers": {"layers": [1]}}, r"leaves out parts of layers"),
        ({"gate/adaptive_width": {"share": 0.5}}, r"leaves out parts of layers"),
        ({"keep/recent": {"window": 8}}, r"recent chooses among the cells of all tokens"),
        ({"pattern/streaming": {}}, r"streaming chooses among the cells of all tokens"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            made.take(request("0", PROMPTS[0], ask))
        assert not made.has_work
    for settings, said in (
        ({"speculative_config": "copying"}, r"copying drafts, and this model runs layers"),
        ({"reuse": "prefix,chunk"}, r"reuse 'chunk' puts state of other positions in place"),
        ({"keep": "recent"}, r"recent chooses among the cells of all tokens"),
        ({"gate": "recursions:depth=5"}, r"depth is 5, but the model has 3 passes"),
    ):
        with pytest.raises(ConfigError, match=said):
            engine(checkpoint, **settings)
    with pytest.raises(InvalidRequest, match=r"runs each of its layers once"):
        engine(tiny_llama(tmp_path)).take(request("0", PROMPTS[0], FIXED[0]))
