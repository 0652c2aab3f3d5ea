"""A generative checkpoint without its head ends in hidden states after the final norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ockham.kernels.ops import HiddenOutput
from tests.helpers.oracle import Case, load
from tests.helpers.steps import Part, Stepper


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_hidden_states_of_named_rows_are_those_of_transformers(
    tmp_path: Path, backend: str
) -> None:
    case = Case("Qwen3", {"head_dim": 16})
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    model = load(tmp_path, head=False, backend=backend)
    layers = model.description.layers
    assert isinstance(model.program.ops[-1], HiddenOutput)
    assert not any(role == "head" for role in model.program.matrices())
    prompts = case.prompts()
    ends = np.cumsum([len(prompt) for prompt in prompts])
    rows = np.array([0, *(ends - 1)], np.int32)
    found = Stepper(model).step(
        [Part(i, prompt) for i, prompt in enumerate(prompts)],
        wants_logits=[],
        wants_hidden={layers: rows},
    )
    assert found.logits.shape[0] == 0
    with torch.no_grad():
        every = [oracle.model(torch.tensor([p])).last_hidden_state[0].numpy() for p in prompts]
    expected = np.stack([every[0][0], *(states[-1] for states in every)])
    assert np.abs(found.hidden[layers] - expected).max() < 1e-4 * np.abs(expected).max()


def test_hidden_states_are_given_to_rows_that_want_them_only(tmp_path: Path) -> None:
    case = Case("Llama")
    case.build().save_pretrained(tmp_path)
    model = load(tmp_path, head=False)
    assert Stepper(model).step([Part(0, [5, 6, 7])], wants_logits=[]).hidden == {}
