"""The lab model's siblings: what they start from, how they learn, that it is deterministic."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.lab.tasks import items
from ockham.model.converting import convert
from recipes.lab.agreement import accepted, agreed
from recipes.lab.data import OUTPUTS, Batches, Streams
from recipes.lab.distill import Distiller, kl_divergence
from recipes.lab.export import export
from recipes.lab.export_siblings import export_sibling
from recipes.lab.lora import adapt, export_adapter, is_adapter
from recipes.lab.model import LabModel, Shape
from recipes.lab.outputs import Amounts, write_outputs
from recipes.lab.plan import Phase, Plan
from recipes.lab.sentences import sentence, write_items
from recipes.lab.siblings import DENSE, SIBLINGS
from recipes.lab.start import begin, load_dense, narrowed, read_start
from recipes.lab.tokenizer import load_tokenizer
from recipes.lab.train import Trainer

LAB = Path(__file__).parents[2] / "ockham/model/lab"
SHAPE = Shape(vocab_size=64, hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=48)
MIXTURE = replace(SHAPE, intermediate=24, experts=8)
WORDS = replace(SHAPE, vocab_size=4096)
SMALL = replace(SHAPE, hidden=16, layers=1, heads=1, intermediate=24)


@pytest.fixture(scope="module")
def dense() -> LabModel:
    """Random, but with activations large enough that nothing vanishes in rounding."""
    model = LabModel(SHAPE, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter *= 10 if "layers" in name else 20
    return model


@pytest.fixture(scope="module")
def start(dense: LabModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "model.safetensors"
    save_file(dense.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def streams() -> Streams:
    generator = np.random.default_rng(0)

    def draw(tokens: int) -> dict[str, Any]:
        sources = ("code", "tests", "prose", "chat", *OUTPUTS)
        return {each: generator.integers(64, size=tokens, dtype=np.uint16) for each in sources}

    return Streams(draw(3000), draw(1100), "corpus")


@pytest.fixture(scope="module")
def start_of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense weights for the lab model's vocabulary."""
    path = tmp_path_factory.mktemp("words") / "model.safetensors"
    weights = LabModel(WORDS, seed=4).state_dict()
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, path)
    return path


