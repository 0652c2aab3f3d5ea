"""What sentence-transformers wrote of pooling is read, and what is wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.model.converting import convert
from ockham.model.loading import load_model
from ockham.model.program.pooling import classifier_labels, classifier_score, read_pooling
from tests.helpers.encoders import ENCODERS, hidden_states, load_encoder, pooled, texts

MODULES = "sentence_transformers.models."
HIDDEN = 48


def write(directory: Path, stages: list[tuple[str, str]], **files: Any) -> Path:
    """modules.json with these (path, type), and the files beside it by their names."""
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": MODULES + kind}
        for i, (path, kind) in enumerate(stages)
    ]
    for name, value in {"modules": listed, **files}.items():
        path = directory / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return directory


def pooling(**modes: Any) -> dict[str, Any]:
    return {"word_embedding_dimension": HIDDEN, **modes}


PLAIN = [("", "Transformer"), ("1_Pooling", "Pooling")]
MEAN = {"1_Pooling/config": pooling(pooling_mode_mean_tokens=True)}
DENSE = {
    "2_Dense/config": {
        "in_features": HIDDEN,
        "out_features": 20,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    },
    "3_Dense/config": {
        "in_features": 20,
        "out_features": 9,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    },
}
CHAIN = [*PLAIN, ("2_Dense", "Dense"), ("3_Dense", "Dense"), ("4_Normalize", "Normalize")]


def with_dense(directory: Path) -> Path:
    """A BERT with two dense layers of random weights behind its mean."""
    ENCODERS["bert"].save(directory)
    write(directory, CHAIN, **MEAN, **DENSE)
    rng = np.random.default_rng(0)
    for folder, shape, bias in (("2_Dense", (20, HIDDEN), True), ("3_Dense", (9, 20), False)):
        tensors = {"linear.weight": rng.standard_normal(shape).astype(np.float32)}
        if bias:
            tensors["linear.bias"] = rng.standard_normal(shape[0]).astype(np.float32)
        save_file(tensors, directory / folder / "model.safetensors")
    return directory


def test_a_directory_without_modules_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path, HIDDEN) is None


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("cls_token", "cls"),
        ("max_tokens", "max"),
        ("mean_tokens", "mean"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len"),
        ("weightedmean_tokens", "weighted_mean"),
        ("lasttoken", "last"),
    ],
)
def test_each_way_to_pool_is_read(tmp_path: Path, mode: str, how: str) -> None:
    modes = {f"pooling_mode_{mode}": True, "pooling_mode_other": False, "include_prompt": False}
    write(tmp_path, PLAIN, **{"1_Pooling/config": pooling(**modes)})
    found = read_pooling(tmp_path, HIDDEN)
    assert found is not None
    assert (found.how, found.normalise, found.include_prompt) == (how, False, False)


def test_prompts_and_limits_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        [*PLAIN, ("2_Normalize", "Normalize")],
        **MEAN,
        config_sentence_transformers={
            "prompts": {"query": "find: ", "document": ""},
            "default_prompt_name": "query",
            "similarity_fn_name": "dot",
        },
        sentence_bert_config={"max_seq_length": 77, "do_lower_case": True},
    )
    found = read_pooling(tmp_path, HIDDEN)
    assert found is not None
    assert found.normalise
    assert found.prompts == {"query": "find: ", "document": ""}
    assert (found.default_prompt, found.similarity) == ("query", "dot")
    assert (found.max_tokens, found.lower_case) == (77, True)


def test_dense_layers_behind_the_mean_are_multiplied_with_it(tmp_path: Path) -> None:
    model = load_encoder(with_dense(tmp_path))
    states = hidden_states(model, texts())[0]
    [one, two] = [
        np.asarray(layer.weight.rows(np.arange(layer.weight.out_features, dtype=np.int32)))
        for layer in model.program.pooled
    ]
    bias = model.program.pooled[0].bias
    assert one.shape == (20, HIDDEN)
    assert two.shape == (9, 20)
    assert model.program.pooled[1].bias is None
    expected = two @ np.tanh(one @ states.mean(axis=0) + bias)
    assert np.allclose(
        pooled(model, states), expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6
    )


def test_what_stands_behind_the_pooling_is_not_quantised(tmp_path: Path) -> None:
    model = load_encoder(with_dense(tmp_path), quantization="int8")
    formats = {name: matrix.format for name, matrix in model.program.matrices().items()}
    assert {layer.weight.format for layer in model.program.pooled} == {"fp32"}
    assert (formats["positions"], formats["types"]) == ("fp32", "fp32")
    assert formats["layer.0.qkv"] == "int8"


def test_a_converted_directory_gives_the_same_bits(tmp_path: Path) -> None:
    source = with_dense(tmp_path / "source")
    config = EngineConfig(model=str(source), quantization="int8", max_num_batched_tokens=256)
    convert(config, tmp_path / "converted", lambda _: None)
    before = load_model(config)
    after = load_model(EngineConfig(model=str(tmp_path / "converted"), max_num_batched_tokens=256))
    found = [
        pooled(model, hidden_states(model, texts())[0]).view(np.uint32) for model in (before, after)
    ]
    assert np.array_equal(*found)


REFUSED = {
    "no list": ({"modules": {"a": 1}}, "no list"),
    "no pooling": ({"modules": []}, "names no pooling"),
    "a folder outside": (
        {"modules": [{"path": "", "type": "Transformer"}, {"path": "../x", "type": "Pooling"}]},
        "no folder beside it",
    ),
    "another module": (
        {"modules": [{"path": "", "type": "Transformer"}, {"path": "1_CNN", "type": "a.CNN"}]},
        "is not supported",
    ),
    "no way to pool": ({"1_Pooling/config": pooling()}, "chooses 0 known ways"),
    "two ways to pool": (
        {"1_Pooling/config": pooling(pooling_mode_cls_token=True, pooling_mode_max_tokens=True)},
        "chooses 2 known ways",
    ),
    "another width": (
        {"1_Pooling/config": {"word_embedding_dimension": 3, "pooling_mode_cls_token": True}},
        "pools hidden states of 3 elements",
    ),
    "prompts that are no texts": (
        {"config_sentence_transformers": {"prompts": {"a": 1}}},
        "must be at most 1000 texts",
    ),
    "an unknown default": (
        {"config_sentence_transformers": {"default_prompt_name": "a"}},
        "has no prompt 'a'",
    ),
    "a length that is none": ({"sentence_bert_config": {"max_seq_length": -1}}, "max_seq_length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    files, sentence = REFUSED[name]
    write(tmp_path, PLAIN, **{**MEAN, **files})
    with pytest.raises(ModelError, match=sentence):
        read_pooling(tmp_path, HIDDEN)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"in_features": 7}, "reads 7 elements, but is given 48"),
        ({"out_features": -7}, "must be positive integers"),
        ({"activation_function": "torch.Softshrink"}, "has the activation 'torch.Softshrink'"),
    ],
)
def test_a_dense_layer_that_does_not_fit_is_refused(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    dense = {"2_Dense/config": {**DENSE["2_Dense/config"], **changed}}
    write(tmp_path, [*PLAIN, ("2_Dense", "Dense")], **MEAN, **dense)
    with pytest.raises(ModelError, match=sentence):
        read_pooling(tmp_path, HIDDEN)


def test_a_dense_layer_without_weights_is_refused(tmp_path: Path) -> None:
    ENCODERS["bert"].save(tmp_path)
    write(tmp_path, CHAIN, **MEAN, **DENSE)
    with pytest.raises(ModelError, match=r"2_Dense has no model\.safetensors"):
        load_encoder(tmp_path)


def test_labels_are_in_the_order_of_the_outputs() -> None:
    assert classifier_labels({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert classifier_labels({"num_labels": 1}) == ("LABEL_0",)
    for wrong in ({"id2label": {"1": "b"}}, {"id2label": []}, {"num_labels": "x"}):
        with pytest.raises(ModelError, match=r"config\.json"):
            classifier_labels(wrong)


def test_the_activation_of_a_cross_encoder_is_read() -> None:
    assert classifier_score({}) is None
    name = "torch.nn.modules.linear.Identity"
    assert classifier_score({"sentence_transformers": {"activation_fn": name}}) == "identity"
    old = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}
    assert classifier_score(old) == "sigmoid"
