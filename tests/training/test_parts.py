"""The parts of training do what their contracts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ockham.core.errors import ConfigError
from ockham.model.hub import BUILT_IN
from ockham.text.tokenizer import Tokenizer
from ockham.training.acceptance import judged
from ockham.training.chains import chain_scores
from ockham.training.documents import lab_documents, read_documents
from ockham.training.draft_model import choose_shape, narrowed
from ockham.training.medusa import MedusaStudent
from ockham.training.offsets import offset_scores
from ockham.training.outputs import Outputs, Written
from ockham.training.prompt_tokens import PromptTokenStudent
from ockham.training.settings import Settings
from ockham.training.student import accepted_lengths, divergence
from ockham.training.target import Target
from ockham.training.windows import Windows

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38]])


@pytest.fixture(scope="module")
def loaded(target: Path) -> Target:
    return Target(target)


# -- the target ---------------------------------------------------------------------------------


def test_the_targets_head_makes_its_logits_of_its_last_states(loaded: Target) -> None:
    whole = loaded.model(input_ids=IDS).logits
    assert torch.allclose(loaded.logits(loaded.last_states(IDS)), whole, atol=1e-4)


def test_states_are_the_residual_stream_before_the_final_norm(loaded: Target) -> None:
    found = loaded.states(IDS, [0, 1, 2])
    given = loaded.model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert torch.equal(found[0], given[0])
    assert torch.equal(found[1], given[1])
    assert torch.allclose(loaded.norm(found[2]), given[2], atol=1e-5)


def tiny_of(family: str, directory: Path) -> Path:
    """A random checkpoint of a family of transformers."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **({"final_logit_softcapping": 3.0} if family == "Gemma2" else {}),
        **({"logits_scaling": 4.0, "embedding_multiplier": 3.0} if family == "Granite" else {}),
    )
    torch.manual_seed(1)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", ["Gemma2", "Granite", "Qwen3"])
def test_heads_of_other_architectures_are_their_own(family: str, tmp_path: Path) -> None:
    target = Target(tiny_of(family, tmp_path))
    whole = target.model(input_ids=IDS).logits
    assert torch.allclose(target.logits(target.last_states(IDS)), whole, atol=1e-4)


# -- medusa and prompt tokens -------------------------------------------------------------------


def test_untrained_heads_say_what_the_target_says(loaded: Target) -> None:
    student = MedusaStudent(loaded, 2)
    states = loaded.last_states(IDS)
    assert all(torch.equal(each, states) for each in student.foretelling(states))


def test_a_medusa_head_is_compared_with_the_token_after_the_next(loaded: Target) -> None:
    student = MedusaStudent(loaded, 2)
    with torch.no_grad():
        for weight in student.weights:
            weight.normal_(0, 0.1)
    states, rows = loaded.last_states(IDS), IDS.shape[1]
    logits = loaded.logits(states)
    losses = []
    for i, (weight, bias) in enumerate(zip(student.weights, student.biases, strict=True)):
        guessed = loaded.logits(states + F.silu(F.linear(states, weight, bias)))
        losses.append(divergence(logits[:, i + 1 : rows - 1 + i], guessed[:, : rows - 2]))
    expected = (losses[0] + 0.8 * losses[1]) / 1.8
    with torch.autocast("cpu", enabled=False):
        found = student.loss(IDS, np.random.default_rng(0), "outputs")
    assert found.item() == pytest.approx(expected.item(), rel=0.02)  # products are in bf16


def test_prompt_tokens_see_the_text_before_them_and_each_other(loaded: Target) -> None:
    student = PromptTokenStudent(loaded, 3, seed=5)
    places = [2, 6, 7]
    states, found = student.states_after(IDS, places)
    assert torch.allclose(states, loaded.last_states(IDS), atol=1e-5)
    inputs = loaded.model.get_input_embeddings()(IDS)
    for number, place in enumerate(places):
        row = torch.cat([inputs[:, : place + 1], student.embeddings[None]], 1)
        whole = loaded.model(inputs_embeds=row).logits[:, place + 1 :]
        assert torch.allclose(loaded.logits(found[:, number]), whole, atol=1e-4)


