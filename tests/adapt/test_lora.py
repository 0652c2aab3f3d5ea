"""Adapters that requests name: exact in any batch, never mixed up, bounded in memory."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.kernels.native import core
from ockham.model.converting import convert
from tests.helpers.adapters import TINY, write_adapter
from tests.helpers.serving import ask, drain, make_engine, tokens_of
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

PROMPT = [5, 9, 23, 41, 60, 71, 13, 88, 2, 17, 33, 54, 90, 12, 7, 64, 25, 39]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and adapters 0 to 5 of different ranks beside it."""
    directory = tmp_path_factory.mktemp("adapters")
    tiny_llama(directory / "model")
    for number in range(6):
        write_adapter(directory / str(number), seed=number, rank=1 + 3 * number)
    return directory


def engine_of(files: Path, options: str = "", **settings: Any) -> Engine:
    colon = ":" if options else ""
    return make_engine(files / "model", adapter=f"lora{colon}{options}", **settings)


def with_adapter(
    name: str, path: Path | None, prompt: list[int] = PROMPT, **params: Any
) -> Request:
    asks = {} if path is None else {"adapter/lora": {"name": path.name, "path": str(path)}}
    return ask(name, prompt, asks=asks, **params)


def run(engine: Engine, *requests: Request) -> dict[str, list[int]]:
    for request in requests:
        engine.take(request)
    return {name: tokens for (name, _), tokens in tokens_of(drain(engine)).items()}


