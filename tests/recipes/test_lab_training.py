"""Training is deterministic and resumable; what it exports is what Hugging Face computes."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.lab.card import card, skills_section
from recipes.lab.data import Batches, Streams
from recipes.lab.evaluate import evaluate, share_right, token_byte_lengths
from recipes.lab.export import export
from recipes.lab.model import LabModel, Shape
from recipes.lab.plan import LAB as LAB_PLAN
from recipes.lab.plan import Phase, Plan
from recipes.lab.siblings import DENSE
from recipes.lab.start import load_dense
from recipes.lab.tokenizer import load_tokenizer
from recipes.lab.train import Trainer

LAB = Path(__file__).parents[2] / "ockham/model/lab"
SHAPE = Shape(vocab_size=64, hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=48)
PLAN = Plan(
    phases=(Phase(steps=3, layers=1, context=16), Phase(steps=3, layers=2, context=32)),
    shape=SHAPE,
    batch_tokens=128,
    micro_tokens=64,
    warmup_steps=2,
    decay_steps=2,
    checkpoint_steps=2,
    compiled=False,
)


@pytest.fixture(scope="module")
def streams() -> Streams:
    generator = np.random.default_rng(0)

    def draw(tokens: int) -> dict[str, Any]:
        return {
            source: generator.integers(64, size=tokens, dtype=np.uint16)
            for source in ("code", "tests", "prose", "chat")
        }

    return Streams(draw(3000), draw(1100), "corpus")


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return dict(trainer.model.state_dict())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture(scope="module")
def uninterrupted(streams: Streams, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(PLAN, streams, tmp_path_factory.mktemp("uninterrupted"))
    trainer.run()
    return trainer


def test_two_runs_give_the_same_weights(
    uninterrupted: Trainer, streams: Streams, tmp_path: Path
) -> None:
    again = Trainer(PLAN, streams, tmp_path)
    again.run()
    assert same(weights(again), weights(uninterrupted))


@pytest.mark.skipif("OCKHAM_COMPILE" not in os.environ, reason="compiles: set OCKHAM_COMPILE=1")
def test_compiled_runs_in_parallel_give_the_same_weights(streams: Streams, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    plan = replace(
        PLAN,
        phases=(Phase(steps=3, layers=1, context=16),),
        batch_tokens=8192,
        micro_tokens=8192,
        compiled=True,
    )
    first, second = (Trainer(plan, streams, tmp_path / name) for name in ("first", "second"))
    first.run()
    second.run()
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_run_gives_the_same_weights(
    uninterrupted: Trainer, streams: Streams, tmp_path: Path, stop: int
) -> None:
    Trainer(PLAN, streams, tmp_path).run(until=stop)
    resumed = Trainer(PLAN, streams, tmp_path)
    assert resumed.step == stop
    resumed.run()
    assert same(weights(resumed), weights(uninterrupted))


def test_the_curve_has_each_step_once_after_a_crash(streams: Streams, tmp_path: Path) -> None:
    crashed = Trainer(PLAN, streams, tmp_path)
    crashed.run(until=2)
    crashed._make_step()
    crashed._log(1.0, {}, 0.0)  # logged, but past the checkpoint
    Trainer(PLAN, streams, tmp_path).run()
    with (tmp_path / "curve.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


def test_another_past_is_refused_and_another_future_is_not(
    streams: Streams, tmp_path: Path
) -> None:
    Trainer(PLAN, streams, tmp_path).run(until=2)
    with pytest.raises(ValueError, match="another plan"):
        Trainer(replace(PLAN, matrix_rate=0.5), streams, tmp_path)
    with pytest.raises(ValueError, match="another corpus"):
        Trainer(PLAN, replace(streams, corpus_sha256="other"), tmp_path)
    longer = replace(PLAN, phases=(*PLAN.phases, Phase(steps=1, layers=2, context=64)))
    assert Trainer(longer, streams, tmp_path).step == 2


def test_training_lowers_the_loss(streams: Streams, tmp_path: Path) -> None:
    stream = np.tile(np.arange(64, dtype=np.uint16), 50)
    repeated = Streams(dict.fromkeys(streams.train, stream), streams.held_out, "repeated")
    plan = replace(PLAN, phases=(Phase(steps=30, layers=2, context=32),))
    trainer = Trainer(plan, repeated, tmp_path)
    before = evaluate(trainer.model, stream, 32).perplexity
    trainer.run()
    assert evaluate(trainer.model, stream, 32).perplexity < before / 2


def test_windows_are_each_read_once_before_any_is_read_again(streams: Streams) -> None:
    marked = {source: np.arange(3000, dtype=np.uint16) for source in streams.train}
    batches = Batches({"code": marked["code"]}, seed=1, phase=0, context=100)
    starts = batches.batch(0, 28)[0][:, 0]
    assert len(set(starts.tolist())) == 28


def test_the_plan_of_the_lab_model_ends_with_its_decay_and_its_whole_context() -> None:
    assert LAB_PLAN.phases[-1].layers == LAB_PLAN.shape.layers
    assert LAB_PLAN.phases[-1].context == LAB_PLAN.shape.context_tokens
    assert LAB_PLAN.rate(LAB_PLAN.steps - 1) < 0.01
    assert 6e6 < LabModel(LAB_PLAN.shape).parameter_count() < 10e6


def test_export_equals_transformers(streams: Streams, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(LAB)
    model = LabModel(Shape(layers=2), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 2).bfloat16())
    score = evaluate(model, streams.held_out["code"], 512)
    text = card(Trainer(PLAN, streams, tmp_path / "run"), {("code", 512): (score, 1.0)})
    export(model, tokenizer, text, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(4096, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-4, rtol=1e-4)
    assert "unfinished" in (tmp_path / "README.md").read_text()


def test_the_card_has_the_scores_of_tasks_and_not_those_of_texts() -> None:
    scores = [
        {"source": "recall", "items": 40, "score": 0.925, "score_interval": [0.8, 0.97]},
        {"source": "edit", "level": "rename", "items": 9, "score": 0, "score_interval": [0, 0.3]},
        {"source": "code", "items": 9, "perplexity": 8.5},
    ]
    section = skills_section(scores)
    assert "| recall | all | 40 | 92.5% | 80.0% to 97.0% |" in section
    assert "| edit | rename | 9 | 0.0% | 0.0% to 30.0% |" in section
    assert "| code" not in section
    assert skills_section(scores[2:]) == ""


def test_the_shipped_model_predicts_python() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32)
    text = "import os\n\n\ndef main(args=None):\n    if args is None:\n        return None\n"
    ids = torch.tensor([load_tokenizer(LAB).encode(text * 3).ids])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < 4.0
    assert model.config.max_position_embeddings == 4096
    assert model.generation_config.eos_token_id == [0, 3]


def test_token_byte_lengths_add_up_to_the_text() -> None:
    tokenizer = load_tokenizer(LAB)
    text = "def f(x):\n    return '日本 😀 é'\n"
    lengths = token_byte_lengths(tokenizer)
    assert int(lengths[tokenizer.encode(text).ids].sum()) == len(text.encode())


def test_the_share_of_right_answers_is_what_greedy_decoding_gives() -> None:
    model = load_dense(LAB / "model.safetensors", DENSE)
    tokenizer = load_tokenizer(LAB)
    assert share_right(model, tokenizer, "recall", "tokens=128", number=4) == 1.0
    assert share_right(LabModel(Shape()), tokenizer, "recall", "tokens=128", number=1) == 0.0


def test_a_curve_has_the_share_of_right_answers_if_the_plan_asks(
    streams: Streams, tmp_path: Path
) -> None:
    plan = replace(
        PLAN,
        phases=(Phase(steps=1, layers=1, context=16),),
        shape=replace(SHAPE, vocab_size=4096),
        asked={"recall": ("tokens=128",)},
    )
    Trainer(plan, streams, tmp_path, load_tokenizer(LAB)).run()
    with (tmp_path / "curve.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["right"] == "recall tokens=128 0.00"
    with pytest.raises(ValueError, match="give one"):
        Trainer(plan, streams, tmp_path / "other").run()
