"""How a checkpoint's authors sample is found, in a directory or in a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.core.sampling_params import SamplingParams
from ockham.model.checkpoint.generation_config import CHAT, chat_defaults, sampling_defaults
from ockham.model.converting import convert
from ockham.model.loading import load_model
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import byte_level_bpe

SAID = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.05,
}


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A GGUF file with a tokenizer that says how to sample and what ends a turn."""
    backend = byte_level_bpe()
    backend.add_special_tokens(["<turn>", "<call>"])
    tiny_llama(tmp_path, vocab_size=backend.get_vocab_size())

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([backend.id_to_token(i) for i in range(backend.get_vocab_size())])
        merges = json.loads(backend.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_eos_token_id(backend.token_to_id("</s>"))
        writer.add_eot_token_id(backend.token_to_id("<turn>"))
        writer.add_eom_token_id(backend.token_to_id("<call>"))
        for name, key in (
            ("temperature", "temp"),
            ("top_k", "top_k"),
            ("top_p", "top_p"),
            ("min_p", "min_p"),
            ("repetition_penalty", "penalty_repeat"),
        ):
            getattr(writer, f"add_sampling_{key}")(SAID[name])

    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    write_gguf(tmp_path / "model.gguf", "llama", config, weights, metadata=metadata)
    return tmp_path / "model.gguf"


def test_a_gguf_file_says_how_to_sample_and_what_ends_a_turn(gguf_file: Path) -> None:
    model = load_model(EngineConfig(model=str(gguf_file)))
    assert model.sampling_defaults == SAID
    backend = byte_level_bpe()
    backend.add_special_tokens(["<turn>", "<call>"])
    ends = {backend.token_to_id(token) for token in ("</s>", "<turn>", "<call>")}
    assert ends <= set(model.eos_token_ids)
    neutral = load_model(EngineConfig(model=str(gguf_file), generation_config="vllm"))
    assert neutral.sampling_defaults == {}
    assert neutral.eos_token_ids == model.eos_token_ids


def test_a_converted_gguf_file_goes_on_saying_it(gguf_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    convert(EngineConfig(model=str(gguf_file)), out, lambda _: None)
    model = load_model(EngineConfig(model=str(out)))
    assert model.sampling_defaults == SAID
    assert model.eos_token_ids == load_model(EngineConfig(model=str(gguf_file))).eos_token_ids


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, CHAT),
        ({"repetition_penalty": 1.1, "max_tokens": 9}, {**CHAT, "repetition_penalty": 1.1}),
        ({"temperature": 1.0}, {"temperature": 1.0}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
    ],
)
def test_chats_have_defaults_of_ours_only_where_the_checkpoint_has_none(
    own: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = chat_defaults(own, "auto")
    assert {k: v for k, v in found.items() if k != "max_tokens"} == expected
    assert chat_defaults({}, "vllm") == {}
    SamplingParams(**found)


def test_defaults_that_cannot_be_are_refused() -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used: .*temperature"):
        sampling_defaults({"temperature": -1.0}, "auto")
    assert sampling_defaults({"temperature": -1.0}, "vllm") == {}
    assert sampling_defaults({"top_k": None, "do_sample": True}, "auto") == {}
