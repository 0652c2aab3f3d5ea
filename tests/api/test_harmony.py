"""gpt-oss from end to end: a model of its architecture, its special tokens and its kind of chat
template. Its weights are random, so that only grammars make sense of what it writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ockham import LLM, SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.model.hub import BUILT_IN
from tests.helpers.families import FAMILIES
from tests.helpers.gpt_oss import tiny_gpt_oss

pytest.importorskip("llguidance")

SPECIAL = (
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
    *("<|return|>", "<|call|>"),
)
ASKED = [{"role": "user", "content": "Where is it warm?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    made = tmp_path_factory.mktemp("harmony")
    lab = Path(BUILT_IN["lab"])
    backend = Backend.from_file(str(lab / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    ends = [backend.token_to_id(text) for text in ("<|return|>", "<|call|>")]
    size = backend.get_vocab_size(with_added_tokens=True)
    tiny_gpt_oss(made, vocab_size=size, eos_token_id=ends, max_position_embeddings=1024)
    shutil.copy(lab / "tokenizer_config.json", made)
    backend.save(str(made / "tokenizer.json"))
    (made / "chat_template.jinja").write_text(FAMILIES["gpt-oss"].template)
    with LLM(str(made), max_model_len=1024) as made_llm:
        yield made_llm


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_call_that_is_asked_for_comes(llm: LLM, choice: Any) -> None:
    params = SamplingParams(max_tokens=400, seed=3, thinking_token_budget=20)
    [output] = llm.chat(ASKED, params, tools=TOOLS, tool_choice=choice)
    reply = output.outputs[0].reply
    assert reply is not None
    [call] = reply.tool_calls
    assert call.name == "look"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")


def test_json_comes_in_the_final_channel(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    asked = StructuredOutputsParams(json={**schema, "additionalProperties": False})
    params = SamplingParams(
        max_tokens=400, seed=4, thinking_token_budget=20, structured_outputs=asked
    )
    [output] = llm.chat(ASKED, params)
    reply = output.outputs[0].reply
    assert reply is not None
    assert reply.content is not None
    assert json.loads(reply.content)["a"] in (1, 2)
