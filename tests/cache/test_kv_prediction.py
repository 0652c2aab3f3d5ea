"""Keys and values that a smaller model predicts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from ockham import LLM, ConfigError, ReuseParams, SamplingParams
from ockham.cli.train import train
from ockham.core.errors import ModelError
from ockham.core.registry import make_asks
from ockham.lab.state_maps import fit_maps
from ockham.model.checkpoint.prediction_files import (
    StateMaps,
    StateSizes,
    assigned,
    features_of,
    read_maps,
    write_maps,
)
from tests.helpers.serving import ask, make_engine, serve
from tests.helpers.tiny import tiny_llama, tiny_mistral

PLAIN = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
REUSE = ReuseParams(reuse="kv_prediction")
SIZES = StateSizes(32, 1, 2, 8, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, so that its keys and values follow from the embeddings alone."""
    return tiny_llama(tmp_path_factory.mktemp("base"), num_hidden_layers=1, tokenizer=True)


@pytest.fixture(scope="module")
def true_maps(model: Path) -> StateMaps:
    """The model's own matrices, as maps from itself."""
    tensors = load_file(model / "model.safetensors")
    attention = "model.layers.0.self_attn."
    own = [tensors[f"{attention}{name}_proj.weight"] for name in "kv"]
    weights = np.zeros((1, 64, 32), np.float32)
    weights[0, :32] = np.concatenate(own).T
    return StateMaps(SIZES, str(model), (0,), weights, np.zeros((1, 32), np.float32), {})


@pytest.fixture(scope="module")
def folder(true_maps: StateMaps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    write_maps(folder, true_maps)
    return folder


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, 4096, length).tolist() for length in lengths]


def serving(model: Path, maps: Path, **settings: Any) -> LLM:
    options = {"reuse": f"prefix,kv_prediction:maps={maps},last_tokens=4", "dtype": "float32"}
    return LLM(str(model), **{**options, "speculative_config": "none", **settings})


def logprobs(output: Any) -> np.ndarray:
    found = output.outputs[0]
    return np.array([e[t].logprob for e, t in zip(found.logprobs, found.token_ids, strict=True)])


