"""Prompts that share text: requests, slots of llama.cpp's server, the protocol, the page."""

import pytest

from benchmarks.peers.figures import Figures
from benchmarks.peers.peers import CONFIGURATIONS
from benchmarks.peers.process import WorkerError
from benchmarks.peers.report import report
from benchmarks.peers.rounds import serve_returning
from benchmarks.peers.shared import requests, warm_requests
from benchmarks.peers.workers.slots import Slots
from benchmarks.peers.workloads import WORKLOADS, Returning, takes_part
from tests.helpers.peers import LIMITS, SESSION

WORKLOAD = {each.name: each for each in WORKLOADS}
CONFIGURATION = {each.name: each for each in CONFIGURATIONS}


def shared(one, other):
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def test_a_chat_continues_itself_and_shares_a_thousand_tokens_with_another():
    first, second, other, _ = (prompt for prompt, _ in requests(WORKLOAD["chat"], 3))
    assert second[: len(first)] == first
    assert len(second) > len(first)
    assert 990 <= shared(first, other) < len(other)


@pytest.mark.parametrize("kind", ["chat", "agents", "documents", "batch"])
def test_with_and_without_reuse_the_same_is_asked_and_each_seed_asks_something_else(kind):
    with_reuse, without = WORKLOAD[kind], WORKLOAD[f"{kind}-anew"]
    assert (with_reuse.reuse, without.reuse) == (True, False)
    asked = requests(with_reuse, 1)
    assert asked == requests(without, 1) != requests(with_reuse, 2)
    assert {token in range(3, 32000) for prompt, _ in asked for token in prompt} == {True}


def test_new_tokens_come_in_turn_alone_and_after_the_same_system_prompt():
    warm = WORKLOAD["warm"]
    prompts = [prompt for prompt, _ in warm_requests(warm, 0)]
    alone, after = prompts[1::2], prompts[::2]
    assert len(alone) == len(after) - 1 == warm.pairs
    assert {len(prompt) for prompt in alone} == {warm.new_prompt_tokens}
    assert {tuple(prompt[: warm.system_tokens]) for prompt in after} == {
        tuple(after[0][: warm.system_tokens])
    }
    questions = alone + [prompt[warm.system_tokens :] for prompt in after]
    assert {len(question) for question in questions} == {warm.new_prompt_tokens}
    assert len({question[0] for question in questions}) == len(questions)


def test_only_engines_that_reuse_take_part_at_one_precision():
    names = [each.name for each in CONFIGURATIONS if takes_part(each, WORKLOAD["chat"])]
    assert names == ["ockham-int8", "llamacpp-Q8_0", "openvino-int8"]
    assert all(takes_part(each, WORKLOAD["mixed"]) for each in CONFIGURATIONS)


def test_a_slot_that_holds_the_beginning_is_taken_and_the_rest_of_it_dropped():
    dropped = []
    slots = Slots(2, True, lambda *what: dropped.append(what))
    assert slots.take([1, 2, 3, 4]) == (0, 0)
    slots.give_back(0, [1, 2, 3, 4, 5])
    assert slots.take([1, 2, 9]) == (0, 2)
    slots.give_back(0, [1, 2, 9])
    assert slots.take([7, 8]) == (1, 0)  # free for longer than the other
    assert slots.take([1, 2, 9]) == (0, 2)  # the last token is computed for its logits
    assert dropped == [(0, 0), (0, 2), (1, 0), (0, 2)]


def test_a_slot_that_holds_a_tenth_or_less_is_not_preferred():
    slots = Slots(2, True, lambda *_: None)
    taken = [slots.take(list(range(start, start + 20)))[0] for start in (100, 200)]
    for slot, start in zip(taken, (100, 200), strict=True):
        slots.give_back(slot, list(range(start, start + 20)))
    assert slots.take([200, 201, *range(300, 318)]) == (0, 0)


def test_slots_without_reuse_hold_nothing():
    slots = Slots(1, False, lambda *_: None)
    for _ in range(2):
        assert slots.take([1, 2, 3]) == (0, 0)
        slots.give_back(0, [1, 2, 3])


def test_a_worker_serves_a_workload_and_its_waits_are_recorded(start):
    chat = WORKLOAD["chat"]
    record = serve_returning(start("reuses"), chat, 0)
    asked = requests(chat, 0)
    assert record["tokens"] == sum(new_tokens for _, new_tokens in asked)
    assert record["prompt_tokens"] == sum(len(prompt) for prompt, _ in asked)
    assert len(record["first_token_s"]) == len(asked)
    assert 0 < sum(record["first_token_s"]) <= record["seconds"]


def test_a_worker_that_stops_early_or_cannot_reuse_is_told(start):
    with pytest.raises(WorkerError, match="were asked for"):
        start("reuses and stops early").returning([([1, 2], 5)], 1, True)
    with pytest.raises(WorkerError, match="keeps nothing from one request to the next"):
        start("works").returning([([1, 2], 5)], 1, True)


def run(round_, configuration, workload, seconds, waits):
    return {
        "kind": "run",
        "round": round_,
        "workload": workload,
        "configuration": configuration,
        "tokens": 60,
        "prompt_tokens": 900,
        "seconds": seconds,
        "first_token_s": waits,
        "limits": LIMITS,
        "others_share": 0.0,
    }


def test_the_page_compares_waits_and_rates_with_and_without_reuse():
    records = [SESSION]
    for round_ in range(3):
        for name, slower in (("ockham-int8", 1), ("openvino-int8", 2)):
            records.append(run(round_, name, "chat", 2.0 * slower, [0.1 * slower] * 3))
            records.append(run(round_, name, "chat-anew", 6.0 * slower, [0.9 * slower] * 3))
    page = report(records)
    assert "| Ockham int8 | 0.10 s | 0.90 s | 30.0 | 10.0 | 1 | 1 |" in page
    ratio = "2.00 (2.00 to 2.00; 3)"
    assert f"| OpenVINO GenAI int8 | 0.20 s | 1.80 s | 15.0 | 5.0 | {ratio} | {ratio} |" in page
    assert "- llama.cpp Q8_0, not measured (or not undisturbed): every workload" in page


def test_what_was_not_measured_anew_is_said():
    page = report([SESSION, run(0, "ockham-int8", "agents", 2.0, [0.1])])
    assert "| Ockham int8 | 0.10 s | not measured | 30.0 | not measured | 1 |  |" in page


@pytest.mark.parametrize(("after_s", "missed"), [(0.11, False), (0.12, True)])
def test_a_warm_prompt_is_compared_with_the_new_tokens_alone(after_s, missed):
    waits = [3.0, *([0.1, after_s] * 3)]  # first the one that computes the system prompt
    records = [SESSION, *(run(each, "ockham-int8", "warm", 5.0, waits) for each in range(2))]
    ours = CONFIGURATION["ockham-int8"]
    assert Figures(records).median("warm", ours) == after_s
    page = report(records)
    ratio = f"{after_s / 0.1:.2f}"
    assert f"alone: int8 {ratio} ({ratio} to {ratio}; 2){' (missed)' * missed}." in page


def test_every_workload_of_this_kind_is_measured_both_ways():
    both = [each for each in WORKLOADS if isinstance(each, Returning)]
    assert len({(each.kind, each.reuse) for each in both}) == len(both) == 8