@pytest.mark.parametrize("family", ["Gemma2", "Qwen3"])
def test_prompt_tokens_stand_where_embeddings_do_in_other_architectures(
    family: str, tmp_path: Path
) -> None:
    target = Target(tiny_of(family, tmp_path))
    student = PromptTokenStudent(target, 2, seed=5)
    _, found = student.states_after(IDS, [4])
    inputs = target.states(IDS, [0])[0]
    row = torch.cat([inputs[:, :5], student.embeddings[None]], 1)
    whole = target.model(inputs_embeds=row).logits[:, 5:]
    assert torch.allclose(target.logits(found[:, 0]), whole, atol=1e-4)


def test_prompt_tokens_learn_what_is_repeated(loaded: Target) -> None:
    student = PromptTokenStudent(loaded, 2, seed=5)
    optimiser = student.optimisers(student.rate)["all"]
    losses = []
    for _ in range(20):
        loss = student.loss(IDS, np.random.default_rng(0), "outputs")
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_only_prompt_tokens_learn(loaded: Target) -> None:
    student = PromptTokenStudent(loaded, 2, seed=5)
    student.loss(IDS, np.random.default_rng(0), "outputs").backward()
    assert student.offsets.grad is not None
    assert student.offsets.grad.abs().max() > 0
    assert all(p.grad is None for p in loaded.model.parameters())


# -- draft models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "parameters", "layers"),
    [(4096, 7_300_000, 8), (32_000, 1_100_000_000, 22), (151_936, 7_600_000_000, 28)],
)
def test_a_draft_model_is_a_tenth_of_its_target(
    vocabulary: int, parameters: int, layers: int
) -> None:
    shape = choose_shape(vocabulary, parameters, layers)
    assert 0.06 < shape.parameters / parameters <= 0.1
    assert shape.heads * shape.head_dim == shape.hidden_size
    assert shape.heads % shape.kv_heads == 0


def test_a_shape_counts_the_parameters_of_its_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = choose_shape(300, 10_000, 8, layers=2, hidden_size=48)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=48,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=2,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=True,
        )
    )
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    with pytest.raises(ConfigError, match="must be a multiple of 16, got 50"):
        choose_shape(300, 10_000, 8, hidden_size=50)


def test_a_narrowed_embedding_keeps_the_products_of_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(50, 4, generator=generator) @ torch.randn(4, 12, generator=generator)
    kept = narrowed(rows, 4)
    assert kept.shape == (50, 4)
    assert torch.allclose(kept @ kept.T, rows @ rows.T, atol=1e-3)


# -- scores -------------------------------------------------------------------------------------


def test_accepted_lengths_count_up_to_the_first_error() -> None:
    assert accepted_lengths([True, True, False, True, True, True], 3) == [2, 1, 0, 3]
    assert accepted_lengths([True], 3) == []


def test_offset_scores_are_of_the_tokens_two_and_more_ahead() -> None:
    text = Written([9, 8, 7, 6, 5, 4], prompt=2)
    guesses = torch.zeros(6, 2, 3, dtype=torch.long)
    guesses[1, 0, 0], guesses[1, 1, 0] = 6, 5  # after the prompt: both right
    guesses[2, 0, 2], guesses[2, 1, 0] = 5, 4  # the first among three, the second right
    guesses[3, 0, 0] = 4  # the second would stand beyond the end
    scores = offset_scores([text], 2, lambda _: guesses)
    assert scores["first_by_offset"] == [pytest.approx(2 / 3, abs=1e-4), 1.0]
    assert scores["among_3_by_offset"] == [1.0, 1.0]
    assert scores["accepted"] == 1.0  # 2 and 0, of two drafts
    assert scores["tokens"] == 3


def test_chain_scores_are_of_the_next_tokens() -> None:
    text = Written([1, 2, 3, 4, 5, 6, 7], prompt=2)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        guessed = ids + 1
        guessed[ids == 5] = 0  # wrong once
        return F.one_hot(guessed, 10).float()

    scores = chain_scores([text], logits)
    assert scores["agreement"] == 0.8
    assert scores["accepted"] == pytest.approx((3 + 2) / 2)  # drafts of four begin at two places


