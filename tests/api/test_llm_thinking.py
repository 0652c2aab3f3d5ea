"""`LLM.chat` with a budget of thoughts, and what the answer must look like after them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ockham import LLM, SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.thoughts import CLOSING
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_llama

OPENED = "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["b", "c"]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["none", "auto"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = tiny_llama(tmp_path_factory.mktemp("thinker"), tokenizer=True)
    (directory / "chat_template.jinja").write_text(FAMILIES["hermes"].template + OPENED)
    with LLM(str(directory), speculative_config=request.param) as made:
        yield made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"choice": ["Yes.", "No."]}, r"(Yes|No)\."),
        ({"regex": "[0-9]{2}/[a-c]"}, "[0-9]{2}/[a-c]"),
        ({"grammar": 'root ::= "a" [0-9] "}"'}, r"a[0-9]\}"),
        ({"json": SCHEMA}, r"\{\s*\"a\"\s*:\s*\"[bc]\"\s*\}"),
    ],
)
def test_the_answer_has_its_form_behind_a_thought_that_was_ended(
    llm: LLM, asked: dict[str, Any], fits: str, temperature: float
) -> None:
    params = SamplingParams(
        temperature=temperature,
        seed=5,
        max_tokens=120,
        thinking_token_budget=8,
        structured_outputs=StructuredOutputsParams(**asked),
        stop=["\n\n"],
    )
    [output] = llm.chat([{"role": "user", "content": "x"}], params, use_tqdm=False)
    (choice,) = output.outputs
    assert choice.reply is not None
    assert (choice.reply.reasoning or "").endswith(CLOSING.strip())
    assert re.fullmatch(fits, choice.reply.content or ""), choice.text
    assert choice.finish_reason == "stop"
