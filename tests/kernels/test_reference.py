"""What the reference backend does beyond plain chains: trees, scores, hidden states, embeddings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.ops import Program
from ockham.kernels.reference import attend as reference_attend
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.model.loading import LoadedModel
from tests.helpers.oracle import Case, load
from tests.helpers.steps import Part, Stepper, prompt_logits

CASES = {
    "full": Case("Qwen3", {"head_dim": 16}),
    "window": Case("Mistral", {"sliding_window": 5}),
    "both": Case("Gemma2", {"head_dim": 16, "sliding_window": 6}),
    "sinks": Case("GptOss", {"head_dim": 16, "sliding_window": 6, "num_local_experts": 4}),
}
TREE_TOKENS = [11, 12, 13, 14, 15, 16, 17]
TREE_PARENTS = [-1, 0, 0, 1, 2, 3, -1]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A transformers model and the same as loaded here."""
    directory = tmp_path_factory.mktemp(request.param)
    oracle = CASES[request.param].build()
    oracle.save_pretrained(directory)
    return oracle, load(directory, max_model_len=128)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return np.random.default_rng(3).integers(3, 101, 19).tolist()


def path_to(node: int) -> list[int]:
    """The tokens from the root of the tree to a node."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, TREE_TOKENS[node])
        node = TREE_PARENTS[node]
    return path


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() < 1e-4 * (expected.max() - expected.min()))


def test_a_tree_gives_what_decoding_each_path_one_by_one_gives(
    pair: Any, prompt: list[int]
) -> None:
    _, model = pair
    stepper = Stepper(model)
    other = prompt[:7]
    stepper.step([Part(0, prompt), Part(1, other)])
    output = stepper.step([Part(1, [40, 41]), Part(0, TREE_TOKENS, TREE_PARENTS)])
    for node in range(len(TREE_TOKENS)):
        alone = prompt_logits(model, [prompt + path_to(node)], 1)[0][-1]
        assert close(output.logits[2 + node], alone), f"node {node}"
    chain = prompt_logits(model, [[*other, 40, 41]], 1)[0][-2:]
    assert close(output.logits[:2], chain)


def test_scores_are_transformers_attention_by_key_value_head(pair: Any, prompt: list[int]) -> None:
    oracle, model = pair
    with torch.no_grad():
        attentions = oracle(input_ids=torch.tensor([prompt]), output_attentions=True).attentions
    rows = [0, 4, 18]
    wanted = {layer: np.array(rows, np.int32) for layer in (0, 1, 3)}
    output = Stepper(model).step([Part(0, prompt)], wants_scores=wanted, wants_score_sums=wanted)
    for layer in wanted:
        heads = attentions[layer][0].numpy()
        by_head = heads.reshape(model.layouts[0].spec.uniform.heads, -1, *heads.shape[1:]).sum(1)
        window = model.description.windows[layer]
        for place, row in enumerate(rows):
            first = 0 if window is None else max(0, row + 1 - window)
            found, summed = output.scores[layer][place], output.score_sums[layer][place]
            assert np.allclose(found, by_head[:, row, first : row + 1], atol=1e-4)
            assert np.allclose(summed, heads.sum(0)[row, first : row + 1], atol=1e-4)


def test_scores_of_tree_rows_follow_the_order_of_their_keys(pair: Any, prompt: list[int]) -> None:
    _, model = pair
    tree, chain = Stepper(model), Stepper(model)
    node, layer = 5, 1
    tree.step([Part(0, prompt)])
    wanted = {layer: np.array([node], np.int32)}
    found = tree.step([Part(0, TREE_TOKENS, TREE_PARENTS)], wants_scores=wanted).scores[layer][0]
    path = path_to(node)
    chain.step([Part(0, prompt)])
    last = {layer: np.array([len(path) - 1], np.int32)}
    expected = chain.step([Part(0, path)], wants_scores=last).scores[layer][0]
    assert np.allclose(found, expected, atol=1e-4)


def test_hidden_states_are_those_of_transformers(pair: Any, prompt: list[int]) -> None:
    oracle, model = pair
    with torch.no_grad():
        states = oracle(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
    rows = np.array([2, 9, 18], np.int32)
    output = Stepper(model).step([Part(0, prompt)], wants_hidden=dict.fromkeys((-1, 0, 2), rows))
    for layer, found in output.hidden.items():
        assert close(found, states[layer + 1][0].numpy()[rows])


def test_an_embedding_as_input_is_worth_its_token(pair: Any, prompt: list[int]) -> None:
    oracle, model = pair
    with torch.no_grad():  # a step's embeddings are not scaled
        embeddings = oracle.get_input_embeddings()(torch.tensor(prompt)).numpy()
    stepper = Stepper(model)
    nowhere = [2**31 - 1] * len(prompt)  # ids of such rows are never looked at
    found = stepper.step([Part(1, [5, 6]), Part(0, nowhere, embeddings=embeddings)]).logits
    assert close(found[2:], prompt_logits(model, [prompt], 512)[0])


def test_logits_are_computed_for_wanted_rows_only(pair: Any, prompt: list[int]) -> None:
    _, model = pair
    everything = Stepper(model).step([Part(0, prompt)]).logits
    some = Stepper(model).step([Part(0, prompt)], wants_logits=[3, 18]).logits
    none = Stepper(model).step([Part(0, prompt)], wants_logits=[]).logits
    assert close(some, everything[[3, 18]])
    assert none.shape == (0, model.description.vocab_size)


def test_long_prompts_are_attended_in_blocks_of_rows(
    pair: Any, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = pair
    expected = prompt_logits(model, [prompt], 512)[0]
    monkeypatch.setattr(reference_attend, "SCORE_VALUES", 4 * 19 * 3)  # three rows at a time
    assert close(prompt_logits(model, [prompt], 512)[0], expected)


def test_a_program_may_be_run_in_ranges(pair: Any, prompt: list[int]) -> None:
    _, model = pair
    stepper = Stepper(model)
    run = stepper.executor.begin(stepper.build([Part(0, prompt)]))
    cuts = sorted({0, *model.program.breakpoints.values(), len(model.program.ops)})
    for start, stop in itertools.pairwise(cuts):
        stepper.executor.run(run, start, stop)
    whole = prompt_logits(model, [prompt], 512)[0]
    assert (stepper.executor.finish(run).logits == whole).all()


def test_replacing_x_at_a_breakpoint_takes_effect(pair: Any, prompt: list[int]) -> None:
    _, model = pair
    stepper, head = Stepper(model), model.program.breakpoints["head"]
    run = stepper.executor.begin(stepper.build([Part(0, prompt)]))
    stepper.executor.run(run, 0, head)
    run.x = np.repeat(run.x[:1], len(prompt), axis=0)
    stepper.executor.run(run, head, len(model.program.ops))
    logits = stepper.executor.finish(run).logits
    assert close(logits, np.repeat(logits[:1], len(prompt), axis=0))


@pytest.fixture(scope="module")
def bfloat16_state(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("bfloat16")
    Case("Llama").build().save_pretrained(directory)
    return load(directory, max_model_len=128, kv_cache_dtype="bfloat16")


def test_state_is_read_back_as_stored_even_within_the_step(
    bfloat16_state: LoadedModel, prompt: list[int]
) -> None:
    """If the step that computes a key used it unrounded, chunks would differ by the rounding."""
    in_one = prompt_logits(bfloat16_state, [prompt], 512)[0]
    one_by_one = prompt_logits(bfloat16_state, [prompt], 1)[0]
    assert np.abs(in_one - one_by_one).max() < 1e-4 * np.ptp(in_one)


def test_planes_give_back_their_bits() -> None:
    layouts = [
        GroupLayout((0, 2), StateSpec.attention(2, 4, "bfloat16"), pages=3, page_tokens=4),
        GroupLayout((1,), StateSpec.attention(1, 8, "float32", 7), pages=2, page_tokens=4),
    ]
    planes = ReferenceBackend().allocate(layouts)
    rng = np.random.default_rng(0)
    for group, shape in enumerate([(2, 2, 3, 2, 4), (1, 2, 3, 1, 8)]):
        source, target = np.array([5, 0, 7]), np.array([1, 6, 2])
        dtype = np.uint16 if group == 0 else np.float32
        state = rng.integers(0, 2**16, shape).astype(dtype)
        planes.write(group, source, state)
        planes.copy(group, source, target)
        assert (planes.read(group, target) == state).all()
        assert planes.read(group, target).dtype == dtype


def test_stored_keys_are_rounded_to_the_nearest_bfloat16() -> None:
    layout = GroupLayout((0,), StateSpec.attention(1, 4, "bfloat16"), pages=1, page_tokens=4)
    planes = ReferenceBackend().allocate([layout])
    keys = np.array([[[1.00390625, 1.01171875, -3.1415927, 1e-3]]], np.float32)  # two ties
    planes.store(0, np.array([2]), keys, -keys)
    stored = planes.read(0, np.array([2]))[0, 0, 0].view(ml_dtypes.bfloat16)
    assert stored.ravel().tolist() == [1.0, 1.015625, -3.140625, 0.00099945068359375]


def test_a_step_that_breaks_its_contract_is_refused(pair: Any) -> None:
    _, model = pair
    stepper = Stepper(model)
    step = stepper.build([Part(0, [5, 6, 7])])
    step.positions = step.positions[:2]
    with pytest.raises(ValueError, match="one entry for each of 3 rows"):
        stepper.executor.begin(step)


def test_foreign_planes_are_refused(pair: Any) -> None:
    with pytest.raises(TypeError, match="allocated itself"):
        ReferenceBackend().bind(Program(()), object())  # type: ignore[arg-type]


def test_no_page_that_a_window_let_go_is_read(tmp_path: Path) -> None:
    """The stepper fills such pages with NaN: one read would show in every later logit."""
    Case("Mistral", {"sliding_window": 3}).build().save_pretrained(tmp_path)
    model = load(tmp_path, max_model_len=128)
    logits = prompt_logits(model, [np.arange(3, 63).tolist()], 5)[0]
    assert np.isfinite(logits).all()