def test_true_maps_give_what_the_model_computes(model: Path, folder: Path) -> None:
    """The one layer's own matrices predict its state, so nothing is lost."""
    asked = prompts(90, 5, 33, 3)
    with serving(model, folder) as llm:
        exact = llm.generate(asked, PLAIN)
    with serving(model, folder) as llm:
        predicted = llm.generate(asked, PLAIN, reuse=REUSE)
    for one, other, tokens in zip(exact, predicted, asked, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        np.testing.assert_allclose(logprobs(one), logprobs(other), atol=1e-3)
        saved = other.ledger.saved.get("kv_prediction")
        assert (0 if saved is None else saved.tokens) == max(0, len(tokens) - 4)
        assert "kv_prediction" not in one.ledger.saved


def test_wrong_maps_change_the_answer_and_nobody_elses(
    model: Path, true_maps: StateMaps, tmp_path: Path
) -> None:
    """What was predicted is not found by others, and those beside it keep their bits."""
    write_maps(tmp_path, dataclasses.replace(true_maps, weights=-true_maps.weights))
    [prompt] = prompts(80)
    engine = make_engine(
        model, reuse=f"prefix,kv_prediction:maps={tmp_path}", speculative_config="none"
    )
    asks = make_asks({"reuse/kv_prediction": True})
    rounds = [
        serve(
            engine,
            [ask(name, prompt, salt, asks if name == "asks" else {}, logprobs=0) for name in names],
        )
        for salt, names in (
            ("a", ["alone"]),
            ("b", ["asks"]),
            ("c", ["asks", "beside"]),
            ("c", ["after"]),
        )
    ]
    said = [{name: one.logprobs for name, (one, _) in each.items()} for each in rounds]
    alone = said[0]["alone"]
    assert said[1]["asks"] != alone
    assert said[2] == {"asks": said[1]["asks"], "beside": alone}
    assert said[3]["after"] == alone
    assert rounds[1]["asks"][1].saved["kv_prediction"].tokens == 80 - 16


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_what_is_predicted_does_not_depend_on_company(
    dtype: str, model: Path, folder: Path
) -> None:
    asked = prompts(90, 140, 33)
    settings = {"kv_cache_dtype": dtype}
    with serving(model, folder, **settings) as llm:
        alone = [llm.generate([p], PLAIN, reuse=REUSE)[0] for p in asked]
    with serving(model, folder, max_num_batched_tokens=7, **settings) as llm:
        together = llm.generate(asked, PLAIN, reuse=REUSE)
    for one, other in zip(alone, together, strict=True):
        assert logprobs(one).tolist() == logprobs(other).tolist()


def test_a_prefix_that_is_held_is_not_predicted(model: Path, folder: Path) -> None:
    [prompt] = prompts(80)
    with serving(model, folder) as llm:
        llm.generate([prompt[:48]], PLAIN)
        [found] = llm.generate([prompt], PLAIN, reuse=REUSE)
    assert found.ledger.saved["kv_prediction"].tokens == 80 - 48 - 4


def test_the_true_maps_are_found(model: Path, true_maps: StateMaps) -> None:
    """One layer's state is linear in its embeddings: all of the variance is explained."""
    fitted = fit_maps(str(model), str(model), prompts(*[100] * 16))
    assert fitted.explained > 0.99
    assert fitted.maps.after == (0,)
    assert fitted.held_out_tokens == 200


def test_rows_of_maps_do_not_depend_on_each_other(true_maps: StateMaps) -> None:
    states = {n: np.random.default_rng(n + 1).standard_normal((150, 32)) for n in (-1, 0)}
    states = {n: x.astype(np.float32) for n, x in states.items()}
    [(keys, values)] = true_maps.keys_and_values(states)
    [(fewer, _)] = true_maps.keys_and_values({n: x[:70] for n, x in states.items()})
    assert keys[:70].tobytes() == fewer.tobytes()
    expected = features_of(states, 0) @ true_maps.weights[0]
    both = np.concatenate([keys, values], axis=1).reshape(150, -1)
    np.testing.assert_allclose(both, expected, atol=1e-5)


def test_layers_are_assigned_in_order() -> None:
    assert assigned(8, 2) == (0, 0, 0, 0, 1, 1, 1, 1)
    assert assigned(3, 5) == (0, 1, 3)


def test_what_is_trained_is_served(model: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "text.txt", tmp_path / "maps"
    words = ["red", "house", "river", "seven", "of", "the", "stone", "a"]
    rng = np.random.default_rng(2)
    data.write_text(" ".join(rng.choice(words, 1500)))
    command = ["kv-prediction", str(model), str(model), str(out), "--data", str(data)]
    ran = CliRunner().invoke(train, [*command, "--rows", "1000", "--context", "60"])
    assert ran.exit_code == 0, ran.output
    assert "held-out tokens, the maps explain" in ran.output
    assert f"--reuse prefix,kv_prediction:maps={out}" in ran.output
    assert read_maps(out).trained["base"] == str(model)
    with serving(model, out) as llm:
        [found] = llm.generate(prompts(60), PLAIN, reuse=REUSE)
    assert found.ledger.saved["kv_prediction"].tokens == 56
    again = CliRunner().invoke(train, command)
    assert "exists; name a directory that does not" in str(again.exception)


def test_models_that_do_not_fit_are_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    texts = prompts(*[20] * 8)
    other = tiny_llama(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has 97 tokens, and .* has 4096"):
        fit_maps(str(model), str(other), texts)
    with pytest.raises(ConfigError, match="at least 8 texts, and there are 3"):
        fit_maps(str(model), str(model), texts[:3])
    windows = tiny_mistral(tmp_path / "windows", tokenizer=True)
    with pytest.raises(ModelError, match="or with windows; its state cannot be predicted"):
        fit_maps(str(windows), str(model), texts)
    with pytest.raises(ConfigError, match="layers with a sliding window"):
        serving(windows, folder)
    larger = tiny_llama(tmp_path / "larger", tokenizer=True)
    with pytest.raises(ConfigError, match="are for a model of hidden size 32 with 1 layers"):
        serving(larger, folder)


def test_wrong_settings_are_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kv_prediction needs maps: name a directory"):
        LLM(str(model), reuse="prefix,kv_prediction")
    with pytest.raises(ConfigError, match="last_tokens must be at least 1, got 0"):
        LLM(str(model), reuse=f"prefix,kv_prediction:maps={folder},last_tokens=0")
    with pytest.raises(ModelError, match="name a directory that `ockham train kv-prediction`"):
        LLM(str(model), reuse=f"prefix,kv_prediction:maps={tmp_path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 7}, "is of version 7, and this Ockham reads version 1: train it anew"),
        ({"auxiliary": ""}, "names no auxiliary model, but ''"),
        ({"after": [-1]}, r"must be the number of a layer for each of 1, ascending, not \[-1\]"),
        ({"after": [0, 0]}, "must be the number of a layer for each of 1"),
        ({"head_dim": 9}, "has the shape .* is expected"),
        ({"head_dim": None}, "head_dim of .* is no size, but None"),
    ],
)
def test_damaged_maps_are_refused(
    change: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "maps"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "prediction.json").read_text())
    (copy / "prediction.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=message):
        read_maps(copy)
