"""A mailbox holds at most one delta a choice, and what is read adds up to what was put."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ockham.core.ledger import Ledger
from ockham.core.outputs import Logprob
from ockham.engine.mailbox import Mailbox
from ockham.engine.messages import Delta, Refused, Stats, merge, merged


def test_two_deltas_of_a_choice_become_one():
    mailbox = Mailbox()
    entry = {5: Logprob(-0.5, 1)}
    mailbox.put([Delta("a", 0, token_ids=[5], text="x", logprobs=[entry])])
    mailbox.put([Delta("a", 0, token_ids=[6], text="y", logprobs=[entry], finish_reason="stop")])
    (delta,) = mailbox.take()
    assert delta == Delta("a", 0, [5, 6], "xy", [entry, entry], finish_reason="stop")


def test_deltas_of_other_choices_and_requests_stay_apart():
    mailbox = Mailbox()
    mailbox.put([Delta("a", 0), Delta("a", 1), Delta("b", 0)])
    assert len(mailbox.take()) == 3


def test_what_is_taken_is_gone():
    mailbox = Mailbox()
    mailbox.put([Delta("a", 0)])
    mailbox.take()
    assert mailbox.take() == []


def test_the_last_delta_of_a_request_is_the_last_to_be_read():
    mailbox = Mailbox()
    mailbox.put([Delta("a", 1, text="x"), Delta("a", 0, text="y")])
    mailbox.put([Delta("a", 1, text="z", finished=True, ledger=Ledger(rows=1))])
    assert [delta.index for delta in mailbox.take()] == [0, 1]


def test_only_the_newest_statistics_wait():
    mailbox = Mailbox()
    mailbox.put([Stats(steps=1), Stats(steps=2)])
    assert mailbox.take() == [Stats(steps=2)]


def test_refusals_of_two_requests_both_wait():
    mailbox = Mailbox()
    mailbox.put([Refused("a", "no", 400), Refused("b", "no", 400)])
    assert len(mailbox.take()) == 2


def test_prompt_logprobs_and_stop_reasons_survive_a_merge():
    mailbox = Mailbox()
    mailbox.put([Delta("a", 0, prompt_logprobs=[None])])
    mailbox.put([Delta("a", 0, finish_reason="stop", stop_reason=0)])
    (delta,) = mailbox.take()
    assert (delta.prompt_logprobs, delta.stop_reason) == ([None], 0)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=40),
    st.sets(st.integers(0, 40)),
)
def test_however_it_is_read_nothing_is_lost_or_reordered(tokens, reads):
    mailbox = Mailbox()
    read: dict[int, list[int]] = {}

    def take():
        for delta in mailbox.take():
            read.setdefault(delta.index, []).extend(delta.token_ids)

    for at, (index, token) in enumerate(tokens):
        mailbox.put([Delta("a", index, token_ids=[token])])
        assert len(mailbox) <= 3
        if at in reads:
            take()
    take()
    for index in {index for index, _ in tokens}:
        assert read[index] == [token for i, token in tokens if i == index]


def test_merged_deltas_keep_the_marks_of_drafted_tokens() -> None:
    plain = Delta("r", 0, [1, 2])
    marked = Delta("r", 0, [3, 4], drafted=[True, False])
    assert merge(plain, marked).drafted == [False, False, True, False]
    assert merge(marked, plain).drafted == [True, False, False, False]
    assert merge(plain, plain).drafted == []
    (found,) = merged([marked, plain])
    assert found.drafted == [True, False, False, False]