def test_an_adapter_gives_what_its_merged_model_gives(files: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    source = EngineConfig(model=str(files / "model"))
    convert(source, merged, lambda line: None, lora=files / "2")
    params = {"logprobs": 5, "max_tokens": 12}
    engine = engine_of(files)
    engine.take(with_adapter("a", files / "2", **params))
    found = [entry for delta in drain(engine) for entry in delta.logprobs or []]
    plain = make_engine(merged)
    plain.take(ask("a", PROMPT, **params))
    expected = [entry for delta in drain(plain) for entry in delta.logprobs or []]
    assert len(found) == len(expected) == 12
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for token, entry in theirs.items():
            assert mine[token].logprob == pytest.approx(entry.logprob, abs=2e-4)


def test_an_adapter_of_a_model_whose_rotary_pairs_are_neighbours_gives_what_it_gives_merged(
    tmp_path: Path,
) -> None:
    tiny_llama(tmp_path / "model", architectures=["Ernie4_5ForCausalLM"], model_type="ernie4_5")
    write_adapter(tmp_path / "2", seed=2, rank=4)
    plain = run(make_engine(tmp_path / "model"), ask("a", PROMPT, max_tokens=12))
    test_an_adapter_gives_what_its_merged_model_gives(tmp_path, tmp_path)
    assert run(engine_of(tmp_path), with_adapter("a", tmp_path / "2", max_tokens=12)) != plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_request_has_the_tokens_that_it_has_alone(files: Path, dtype: str) -> None:
    params = {"temperature": 0.9, "seed": 4, "max_tokens": 24}
    paths = [files / "1", None, files / "4", files / "1", files / "0", None, files / "5"]
    prompts = [PROMPT[: 3 + 2 * i] for i in range(len(paths))]
    batch = [with_adapter(str(i), path, prompts[i], **params) for i, path in enumerate(paths)]
    settings: dict[str, Any] = {"max_num_batched_tokens": 16, "speculative_config": "none"}
    together = run(engine_of(files, f"max_lora_rank=16,dtype={dtype}", **settings), *batch)
    for i, path in enumerate(paths):
        other = engine_of(files, f"max_lora_rank=16,dtype={dtype}", reuse="none", threads=1)
        if path is None:
            other = make_engine(files / "model", reuse="none")
        assert run(other, with_adapter(str(i), path, prompts[i], **params)) == {
            str(i): together[str(i)]
        }
    assert len({tuple(tokens) for tokens in together.values()}) == len(paths)


def test_state_is_never_reused_across_adapters(files: Path) -> None:
    engine = engine_of(files)
    first = run(engine, with_adapter("a", files / "1"))["a"]
    plain = run(engine, with_adapter("b", None))["b"]
    other = run(engine, with_adapter("c", files / "2"))["c"]
    assert len({tuple(first), tuple(plain), tuple(other)}) == 3
    assert engine.total.prompt_tokens_reused == 0
    assert run(engine, with_adapter("d", files / "1"))["d"] == first
    assert engine.total.prompt_tokens_reused == len(PROMPT) - 1


def test_the_same_files_under_another_name_share_their_state(files: Path, tmp_path: Path) -> None:
    engine = engine_of(files)
    shutil.copytree(files / "1", tmp_path / "copy")
    first = run(engine, with_adapter("a", files / "1"))["a"]
    assert run(engine, with_adapter("b", tmp_path / "copy"))["b"] == first
    assert engine.total.prompt_tokens_reused == len(PROMPT) - 1


def test_an_adapter_that_was_written_anew_shares_nothing_with_the_old_one(
    files: Path, tmp_path: Path
) -> None:
    engine, path = engine_of(files), tmp_path / "changing"
    write_adapter(path, seed=1)
    first = run(engine, with_adapter("a", path))["a"]
    shutil.rmtree(path)
    write_adapter(path, seed=2)
    second = run(engine, with_adapter("b", path))["b"]
    assert first != second
    assert engine.total.prompt_tokens_reused == 0
    alone = engine_of(files)
    assert run(alone, with_adapter("b", path))["b"] == second


def test_more_adapters_than_may_run_wait_for_one_another(files: Path) -> None:
    engine = engine_of(files, "max_loras=2,max_cpu_loras=3")
    requests = [with_adapter(str(i), files / str(i % 5)) for i in range(10)]
    coming = [(each, engine.prepare(each)) for each in requests]
    deltas: list[Delta] = []
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while coming or engine.has_work:
        assert time.monotonic() < deadline, "nothing goes on"
        for request, preparation in [each for each in coming if each[1] and each[1].done()]:
            assert preparation is not None
            engine.add(request, preparation.result())
            coming.remove((request, preparation))
        if engine.has_work:
            deltas += engine.step()
        running = {id(s.adapter) for s in engine.scheduler.running}
        seen.add(len(running))
        assert engine.adapters is not None
        assert engine.adapters.held() <= 3
    assert max(seen) <= 2
    said = tokens_of(deltas)
    assert len(said) == 10
    for i in range(5):
        assert said[str(i), 0] == said[str(i + 5), 0]


def test_the_bill_holds_what_adapters_cost(files: Path) -> None:
    engine = engine_of(files, reuse="none", speculative_config="none")
    params = {"max_tokens": 6}
    bills: dict[str, Ledger] = {}
    for path in (None, files / "1"):
        engine.take(with_adapter("a", path, **params))
        bills[str(path)] = next(d.ledger for d in drain(engine) if d.ledger is not None)
    plain, adapted = bills["None"], bills[str(files / "1")]
    widths = sum(outputs + inputs for outputs, inputs in TINY.values())
    assert adapted.flops - plain.flops == 2 * 4 * widths * adapted.rows
    assert adapted.weight_bytes > plain.weight_bytes
    for i, path in enumerate((files / "1", files / "1", files / "3", None)):
        engine.take(with_adapter(str(i), path, **params))
    before = engine.total.flops, engine.total.weight_bytes
    ends = [delta.ledger for delta in drain(engine) if delta.ledger is not None]
    after = engine.total.flops, engine.total.weight_bytes
    assert after[0] - before[0] == sum(bill.flops for bill in ends)
    assert after[1] - before[1] == sum(bill.weight_bytes for bill in ends)


def test_a_request_moves_with_its_adapter_if_it_is_there_too(files: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"speculative_config": "none"}
    here, there = engine_of(files, **settings), engine_of(files, **settings)
    alone = run(engine_of(files, **settings), with_adapter("a", files / "2"))["a"]
    here.take(with_adapter("a", files / "2"))
    deltas = [delta for _ in range(6) for delta in here.step()]
    data = here.export_request("a")
    with pytest.raises(InvalidRequest, match="without the adapter"):
        make_engine(files / "model", **settings).import_request(data)
    there.import_request(data)
    deltas += drain(there)
    assert tokens_of(deltas)["a", 0] == alone


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"rank": 40}, "rank 40, above max_lora_rank 16"),
        ({"shapes": {"model.layers.0.self_attn.q_proj": (64, 32)}}, "shape .*of another base"),
        ({"shapes": {"model.layers.7.self_attn.q_proj": (32, 32)}}, "nothing can be added"),
        ({"shapes": {"lm_head": (97, 32)}}, "nothing can be added"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"spread": float("nan")}, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_and_harms_nobody(
    files: Path, tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    engine = engine_of(files, "max_loras=1")
    engine.take(with_adapter("good", None))
    bad = write_adapter(tmp_path / "bad", **made)
    with pytest.raises(InvalidRequest, match=message):
        engine.take(with_adapter("bad", bad))
    engine.take(with_adapter("other", files / "1"))  # whose place was not lost
    assert set(tokens_of(drain(engine))) == {("good", 0), ("other", 0)}


def test_a_path_without_an_adapter_is_refused(files: Path) -> None:
    with pytest.raises(InvalidRequest, match="name the directory of a PEFT adapter"):
        engine_of(files).take(with_adapter("a", files / "nothing"))


def test_an_engine_without_adapters_refuses_them(files: Path) -> None:
    with pytest.raises(InvalidRequest, match="started without the adapter 'lora'"):
        make_engine(files / "model").take(with_adapter("a", files / "1"))


def test_options_that_cannot_be_are_refused(files: Path) -> None:
    with pytest.raises(ConfigError, match="max_cpu_loras is 2"):
        engine_of(files, "max_loras=4,max_cpu_loras=2")
    with pytest.raises(ConfigError, match="max_lora_rank must be at least 1"):
        engine_of(files, "max_lora_rank=0")


def test_a_damaged_file_is_refused(files: Path, tmp_path: Path) -> None:
    bad = write_adapter(tmp_path / "bad")
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidRequest, match="truncated or corrupt"):
        engine_of(files).take(with_adapter("a", bad))
    tensors = load_file(files / "1" / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    with pytest.raises(InvalidRequest, match="has no lora_"):
        engine_of(files).take(with_adapter("a", bad))


def test_hundreds_of_adapters_cost_only_the_places_that_they_share(
    files: Path, tmp_path: Path
) -> None:
    engine = engine_of(files, "max_loras=2")
    for number in range(120):
        path = write_adapter(tmp_path / str(number), seed=number)
        run(engine, with_adapter(str(number), path, max_tokens=1))
        assert engine.adapters is not None
        assert engine.adapters.held() <= 2
    assert np.isfinite(engine.total.flops)
