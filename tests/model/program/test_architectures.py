"""Every architecture's logits are transformers' logits, however the prompt is cut into steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.engine.engine import Engine
from ockham.model.loading import load_model
from tests.helpers.architectures import CASES
from tests.helpers.oracle import Case, assert_greedy, assert_same_logits, load, oracle_logits
from tests.helpers.serving import ask, tokens_of
from tests.helpers.steps import prompt_logits


@pytest.fixture(scope="module", params=CASES)
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case, its loaded checkpoint, the oracle, and its logits of the case's prompts."""
    case = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    oracle = case.build()
    oracle.save_pretrained(directory)
    return (
        case,
        load(directory, max_model_len=case.max_model_len),
        oracle,
        oracle_logits(oracle, case.prompts()),
    )


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_logits_are_those_of_transformers(checked: Any, chunk: int) -> None:
    case, model, _, expected = checked
    assert_same_logits(prompt_logits(model, case.prompts(), chunk), expected)


def test_answers_beside_each_other_are_greedy(checked: Any) -> None:
    """Of a ragged batch whose prompts come in pieces, with drafts; one request has two choices, and
    sequences are preempted, of which some must be computed again."""
    case, model, oracle, _ = checked
    config = EngineConfig(model="loaded", skip_tokenizer_init=True, max_num_batched_tokens=64)
    engine = Engine(config, load=lambda *_: model)
    prompts = case.prompts()
    for number, prompt in enumerate(prompts):
        room = case.max_model_len - len(prompt)
        engine.take(ask(str(number), prompt, max_tokens=min(6, room), n=1 + (number == 2)))
    said = []
    for step in range(40):
        said += engine.step()
        if step in (3, 5) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[step % len(engine.scheduler.running)])
        if step == 5:
            engine.reuse.forget()
    assert engine.scheduler.preemptions >= 2
    answers = tokens_of(said)
    assert not engine.has_work
    assert answers.pop(("2", 1)) == answers["2", 0]
    assert_greedy(oracle, prompts, [answers[str(number), 0] for number in range(len(prompts))])


def test_minicpm_is_a_llama_with_multipliers(tmp_path: Path) -> None:
    """Its code is not part of transformers; Granite's has the same multipliers by other names."""
    multipliers = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 0.5}
    case = Case("Granite", {**multipliers, "attention_multiplier": 8**-0.5})
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in (*multipliers, "attention_multiplier"):
        del config[name]
    # 0.4 = 0.8 / sqrt(4 layers), 0.5 = 32 hidden / 64.
    config |= {"scale_emb": 3, "scale_depth": 0.8, "dim_model_base": 64}
    config["architectures"] = ["MiniCPMForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = prompt_logits(load(tmp_path), case.prompts(), 7)
    assert_same_logits(found, oracle_logits(oracle, case.prompts()))


@pytest.mark.parametrize("name", ["mistral3", "qwen3-vl"])
def test_of_a_model_of_text_and_images_the_text_part_is_loaded_and_that_is_said(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    case.build().save_pretrained(tmp_path)
    told: list[str] = []
    settings = {"dtype": "float32", "max_num_seqs": 2, "max_model_len": 64}
    load_model(EngineConfig(model=str(tmp_path), **settings), told.append)
    assert [line for line in told if "text part" in line] == [
        line for line in told if f"only the text part of {case.model} is used; " in line
    ]
    assert any("text part" in line for line in told)
    assert not any("warning" in line for line in told)


def test_dual_chunks_are_refused_where_norms_stand_behind_the_rotation(tmp_path: Path) -> None:
    CASES["hunyuan-dense"].build().save_pretrained(tmp_path)
    chunks = {"rope_type": "dual_chunk", "chunk_size": 128, "local_size": 64}
    with pytest.raises(ModelError, match="HunYuanDenseV1ForCausalLM, whose queries and keys are"):
        load(tmp_path, max_model_len=256, rope_scaling=chunks)
