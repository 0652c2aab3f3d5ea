"""Drafts of several engines: the model that answers, the protocol, the page."""

import json

import numpy as np
import pytest

from benchmarks.peers.answering import SHAPE, _query_rows, _weight
from benchmarks.peers.drafts import foretold
from benchmarks.peers.peers import CONFIGURATIONS
from benchmarks.peers.process import WorkerError
from benchmarks.peers.report import report
from benchmarks.peers.rounds import serve_drafts
from benchmarks.peers.workloads import WORKLOADS, Drafts, takes_part
from ockham.model.files.safetensors import Checkpoint
from ockham.model.hub import resolve
from tests.helpers.peers import LIMITS, SESSION

WORKLOAD = {each.name: each for each in WORKLOADS}


def test_the_large_model_holds_the_small_one_and_nothing_else():
    small = json.loads((resolve("lab") / "config.json").read_text())
    sizes = dict(SHAPE.tensors())
    checkpoint = Checkpoint(resolve("lab"))
    read = {}
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm"):
        name = f"model.layers.3.{name}.weight"
        read[name] = np.asarray(checkpoint.read(checkpoint.tensors[name]), np.float32)
        large = _weight(checkpoint, name, sizes[name], small)
        assert large.shape == sizes[name]
        assert np.count_nonzero(large) == np.count_nonzero(read[name])
    above = _weight(checkpoint, "model.layers.8.mlp.down_proj.weight", (2048, 5632), small)
    head = _weight(checkpoint, "lm_head.weight", sizes["lm_head.weight"], small)
    checkpoint.close()
    assert not above.any()
    assert (head[small["vocab_size"] :] == head[small["pad_token_id"]]).all()
    # A state that is wider by zeros is normalised to the same values.
    norm = read["model.layers.3.input_layernorm.weight"]
    state = np.random.default_rng(0).normal(size=small["hidden_size"]).astype(np.float32)
    wide = np.zeros(SHAPE.hidden_size, np.float32)
    wide[: len(state)] = state
    scale = np.sqrt(SHAPE.hidden_size / small["hidden_size"])
    narrow = state / np.sqrt(np.mean(state**2)) * norm
    widened = wide[: len(state)] / np.sqrt(np.mean(wide**2)) * norm / scale
    np.testing.assert_allclose(widened, narrow, rtol=1e-5)


def test_queries_stand_beside_those_that_read_the_same_keys():
    small = json.loads((resolve("lab") / "config.json").read_text())
    heads = _query_rows(small)[:: SHAPE.head_dim] // SHAPE.head_dim
    narrow = small["num_attention_heads"] // small["num_key_value_heads"]
    wide = SHAPE.heads // SHAPE.kv_heads
    for head, place in enumerate(heads.tolist()):
        assert place // wide == head // narrow


def test_only_engines_that_draft_take_part_at_one_precision():
    names = [each.name for each in CONFIGURATIONS if takes_part(each, WORKLOAD["drafts-edit"])]
    assert names == ["ockham-int8", "llamacpp-Q8_0", "openvino-int8"]


def test_each_round_asks_something_else_within_the_context():
    for workload in (each for each in WORKLOADS if isinstance(each, Drafts)):
        asked = foretold(workload, 0)
        assert len(asked) == workload.prompts
        assert asked == foretold(workload, 0) != foretold(workload, 1)
        assert all(len(prompt) + new_tokens <= 2048 for prompt, new_tokens in asked)


def test_every_setting_continues_every_prompt(start):
    workload = Drafts("few", "Few", "edit", 2)
    record = serve_drafts(start("drafts"), workload, 0, (2, 10))
    assert record["tokens"] == sum(new_tokens - 1 for _, new_tokens in foretold(workload, 0))
    assert record["seconds"] > 0
    assert {name: seconds > 0 for name, seconds in record["drafted_s"].items()} == {
        2: True,
        10: True,
    }
    assert record["differ"] == 2, "the fake one says something else with ten tokens"


def test_a_worker_that_stops_early_or_drafts_nothing_is_told(start):
    with pytest.raises(WorkerError, match="where 5 were asked for"):
        start("drafts and stops early").drafts([1, 2], 5, 2)
    with pytest.raises(WorkerError, match="the engine drafts nothing"):
        start("works").drafts([1, 2], 5, 2)


def test_the_page_has_each_engine_beside_itself_and_ours_beside_it():
    def run(round_, configuration, plain_s, drafted_s):
        return {
            "kind": "run",
            "round": round_,
            "workload": "drafts-edit",
            "configuration": configuration,
            "tokens": 60,
            "seconds": plain_s,
            "drafted_s": drafted_s,
            "differ": 0,
            "limits": LIMITS,
            "others_share": 0.0,
        }

    records = [SESSION]
    for round_ in range(3):
        records.append(run(round_, "ockham-int8", 3.0, {"16": 1.0}))
        records.append(run(round_, "llamacpp-Q8_0", 4.0, {"2": 2.5, "10": 2.0}))
    page = report(records)
    assert "| Ockham int8 | 20.0 | 60.0 | 3.00 (3.00 to 3.00; 3) | 1 |" in page
    ratio = "2.00 (2.00 to 2.00; 3)"
    assert f"| llama.cpp Q8_0 | 15.0 | 30.0 | {ratio} | {ratio} |" in page
