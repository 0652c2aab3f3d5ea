"""Feed-forwards that rows skip once one has changed little: the same bits in any company."""

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
from tests.gate.test_skip_layers import answers
from tests.helpers.tiny import tiny_llama

LAYERS = 8
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6]]
ASK = {"threshold": 0.97, "length": 2, "edge": 0.1, "full": 3}
TOKENS = 24
COUNTED = ("rows", "flops", "weight_bytes", "state_read_bytes", "state_written_bytes")


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
        asks={} if ask is None else make_asks({"gate/skip_feed_forward": ask}),
    )


def test_some_feed_forwards_are_skipped_and_others_beside_it_stay(checkpoint: Path) -> None:
    found = answers(engine(checkpoint), request("0", PROMPTS[0], ASK), request("1", PROMPTS[1]))
    alone = answers(engine(checkpoint), request("0", PROMPTS[0], ASK))["0"]
    plain = answers(engine(checkpoint), request("1", PROMPTS[1]))["1"]
    full = answers(engine(checkpoint), request("0", PROMPTS[0]))["0"]
    assert found["0"][:2] == alone[:2] != full[:2]
    assert found["1"][:2] == plain[:2]
    assert alone[0][: ASK["full"]] == full[0][: ASK["full"]]
    assert 0.02 < alone[2].saved["skip_feed_forward"].flops / full[2].flops < 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 4},
        {"kv_cache_memory_bytes": 50_000},
        {"speculative_config": {"method": "copying", "adaptive": False}},
        {"speculative_config": {"method": "skip", "adaptive": False}},
    ],
    ids=["chunks", "preemption", "drafts", "drafts of its own layers"],
)
@pytest.mark.parametrize("first", [None, 2], ids=["generated", "from a token on"])
def test_how_it_is_computed_changes_no_bit(
    checkpoint: Path, settings: dict[str, Any], first: int | None
) -> None:
    params: dict[str, Any] = {"max_tokens": 40}
    if "speculative_config" in settings:
        params["logprobs"] = None
    ask = ASK if first is None else {**ASK, "first": first}
    prompts = [*PROMPTS, [7, 8, 9, 10] * 6]
    wanted = [request(str(i), p, ask if i % 2 else None, **params) for i, p in enumerate(prompts)]
    under_test = engine(checkpoint, **settings)
    found = answers(under_test, *wanted)
    for each in wanted:
        alone = answers(engine(checkpoint), each)[each.request_id]
        assert found[each.request_id][:2] == alone[:2]
    if "kv_cache_memory_bytes" in settings:
        assert under_test.total.wasted["preemption"].tokens > 0
    if "speculative_config" in settings:
        assert under_test.total.saved[settings["speculative_config"]["method"]].tokens > 0


def test_the_ledger_books_what_ran(checkpoint: Path) -> None:
    """The kept step and the plain path book the same, and the shares are the steps' own totals."""
    prompts = dict(enumerate(PROMPTS))
    totals = []
    for logprobs in (None, 2):
        under_test = engine(checkpoint)
        found = answers(
            under_test,
            *(
                request(str(i), p, ASK if i else None, logprobs=logprobs)
                for i, p in prompts.items()
            ),
        )
        for field in COUNTED:
            assert sum(getattr(bill, field) for *_, bill in found.values()) == getattr(
                under_test.total, field
            )
        bills = [found[str(i)][2] for i in prompts]
        totals.append(
            [(bill.saved, *(getattr(bill, field) for field in COUNTED)) for bill in bills]
        )
    assert totals[0] == totals[1]
    for logprobs in (None, 2):
        plain = answers(engine(checkpoint), request("0", PROMPTS[0], logprobs=logprobs))["0"][2]
        gated = answers(engine(checkpoint), request("0", PROMPTS[0], ASK, logprobs=logprobs))["0"][
            2
        ]
        saved = gated.saved["skip_feed_forward"]
        assert gated.flops + saved.flops == plain.flops
        assert gated.weight_bytes + saved.bytes == plain.weight_bytes
        assert gated.state_read_bytes == plain.state_read_bytes


def test_what_all_rows_skip_is_not_read(checkpoint: Path) -> None:
    """A threshold that every row reaches: after each feed-forward of the middle two are skipped."""
    always = {**ASK, "threshold": -1.0, "full": 0}
    under_test = engine(checkpoint)
    bill = answers(under_test, request("0", PROMPTS[0], always))["0"][2]
    cost = under_test.cost
    # Of the layers 1 to 6, 1 and 4 run, and 0 and 7 always do.
    skipped = frozenset((layer, "feed_forward") for layer in (2, 3, 5, 6))
    prompt, steps = len(PROMPTS[0]), TOKENS - 1
    own = cost.without(skipped)
    assert bill.weight_bytes == cost.weight_bytes(prompt, 1) + steps * own.weight_bytes(1, 1)
    flops = sum(own.row_flops(prompt + 1 + n, 1, 1) for n in range(steps))
    assert bill.flops == cost.row_flops(1, prompt, 1) + flops


def test_prompts_are_everybodys_and_what_follows_is_nobodys(checkpoint: Path) -> None:
    whole = engine(checkpoint, enable_prefix_caching=True)
    prompt = PROMPTS[2] * 4
    gated = answers(whole, request("0", prompt, ASK))["0"]
    longer = prompt + gated[0]
    after = answers(whole, request("2", longer, ASK))["2"]
    assert after[2].prompt_tokens_reused == len(prompt)
    assert after[:2] == answers(engine(checkpoint), request("2", longer, ASK))["2"][:2]
    named = {**ASK, "first": 5}
    first = answers(whole, request("3", prompt, named))["3"]
    again = answers(whole, request("4", prompt, named))["4"]
    assert (first[2].prompt_tokens_reused, again[2].prompt_tokens_reused) == (0, len(prompt) - 1)
    assert first[:2] == again[:2]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"threshold": 1.5}, "a cosine from -1 to 1; got 1.5"),
        ({"length": 0}, "a number of feed-forwards from 1"),
        ({"edge": 0.5}, "a share of the layers below 0.5"),
        ({"full": -1}, "a number of tokens, 0 or more"),
    ],
    ids=["threshold", "length", "edge", "full"],
)
def test_what_does_not_fit_is_refused(checkpoint: Path, ask: dict[str, Any], words: str) -> None:
    whole = engine(checkpoint)
    with pytest.raises(InvalidRequest, match=words):
        whole.take(request("0", PROMPTS[0], ask))
    with pytest.raises(InvalidRequest, match="first is the number of a token"):
        request("0", PROMPTS[0], {"first": -1})
    setting = ",".join(f"{name}={value}" for name, value in ask.items())
    with pytest.raises(ConfigError, match=words):
        engine(checkpoint, gate=f"skip_feed_forward:{setting}")
