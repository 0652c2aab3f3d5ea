"""Rows that run some of a feed-forward's neurons: the same bits in any company, and the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest, ModelError
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.model.checkpoint.gate_files import WidthRouters, read_routers, write_routers
from tests.gate.test_skip_layers import answers
from tests.helpers.tiny import tiny_llama, tiny_mixtral

LAYERS, HIDDEN, NEURONS = 4, 32, 64
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6]]
COUNTED = ("rows", "flops", "weight_bytes", "state_read_bytes", "state_written_bytes")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": HIDDEN, "intermediate_size": NEURONS}
    tiny_llama(directory, num_hidden_layers=LAYERS, **sizes)
    return directory


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Routers with random weights, whose rows choose all, some or none."""
    directory = tmp_path_factory.mktemp("router")
    rng = np.random.default_rng(3)
    routers = WidthRouters(
        np.tile(np.array([0, 16, NEURONS], np.int32), (LAYERS, 1)),
        rng.normal(size=(LAYERS, 3, HIDDEN)).astype(np.float32),
        np.zeros((LAYERS, 3), np.float32),
        {"target": "tiny"},
    )
    write_routers(directory, routers)
    return directory


def engine(path: Path, **settings: Any) -> Engine:
    fields = {"skip_tokenizer_init": True, "speculative_config": "none", "dtype": "bfloat16"}
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


WHOLE = {"gate/whole": True}
ROUTED = {"gate/adaptive_width": True}
HALF = {"gate/adaptive_width": {"share": 0.5}}


def test_files_hold_what_was_written(router: Path) -> None:
    found = read_routers(router)
    assert found.widths.tolist() == [[0, 16, NEURONS]] * LAYERS
    assert found.trained == {"target": "tiny"}
    (router / "gate.json").rename(router / "other.json")
    try:
        with pytest.raises(ModelError, match=r"name a directory that `ockham train gate` wrote"):
            read_routers(router)
    finally:
        (router / "other.json").rename(router / "gate.json")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 4},
        {"kv_cache_memory_bytes": 30_000},
        {"speculative_config": {"method": "copying", "adaptive": False}},
    ],
    ids=["together", "chunks", "preemption", "drafts"],
)
def test_how_it_is_computed_changes_no_bit(
    checkpoint: Path, router: Path, settings: dict[str, Any]
) -> None:
    """Rows of one step choose by routers, run a half, or run everything."""
    gate = f"adaptive_width:router={router}"
    params: dict[str, Any] = {"max_tokens": 40}
    if "speculative_config" in settings:
        params["logprobs"] = None
    prompts = [*PROMPTS, [7, 8, 9, 10] * 6]
    asks = [ROUTED, WHOLE, HALF, None]
    wanted = [request(str(i), prompts[i], asks[i], **params) for i in range(4)]
    under_test = engine(checkpoint, gate=gate, **settings)
    found = answers(under_test, *wanted)
    for each in wanted:
        alone = answers(engine(checkpoint, gate=gate), each)[each.request_id]
        assert found[each.request_id][:2] == alone[:2]
    plain = answers(engine(checkpoint), request("1", PROMPTS[1], **params))["1"]
    assert found["1"][:2] == plain[:2]
    if "kv_cache_memory_bytes" in settings:
        assert under_test.total.wasted["preemption"].tokens > 0


def test_the_ledger_books_what_ran(checkpoint: Path, router: Path) -> None:
    gate = f"adaptive_width:router={router}"
    totals = []
    for logprobs in (None, 2):
        under_test = engine(checkpoint, gate=gate)
        found = answers(
            under_test,
            request("0", PROMPTS[0], ROUTED, logprobs=logprobs),
            request("1", PROMPTS[1], WHOLE, logprobs=logprobs),
            request("2", PROMPTS[2], HALF, logprobs=logprobs),
        )
        for field in COUNTED:
            assert sum(getattr(bill, field) for *_, bill in found.values()) == getattr(
                under_test.total, field
            )
        bills = [found[name][2] for name in "012"]
        totals.append(
            [(bill.saved, *(getattr(bill, field) for field in COUNTED)) for bill in bills]
        )
    assert totals[0] == totals[1]
    for ask in (ROUTED, HALF):
        whole = answers(engine(checkpoint), request("0", PROMPTS[0]))["0"][2]
        bill = answers(engine(checkpoint, gate=gate), request("0", PROMPTS[0], ask))["0"][2]
        saved = bill.saved["adaptive_width"]
        assert bill.flops + saved.flops == whole.flops
        assert bill.weight_bytes + saved.bytes == whole.weight_bytes
        assert saved.flops > 0


def test_half_of_the_neurons_cost_half(checkpoint: Path) -> None:
    under_test = engine(checkpoint)
    bill = answers(under_test, request("0", PROMPTS[0], HALF))["0"][2]
    cost, prompt, steps = under_test.cost, len(PROMPTS[0]), 23
    inner = [cost.only((layer, "feed_forward")) for layer in range(LAYERS)]
    flops = cost.row_flops(1, prompt, 1) + sum(
        cost.row_flops(prompt + 1 + n, 1, 1) for n in range(steps)
    )
    assert bill.flops == flops - (prompt + steps) * sum(each.linear_flops for each in inner) // 2


def test_what_is_asked_is_part_of_the_states_key(checkpoint: Path, router: Path) -> None:
    whole = engine(checkpoint, gate=f"adaptive_width:router={router}")
    prompt = PROMPTS[2] * 4
    asks = [ROUTED, HALF, {"gate/adaptive_width": {"price": 9.0}}, ROUTED, HALF]
    bills = [
        answers(whole, request(str(number), prompt, ask))[str(number)]
        for number, ask in enumerate(asks)
    ]
    assert [bill[2].prompt_tokens_reused for bill in bills] == [0, 0, 0, *[len(prompt) - 1] * 2]
    assert bills[0][:2] == bills[3][:2]
    assert bills[1][:2] == bills[4][:2]
    cheap = [bill[2].saved["adaptive_width"].flops for bill in bills[:3]]
    assert cheap[2] > cheap[0]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"share": 1.5}, "a share of the neurons, from 0 to 1; got 1.5"),
        ({"price": 1e9}, "price is a number from"),
    ],
    ids=["share", "price"],
)
def test_what_does_not_fit_is_refused(checkpoint: Path, ask: dict[str, Any], words: str) -> None:
    whole = engine(checkpoint)
    with pytest.raises(InvalidRequest, match=words):
        whole.take(request("0", PROMPTS[0], {"gate/adaptive_width": ask}))
    with pytest.raises(InvalidRequest, match="first is the number of a token"):
        make_asks({"gate/adaptive_width": {"first": -1}})


def test_routers_of_another_model_are_refused(router: Path, tmp_path: Path) -> None:
    tiny_llama(tmp_path, num_hidden_layers=LAYERS + 1, hidden_size=HIDDEN)
    with pytest.raises(ConfigError, match=f"are for {LAYERS} layers of width {HIDDEN}"):
        engine(tmp_path, gate=f"adaptive_width:router={router}")
    with pytest.raises((ConfigError, ModelError), match="ockham train gate"):
        engine(tmp_path, gate=f"adaptive_width:router={tmp_path}")


def test_a_model_of_experts_alone_has_nothing_to_choose(tmp_path: Path) -> None:
    tiny_mixtral(tmp_path)
    experts = engine(tmp_path)
    with pytest.raises(InvalidRequest, match="no feed-forward of the model has neurons"):
        experts.take(request("0", PROMPTS[0], HALF))
