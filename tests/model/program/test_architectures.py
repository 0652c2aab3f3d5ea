"""Every architecture's logits are transformers' logits, however the prompt is cut into steps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.architectures import CASES
from tests.helpers.oracle import assert_same_logits, load, oracle_logits
from tests.helpers.steps import prompt_logits


@pytest.fixture(scope="module", params=CASES)
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case, its loaded checkpoint, and the oracle's logits of its prompts."""
    case = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    oracle = case.build()
    oracle.save_pretrained(directory)
    return (
        case,
        load(directory, max_model_len=case.max_model_len),
        oracle_logits(oracle, case.prompts()),
    )


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_logits_are_those_of_transformers(checked: Any, chunk: int) -> None:
    case, model, expected = checked
    assert_same_logits(prompt_logits(model, case.prompts(), chunk), expected)
