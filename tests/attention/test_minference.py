"""Heads of a prompt's blocks choose by rules of their own, whoever shares it, however it is cut."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.attention.minference import MInferenceAsk, MInferenceOptions
from ockham.core.choices import BY_HEAD, LATEST, LINES, MEANS, RULES
from ockham.core.errors import ConfigError, InvalidRequest, ModelError
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup, QueryBlock
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers import serving
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral

GROUPS = [AttentionGroup((0, 2), 2, None), AttentionGroup((1, 3), 4, 100)]
VOCABULARY, LONGEST = 97, 512
ask = partial(serving.ask, max_tokens=20)
FIELDS = {"share": 0.3, "sink_blocks": 0, "last_tokens": 40}


def opened(tokens: int, setting: str = "minference", **fields: Any) -> Any:
    asked = make_ask("pattern/minference", fields or True)
    return make("pattern", setting).open(asked, GROUPS).for_prompt(tokens)


def heads_file(path: Path, layers: int = 2, kv_heads: int = 2) -> Path:
    """Of heads with other rules each, as they come: the curves are the better for the rule of the
    head, and the more so the later the head is."""
    heads = []
    for number in range(layers * kv_heads):
        best = RULES[number % len(RULES)]
        recall = {
            name: [
                round(s ** (0.9 if name != best else 0.2 + 0.1 * number), 4) for s in (0.3, 0.6, 1)
            ]
            for name in RULES
        }
        heads.append({"layer": number // kv_heads, "head": number % kv_heads, "recall": recall})
    content = {
        "technique": "minference",
        "version": 1,
        "stride": 16,
        "shares": [0.3, 0.6, 1.0],
        "heads": heads,
    }
    path.write_text(json.dumps(content))
    return path


def test_heads_choose_by_their_rules_until_the_prompts_end() -> None:
    pattern = opened(2000, share=0.4, last_tokens=100, dense_layers=1, stride=8, rule="means")
    assert pattern.exact_until == pattern.whole_until == 1900 // BLOCK_KEYS * BLOCK_KEYS
    choice = pattern.choice(0)
    assert choice.chooser == BY_HEAD
    assert choice.layers == (False, True)
    assert (choice.first, choice.until) == (0, pattern.whole_until)
    assert (choice.stride, choice.sinks, choice.local) == (8, 1, 1)
    assert choice.rules[1] == (MEANS, MEANS)
    assert choice.rule_shares[1] == (0.4, 0.4)
    assert pattern.choice(1) is None, "a window bounds what its rows read"
    assert opened(100).choice(0) is None
    assert opened(2000).choice(0).rules == ((LINES, LINES), (LINES, LINES))


def test_a_file_says_what_each_head_does(tmp_path: Path) -> None:
    heads = heads_file(tmp_path / "heads.json", layers=2)
    groups = [AttentionGroup((0, 1), 2, None)]
    technique = make("pattern", f"minference:heads={heads},share=0.45")

    def choice(**fields: Any) -> Any:
        asked = make_ask("pattern/minference", fields or True)
        return technique.open(asked, groups).for_prompt(2000).choice(0)

    found = choice()
    assert {rule for of_layer in found.rules for rule in of_layer} == {LATEST, LINES, MEANS}
    assert len({share for of_layer in found.rule_shares for share in of_layer}) > 1
    less = choice(share=0.3)
    assert np.mean(less.rule_shares) < np.mean(found.rule_shares)
    assert choice(rule="lines", share=0.3).rule_shares == ((0.3, 0.3), (0.3, 0.3))
    with pytest.raises(InvalidRequest, match="with 2 layers and 4 key-value heads"):
        technique.open(make_ask("pattern/minference", True), GROUPS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"share": 0.0}, "share must lie above 0 and up to 1, got 0.0"),
        ({"share": float("nan")}, "share must lie above 0 and up to 1, got nan"),
        ({"stride": 4}, "stride must be 8 or 16, got 4"),
        ({"sink_blocks": -1}, "sink_blocks must be at least 0, got -1"),
        ({"dense_layers": -1}, "dense_layers must be at least 0, got -1"),
        ({"last_tokens": 0}, "last_tokens must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        MInferenceAsk(**fields)
    with pytest.raises(ConfigError, match=words):
        MInferenceOptions(**fields)


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="rule"):
        make_ask("pattern/minference", {"rule": "columns"})
    with pytest.raises(ConfigError, match="rule"):
        make("pattern", "minference:rule=columns")


def test_no_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ockham calibrate minference MODEL FILE"):
        make("pattern", f"minference:heads={tmp_path / 'none.json'}")


def test_layers_that_are_all_dense_are_no_pattern() -> None:
    asked = make_ask("pattern/minference", {"dense_layers": 3})
    assert make("pattern", "minference").open(asked, GROUPS) is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: Any) -> Path:
    return heads_file(tmp_path_factory.mktemp("heads") / "heads.json")


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "block_size": 8, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def wanted() -> list[Request]:
    """Prompts that begin alike and end at different places, by the file's rules and by others; one
    without the pattern, and one that is scored."""
    text = np.random.default_rng(3).integers(2, VOCABULARY, LONGEST).tolist()
    other = np.random.default_rng(4).integers(2, VOCABULARY, LONGEST).tolist()
    prompts = [text[:280], text[:470], text[:350] + other[:90], text[:170], text[:480], text[:333]]
    means = {**FIELDS, "rule": "means"}
    return [
        ask(
            str(number),
            prompt,
            asks={"pattern/full": True}
            if number == 4
            else {"pattern/minference": means if number == 2 else FIELDS},
            temperature=0.7 * (number % 2),
            seed=number,
            prompt_logprobs=1 if number == 5 else None,
        )
        for number, prompt in enumerate(prompts)
    ]


Said = tuple[dict[tuple[str, int], list[int]], list[Any]]


def said(deltas: list[Delta]) -> Said:
    """The tokens, and what the prompt that is scored says of its own."""
    scored = [d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None]
    return tokens_of(deltas), scored


@pytest.fixture(scope="module")
def alone(checkpoint: Path, heads: Path) -> Said:
    engine = make_engine(
        checkpoint,
        reuse="none",
        max_num_batched_tokens=LONGEST,
        threads=1,
        attention_pattern=f"minference:heads={heads}",
    )
    deltas: list[Delta] = []
    for request in wanted():
        engine.add(request)
        deltas += drain(engine)
    return said(deltas)


def test_it_changes_something_and_only_what_asks(checkpoint: Path, alone: Said) -> None:
    engine = make_engine(checkpoint)
    for request in wanted():
        request.asks = {}
        engine.add(request)
    plain = tokens_of(drain(engine))
    assert plain["4", 0] == alone[0]["4", 0]
    assert plain != alone[0]


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 29}, {"block_size": 64, "max_num_seqs": 2}]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_shared_prefixes_chunks_and_preemption_change_no_token(
    checkpoint: Path, heads: Path, alone: Said, settings: dict[str, Any], reverse: bool
) -> None:
    """One after the other, so that each may go on from what those before it have left; then all
    at once, in chunks, some of them preempted."""
    settings = {**settings, "attention_pattern": f"minference:heads={heads}"}
    engine = make_engine(checkpoint, threads=2, **settings)
    requests = wanted()[:: -1 if reverse else 1]
    found: list[Delta] = []
    reused = 0
    for request in requests:
        engine.add(request)
        deltas = drain(engine)
        found += deltas
        ledger = next(d.ledger for d in reversed(deltas) if d.ledger is not None)
        reused += ledger.prompt_tokens_reused
    assert said(found) == alone
    assert reused > 200, "prefixes are shared up to where the first prompt's end begins"
    engine = make_engine(checkpoint, threads=2, **settings)
    for request in requests:
        engine.add(request)
    together: list[Delta] = []
    for step in range(60):
        if step in (3, 10, 25) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        together += engine.step()
        engine.check_integrity()
    assert said(together + drain(engine)) == alone


def test_who_reads_another_file_shares_no_state(
    checkpoint: Path, heads: Path, tmp_path: Path
) -> None:
    """A file's name does not say what it holds."""
    keys = []
    for layers in ("heads", "others"):
        path = tmp_path / "same.json"
        content = json.loads(heads.read_text())
        if layers == "others":
            content["heads"] = [
                {**each, "recall": content["heads"][0]["recall"]} for each in content["heads"]
            ]
        path.write_text(json.dumps(content))
        engine = make_engine(checkpoint, attention_pattern=f"minference:heads={path}")
        keys.append(engine.techniques.plain_key("salt"))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("rule", [*RULES])
