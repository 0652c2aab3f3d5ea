"""Hidden states and logits of every encoder and classifier are those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ockham.core.errors import ModelError
from tests.helpers.encoders import (
    CLASSIFIERS,
    ENCODERS,
    hidden_states,
    load_encoder,
    pooled,
    texts,
)


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Differences below 1e-4 of the largest value."""
    size = max(float(np.abs(e).max()) for e in expected)
    worst = max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True))
    assert worst < 1e-4 * size, f"{worst} of {size}"


def oracle_states(oracle: Any, batch: list[list[int]], **inputs: Any) -> list[np.ndarray]:
    """Each text alone: (T, hidden)."""
    base = oracle.base_model
    with torch.no_grad():
        return [base(torch.tensor([t]), **inputs).last_hidden_state[0].numpy() for t in batch]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_transformers(tmp_path: Path, name: str, backend: str) -> None:
    oracle = ENCODERS[name].save(tmp_path)
    model = load_encoder(tmp_path, backend=backend)
    assert_close(hidden_states(model, texts()), oracle_states(oracle, texts()))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    oracle = CLASSIFIERS[name].save(tmp_path)
    model = load_encoder(tmp_path)
    rule = model.description.pooling
    assert rule is not None
    assert rule.classifies
    found = [pooled(model, states) for states in hidden_states(model, texts())]
    with torch.no_grad():
        expected = [oracle(torch.tensor([text])).logits[0].numpy() for text in texts()]
    assert len(rule.labels) == len(expected[0])
    assert_close(found, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_second_text_of_a_pair_has_its_own_type(tmp_path: Path, backend: str) -> None:
    oracle = ENCODERS["bert"].save(tmp_path)
    model = load_encoder(tmp_path, backend=backend)
    text = texts()[0]
    types = [int(place > 20) for place in range(len(text))]
    found = hidden_states(model, [text[:9], text], [[0] * 9, types])
    expected = oracle_states(oracle, [text], token_type_ids=torch.tensor([types]))
    assert_close(found[1:], expected)
    assert np.abs(found[1] - hidden_states(model, [text])[0]).max() > 0.01


@pytest.mark.parametrize("name", ["bert", "modernbert", "embedding-gemma"])
def test_company_and_threads_do_not_change_a_bit(tmp_path: Path, name: str) -> None:
    ENCODERS[name].save(tmp_path)
    together = hidden_states(load_encoder(tmp_path), texts())
    one = load_encoder(tmp_path, threads=1)
    for text, states in zip(texts(), together, strict=True):
        assert np.array_equal(hidden_states(one, [text])[0].view(np.uint32), states.view(np.uint32))


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_modernbert_of_the_hub_says_its_layers_by_older_keys(tmp_path: Path) -> None:
    oracle = ENCODERS["modernbert"].save(tmp_path)
    before = hidden_states(load_encoder(tmp_path), texts())

    def older(config: dict[str, Any]) -> None:
        del config["layer_types"], config["rope_parameters"]
        config |= {"global_attn_every_n_layers": 3, "norm_eps": 1e-5}
        config |= {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}

    rewrite(tmp_path, older)
    found = hidden_states(load_encoder(tmp_path), texts())
    assert_close(found, oracle_states(oracle, texts()))
    assert all(np.array_equal(one, other) for one, other in zip(found, before, strict=True))


def test_an_old_checkpoint_of_bert_names_its_norms_otherwise(tmp_path: Path) -> None:
    oracle = ENCODERS["bert"].save(tmp_path)
    path = tmp_path / "model.safetensors"
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in load_file(path).items()
    }
    save_file(renamed, path)
    assert_close(hidden_states(load_encoder(tmp_path), texts()), oracle_states(oracle, texts()))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("position_embedding_type", "relative_key", "only absolute positions are supported"),
        ("is_decoder", True, "encoders are supported as encoders only"),
        ("hidden_act", "mish", "the activation 'mish' is not supported"),
        ("layer_norm_eps", -1, "layer_norm_eps of config.json must be a positive number"),
        ("type_vocab_size", 0, "type_vocab_size of config.json must be a positive integer"),
    ],
)
def test_what_an_encoder_cannot_have_is_refused(
    tmp_path: Path, key: str, value: object, sentence: str
) -> None:
    ENCODERS["bert"].save(tmp_path)
    rewrite(tmp_path, lambda config: config.update({key: value}))
    with pytest.raises(ModelError, match=sentence):
        load_encoder(tmp_path)