def plan_of(start: Path, shape: Shape, **fields: Any) -> Plan:
    return Plan(
        **{
            "phases": (
                Phase(4, shape.layers, 16, "library"),
                Phase(2, shape.layers, 32, "library"),
            ),
            "shape": shape,
            "start_sha256": digest(start),
            "batch_tokens": 128,
            "micro_tokens": 64,
            "warmup_steps": 2,
            "decay_steps": 2,
            "checkpoint_steps": 2,
            "compiled": False,
            **fields,
        }
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def begun(shape: Shape, start: Path, seed: int = 0) -> LabModel:
    model = LabModel(shape, seed)
    sample = torch.randint(64, (1, 200), generator=torch.Generator().manual_seed(1))
    begin(model, read_start(digest(start), start), sample)
    return model


def ids(tokens: int = 100) -> torch.Tensor:
    return torch.randint(64, (2, tokens), generator=torch.Generator().manual_seed(0))


def test_other_weights_than_the_plans_are_refused(start: Path) -> None:
    with pytest.raises(ValueError, match="but the plan starts from"):
        read_start("0" * 64, start)
    with pytest.raises(ValueError, match="--start"):
        read_start(digest(start), None)


# -- the mixture of experts --------------------------------------------------------------------


@torch.no_grad()
def test_the_mixture_begins_as_the_dense_model_and_uses_every_expert(
    dense: LabModel, start: Path
) -> None:
    mixture = begun(MIXTURE, start)
    torch.testing.assert_close(mixture(ids()), dense(ids()), atol=1e-4, rtol=1e-4)
    for layer in mixture.mixtures():
        assert torch.equal(layer.used[:4], layer.used[4:])  # always in pairs
        assert int(layer.used.sum()) == 2 * ids().numel()
        assert int(layer.used.min()) > 0


@torch.no_grad()
def test_imbalance_is_1_where_gates_are_even_and_more_where_tokens_crowd() -> None:
    layer = begun_randomly(MIXTURE).mixtures()[0]
    crowd = torch.ones(3, 4, 32)
    layer(crowd)
    assert sorted(layer.used.tolist()) == [0] * 6 + [12] * 2
    gates = (layer.gate.weight @ torch.ones(32)).softmax(0)
    expected = 8 * 0.5 * gates.sort().values[-2:].sum()
    torch.testing.assert_close(layer.imbalance, expected)
    assert expected > 1
    layer.gate.weight.zero_()
    layer(crowd)
    torch.testing.assert_close(layer.imbalance, torch.tensor(1.0))


@torch.no_grad()
def test_tokens_meet_the_experts_that_their_gates_choose() -> None:
    """Against a plain loop over tokens."""
    layer = begun_randomly(MIXTURE).mixtures()[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    found = layer(x)
    for row, mixed in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        gates = (layer.gate.weight @ row).softmax(0)
        first, second = gates.argsort(descending=True)[:2].tolist()
        total = gates[first] + gates[second]
        expected = sum(layer.experts[i](row) * gates[i] / total for i in (first, second))
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)


def begun_randomly(shape: Shape) -> LabModel:
    model = LabModel(shape, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return model


def test_an_exported_mixture_is_what_transformers_and_ockham_compute(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from ockham import LLM, SamplingParams

    model = begun_randomly(replace(MIXTURE, vocab_size=4096))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    export(model, load_tokenizer(LAB), "card", tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = torch.randint(4096, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(prompt)
        torch.testing.assert_close(logits, theirs(prompt).logits, atol=1e-3, rtol=1e-3)
    llm = LLM(str(tmp_path), dtype="float32", kv_cache_memory_bytes=1 << 24)
    params = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=0)
    listed = llm.generate([prompt[0].tolist()], params, use_tqdm=False)[0].prompt_logprobs
    expected = logits[0, :-1].log_softmax(-1).gather(1, prompt[0, 1:, None])[:, 0]
    found = [next(iter(each.values())).logprob for each in listed[1:]]
    np.testing.assert_allclose(found, expected, atol=2e-3)


# -- the drafter -------------------------------------------------------------------------------


def test_the_narrowed_embedding_keeps_the_most_of_the_products() -> None:
    wide = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        6, 20, generator=torch.Generator().manual_seed(1)
    )
    narrow = narrowed(wide, 6)
    torch.testing.assert_close(narrow @ narrow.T, wide @ wide.T, atol=1e-3, rtol=1e-3)
    assert narrowed(wide, 3).shape == (50, 3)


def test_divergence_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, model = (torch.randn(7, 30, generator=generator) * 3 for _ in range(2))
    p, q = teacher.double().softmax(-1), model.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(kl_divergence(teacher, model), expected.float())
    assert float(kl_divergence(teacher, teacher).abs().max()) == 0


def test_distilling_brings_a_drafter_nearer_and_is_resumable(
    dense: LabModel, start: Path, streams: Streams, tmp_path: Path
) -> None:
    plan = plan_of(
        start,
        SMALL,
        phases=(Phase(40, 1, 32, "distilled"),),
        distilled=True,
        vector_rate=0.02,
        decay_steps=10,
    )
    whole = Distiller(plan, streams, tmp_path / "whole", load_dense(start, SHAPE), start)
    rows = torch.from_numpy(streams.train["code"][:1024].reshape(-1, 32).astype(np.int64))

    def distance() -> float:
        with torch.no_grad():
            return float(kl_divergence(dense(rows), whole.model(rows)).mean())

    before = distance()
    whole.run()
    assert distance() < 0.7 * before
    Distiller(plan, streams, tmp_path / "parts", load_dense(start, SHAPE), start).run(until=12)
    parts = Distiller(plan, streams, tmp_path / "parts", load_dense(start, SHAPE), start)
    assert parts.step == 12
    parts.run()
    assert_same(parts.model, whole.model)


def test_accepted_lengths_are_those_of_drafting_step_by_step() -> None:
    same = np.random.default_rng(0).random((20, 30)) < 0.7
    lengths = accepted(same, draft_tokens=4)
    assert lengths.shape == (20, 27)
    for row, row_lengths in zip(same, lengths, strict=True):
        for position, length in enumerate(row_lengths):
            drafted = row[position : position + 4].tolist()
            assert length == (drafted.index(False) if False in drafted else 4)


def test_a_model_agrees_with_itself(dense: LabModel) -> None:
    rows = ids().numpy()
    assert agreed(dense, dense, rows).all()
    assert not agreed(dense, LabModel(SHAPE, seed=9), rows).all()


def test_outputs_are_what_the_engine_writes_and_the_same_each_time(tmp_path: Path) -> None:
    text = np.tile(np.arange(40, 4000, dtype=np.uint16), 2)
    streams = Streams(dict.fromkeys(("code", "tests", "prose", "chat"), text), {}, "corpus")
    amounts = Amounts(sampled=3, greedy=2, answers=5, tokens=8)
    tokenizer = load_tokenizer(LAB)
    first = write_outputs(LAB, streams, tokenizer, 1, tmp_path / "first", amounts)
    again = write_outputs(LAB, streams, tokenizer, 1, tmp_path / "again", amounts)
    other = write_outputs(LAB, streams, tokenizer, 2, tmp_path / "first", amounts)
    assert set(first) == set(OUTPUTS)
    for name, stream in first.items():
        assert np.array_equal(stream, again[name])
        assert not np.array_equal(stream, other[name])
    assert np.count_nonzero(first["sampled"] == 0) >= 3  # each text ends
    asked = tokenizer.decode(first["answers"].tolist(), skip_special_tokens=False)
    assert asked.count("<|im_start|>assistant\n") >= 5


def test_windows_of_outputs_are_read_beside_those_of_the_corpus(streams: Streams) -> None:
    marked = {name: np.full(3000, number, np.uint16) for number, name in enumerate(streams.train)}
    rows, _ = Batches(marked, seed=1, phase=0, context=100, mixture="distilled").batch(0, 20)
    assert len(set(rows[:, 0].tolist())) == len(marked) - 1  # all but the tests


# -- adapters ----------------------------------------------------------------------------------


def test_an_adapter_begins_with_no_effect_and_trains_alone(
    dense: LabModel, start: Path, streams: Streams, tmp_path: Path
) -> None:
    plan = plan_of(start, SHAPE, lora_rank=2, lora_alpha=4.0, vector_rate=0.01)
    trainer = Trainer(plan, streams, tmp_path / "whole", start=start)
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(ids()), dense(ids()))
    trainer.run()
    frozen = dense.state_dict()
    changed = [
        name
        for name, parameter in trainer.model.named_parameters()
        if name not in frozen or not torch.equal(parameter, frozen[name])
    ]
    assert len(changed) == 2 * 7 * SHAPE.layers
    assert all(map(is_adapter, changed))
    Trainer(plan, streams, tmp_path / "parts", start=start).run(until=3)
    parts = Trainer(plan, streams, tmp_path / "parts", start=start)
    parts.run()
    assert_same(parts.model, trainer.model)


def test_an_adapter_is_written_as_peft_reads_it(tmp_path: Path) -> None:
    model = LabModel(SHAPE)
    adapt(model, 3, 6.0, seed=1)
    export_adapter(model, 3, 6.0, "lab", "d1", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * SHAPE.layers
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_"
    assert weights[name + "A.weight"].shape == (3, 48)
    assert weights[name + "B.weight"].shape == (32, 3)


def test_items_of_sentences_are_those_of_recall_in_another_form(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    write_items(path, 2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["level"] for line in lines] == [
        level for level in ("tokens=128", "tokens=256", "tokens=512") for _ in range(2)
    ]
    item = next(items("recall", 0, 1, "test", "tokens=128"))
    assert lines[0]["messages"] == list(item.messages)
    key, value = item.answer.removeprefix("- ").split(": ")
    assert lines[0]["answer"] == sentence(key, value)
    assert value in lines[0]["answer"]


# -- cards ---------------------------------------------------------------------------------------


def scores_of(share: float) -> list[dict[str, Any]]:
    return [{"source": "steps", "items": 9, "score": share, "score_interval": [0.1, 0.9]}]


def exported(trainer: Trainer, name: str, dense: LabModel, out: Path) -> str:
    """Trained a little, measured beside the dense model and written; its card."""
    trainer.run(until=2)
    before, after = scores_of(0.25), scores_of(0.75)
    export_sibling(name, trainer, load_tokenizer(LAB), dense, LAB, before, after, out)
    return (out / "README.md").read_text()


def test_cards_have_the_scores_that_were_measured(
    start_of_words: Path, streams: Streams, tmp_path: Path
) -> None:
    dense = load_dense(start_of_words, WORDS)
    plan = plan_of(start_of_words, replace(WORDS, intermediate=24, experts=8))
    trainer = Trainer(plan, streams, tmp_path / "experts", start=start_of_words)
    card = exported(trainer, "experts", dense, tmp_path / "moe")
    assert "| steps | all | 9 | 75.0% | 10.0% to 90.0% |" in card
    assert "unfinished: 2 of 6 steps" in card
    assert len([line for line in card.splitlines() if line.startswith(("| 0 |", "| 1 |"))]) == 2

    plan = plan_of(start_of_words, WORDS, lora_rank=2)
    trainer = Trainer(plan, streams, tmp_path / "steps", start=start_of_words)
    card = exported(trainer, "steps", dense, tmp_path / "adapter")
    assert "| steps | all | 9 | 25.0% (10.0% to 90.0%) | 75.0% (10.0% to 90.0%) |" in card
    model = tmp_path / "model"
    export(dense, load_tokenizer(LAB), "card", model)
    (model / "model.safetensors").write_bytes(start_of_words.read_bytes())
    config = EngineConfig(model=str(model))
    assert convert(config, tmp_path / "merged", lambda line: None, lora=tmp_path / "adapter")


def test_the_card_of_the_drafter_has_its_agreement(streams: Streams, tmp_path: Path) -> None:
    lab, start = load_dense(LAB / "model.safetensors", DENSE), LAB / "model.safetensors"
    small = replace(SMALL, vocab_size=4096)
    plan = plan_of(start, small, phases=(Phase(4, 1, 16, "distilled"),), distilled=True)
    trainer = Distiller(plan, streams, tmp_path / "run", lab, start)
    card = exported(trainer, "drafter", lab, tmp_path / "drafter")
    rows = [line for line in card.splitlines() if line.startswith(("| code |", "| prose |"))]
    assert [row.split(" | ")[2] for row in rows] == ["1,024", "1,024"]


# -- all ---------------------------------------------------------------------------------------


def test_the_mixture_is_trained_the_same_each_time_and_from_where_it_stopped(
    start: Path, streams: Streams, tmp_path: Path
) -> None:
    plan = plan_of(start, MIXTURE)
    whole = Trainer(plan, streams, tmp_path / "whole", start=start)
    whole.run()
    Trainer(plan, streams, tmp_path / "parts", start=start).run(until=3)
    parts = Trainer(plan, streams, tmp_path / "parts", start=start)
    parts.run()
    assert_same(parts.model, whole.model)
    gates = [mixture.gate.weight for mixture in whole.model.mixtures()]
    assert all(not torch.equal(gate[:4], gate[4:]) for gate in gates)  # the ties are broken


def test_the_plans_start_from_the_model_that_is_shipped() -> None:
    shipped = digest(LAB / "model.safetensors")
    assert {sibling.plan.start_sha256 for sibling in SIBLINGS.values()} == {shipped}


def test_the_drafter_is_about_ten_times_smaller() -> None:
    drafter = LabModel(SIBLINGS["drafter"].plan.shape).parameter_count()
    dense = LabModel(DENSE).parameter_count()
    assert 8 <= dense / drafter <= 12


def assert_same(left: LabModel, right: LabModel) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