def test_chances_that_are_right_are_judged_well() -> None:
    rng = np.random.default_rng(3)
    chances = rng.random(20_000)
    accepted = rng.random(20_000) < chances
    scores = judged(chances, accepted)
    assert scores["calibration_error"] < 0.02
    assert scores["auc"] == pytest.approx(5 / 6, abs=0.01)  # of uniform chances
    assert judged(chances**3, accepted)["calibration_error"] > 0.15
    assert judged(np.ones(4), np.ones(4))["auc"] is None


# -- text ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(BUILT_IN["lab"])


def test_texts_and_chats_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    lines: list[Any] = [{"messages": chat}, {"text": "three " * 1200}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pieces = read_documents((path,), (path,), tokenizer, 0)
    question = pieces.train[0]
    asked = tokenizer.decode(question.tokens[: question.prompt], skip_special_tokens=False)
    assert asked.endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(question.tokens[question.prompt :]).startswith("Two.")
    assert pieces.train[-1].tokens[-1] == 0
    assert pieces.held_out == {"data": pieces.train}


def test_one_long_text_has_a_held_out_part_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text(" ".join(f"word {i}" for i in range(2000)))
    pieces = read_documents((path,), (), tokenizer, None)
    held_out = sum(len(piece.tokens) for piece in pieces.held_out["held_out"])
    share = held_out / (held_out + sum(len(piece.tokens) for piece in pieces.train))
    assert 0.02 < share < 0.08


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "too little", r"training needs at least 1000 tokens, .*found in .*a\.txt: \d\."),
        ("a.jsonl", '{"text": "x"}\nno', "line 2 of .* is not JSON"),
        ("a.jsonl", '{"prompt": "x"}', 'has neither a "text" nor "messages"'),
        ("a.jsonl", "[]", 'has neither a "text" nor "messages"'),
    ],
)
def test_unusable_text_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_documents((tmp_path / name,), (), tokenizer, None)


def test_lab_documents_are_questions_of_the_train_split(tokenizer: Tokenizer) -> None:
    pieces = lab_documents(tokenizer, seed=1, items=200)
    assert all(piece.prompt for piece in pieces.train)
    assert len(pieces.held_out["held_out"]) >= 5


def test_windows_read_each_part_once_before_any_again() -> None:
    windows = Windows([range(50), range(50, 101)], context=10, seed=1, stage=0)
    starts = [int(windows.batch(step, 1)[0, 0]) for step in range(9)]
    assert len({start // 10 for start in starts}) == 9
    assert windows.batch(0, 2).shape == (2, 11)
    again = Windows([range(101)], context=10, seed=1, stage=0)
    assert np.array_equal(again.batch(4, 3), windows.batch(4, 3))
    assert Windows([range(8)], context=10, seed=1, stage=0).batch(3, 1).shape == (1, 8)


def test_outputs_are_kept_as_they_are(tmp_path: Path) -> None:
    outputs = Outputs([Written([1, 2, 3], 1), Written([4, 5], 1)], {"code": [Written([6, 7], 1)]})
    outputs.save(tmp_path / "outputs.npz")
    assert Outputs.load(tmp_path / "outputs.npz") == outputs


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "eagle"}, "no method 'eagle' to train; there are draft_model, medusa"),
        ({"method": "medusa", "layers": 2}, "layers is for draft_model and early_exit only"),
        ({"method": "draft_model", "heads": 2}, "heads is for medusa and prompt_tokens only"),
        ({"method": "medusa", "tokens": 0}, "tokens must be at least 1, got 0"),
        ({"method": "medusa", "heads": 65}, "heads must be at most 64, got 65"),
        ({"method": "medusa", "context": 8}, "context must be at least 16 tokens, got 8"),
        ({"method": "medusa", "rate": float("nan")}, "rate must be positive"),
        ({"method": "draft_model", "text_share": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({"method": "acceptance"}, "needs a draft_model, whose tokens it judges"),
        ({"method": "draft_model", "start": Path("d"), "layers": 2}, "start brings layers"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Settings(**{"target": "lab", "out": Path("out"), **given})