def test_what_is_left_out_is_saved_and_what_it_takes_is_paid(checkpoint: Path, rule: str) -> None:
    """The bill of blocks that visit a half of what they see: 2 layers of 2 heads of 8 elements,
    with 2 query heads each."""
    engine = make_engine(checkpoint, reuse="none")
    fields = {"share": 0.5, "sink_blocks": 0, "last_tokens": 1, "rule": rule}
    prompt = np.random.default_rng(1).integers(2, VOCABULARY, 6 * BLOCK_KEYS + 5).tolist()
    ledgers = []
    for asks in ({}, {"pattern/minference": fields}):
        engine.add(ask("a", prompt, asks=asks))
        ledgers.append(drain(engine)[-1].ledger)
    full, own = ledgers
    assert full is not None
    assert own is not None
    saved = own.saved["minference"]
    left_out = products = 0
    for block in range(1, 6):
        visited = max(1, -(-(block + 1) // 2))
        left_out += BLOCK_KEYS * (block + 1 - visited) * BLOCK_KEYS
        if visited > 1:  # else there is nothing to choose
            rows = {"latest": 0, "lines": BLOCK_KEYS // 16, "means": 1}[rule]
            products += BLOCK_KEYS * ((block + 1) * rows // 2)
    assert saved.flops == 2 * (left_out - products) * 2 * 4 * 2 * 8
    assert own.flops + saved.flops == full.flops
    assert own.state_read_bytes + saved.bytes >= full.state_read_bytes


def test_layers_with_a_window_are_left_as_they_are(tmp_path: Path) -> None:
    engine = make_engine(tiny_mistral(tmp_path, window=150))
    engine.add(ask("a", [7] * 480, asks={"pattern/minference": FIELDS}))
    ledger = drain(engine)[-1].ledger
    assert ledger is not None
    assert "minference" not in ledger.saved


def test_heads_of_another_model_end_the_start(checkpoint: Path, tmp_path: Path) -> None:
    other = heads_file(tmp_path / "other.json", layers=5)
    with pytest.raises(ConfigError, match="with 5 layers and 10 key-value heads in all"):
        make_engine(checkpoint, attention_pattern=f"minference:heads={other}")


def test_a_calibration_finds_which_rule_serves_a_head() -> None:
    """A head of latest keys, one whose rows all look at one column, and one whose rows look at what
    is alike on average."""
    rng = np.random.default_rng(5)
    dim, blocks = 16, 12
    keys = rng.normal(size=(blocks * BLOCK_KEYS, 3, dim)).astype(np.float32) * 0.1
    queries = rng.normal(size=(BLOCK_KEYS, 3, dim)).astype(np.float32) * 0.1
    places = np.arange(len(keys)) / BLOCK_KEYS
    keys[:, 0, 0], queries[:, 0, 0] = places, 4.0
    keys[4 * BLOCK_KEYS + 7, 1, 1], queries[:, 1, 1] = 9.0, 1.5
    keys[4 * BLOCK_KEYS : 4 * BLOCK_KEYS + BLOCK_KEYS, 1, 1] -= 2.0  # which its mean hides
    keys[5 * BLOCK_KEYS : 6 * BLOCK_KEYS, 2, 2], queries[:, 2, 2] = 3.0, 2.0
    rows = np.arange(15, BLOCK_KEYS, 16)
    queries[rows, 2, 3] = 9.0  # each 16th row looks elsewhere, which the mean row hardly does
    keys[2 * BLOCK_KEYS : 4 * BLOCK_KEYS, 2, 3] = 9.0
    technique = make("pattern", "minference")
    found = technique.calibration()
    found.saw(QueryBlock(0, queries, keys))
    recalls = json.loads(found.result({"model": "none"}))
    assert recalls["calibrated"] == {"model": "none"}
    for head, best in zip(recalls["heads"], RULES, strict=True):
        of_quarter = {name: each[3] for name, each in head["recall"].items()}
        assert of_quarter[best] == max(of_quarter.values()), (best, of_quarter)
        assert all(each[-1] == pytest.approx(1) for each in head["recall"].values())
    assert of_quarter["means"] > of_quarter["lines"] + 0.1
    assert "recalled" in found.described()[0]
