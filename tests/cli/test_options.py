"""Flags go before the environment, the environment before the file, the file before defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from ockham.cli import options
from ockham.cli.main import cli
from ockham.cli.options import (
    engine_config,
    engine_options,
    sampling_options,
    sampling_params,
)
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams

DEFAULTS = SamplingParams(temperature=0.5, max_tokens=256)


@click.command()
@engine_options
@sampling_options
def probe(**kwargs: Any) -> None:
    click.echo(msgspec.json.encode(engine_config(**kwargs)).decode())
    click.echo(msgspec.json.encode(sampling_params(DEFAULTS, **kwargs)).decode())


def call(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(probe, args, env=env)


def settings(*args: str, env: dict[str, str] | None = None) -> EngineConfig:
    result = call(*args, env=env)
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout.splitlines()[0], type=EngineConfig)


def sampling(*args: str, env: dict[str, str] | None = None) -> SamplingParams:
    result = call(*args, env=env)
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout.splitlines()[1], type=SamplingParams)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("max-model-len: 2K\nmax_num_seqs: 3\nseed: 5\nstop: 'a b'\n")
    return path


def test_a_file_names_flags_as_they_are_spelt(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("json: true\nmax-tokens: 1\n")
    result = CliRunner().invoke(cli, ["run", "--config", str(path), "-p", "x"])
    assert result.exit_code == 0, result.output
    assert '"outputs"' in result.stdout


def test_contradicting_precisions_are_refused() -> None:
    refused = call("--dtype", "bfloat16", "--quantization", "fp32")
    assert "contradicts quantization 'fp32'" in str(refused.exception)
    assert settings("--dtype", "bfloat16", "--quantization", "bf16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("q8_0", "int8"),
        ("Q4_0", "int4"),
        ("bf16", "bfloat16"),
        ("k=int8,v=int4", "k=int8,v=int4"),
        ("v=q4_0/k=int8", "k=int8,v=int4"),
        ("k=int4,v=int4", "int4"),
        ("auto", "auto"),
    ],
)
def test_types_of_keys_and_values_have_names_of_others(text: str, meant: str) -> None:
    assert settings("--kv-cache-dtype", text).kv_cache_dtype == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fp8_e4m3", "8-bit floats are not supported for keys and values; take int8"),
        ("f16", "half precision is not supported for keys and values; take bfloat16"),
        ("q5_1", "5 bits are not supported"),
        ("int3", "must be one of auto, bfloat16, float32, int8, int4"),
        ("k=int8", "a type for keys and one for values"),
        ("k=int8,v=int8,v=int4", "a type for keys and one for values"),
        ("k=bfloat16,v=int8", "keeps keys in bfloat16 and values in int8"),
        ("", "must be one of auto"),
    ],
)
def test_types_of_keys_and_values_that_do_not_exist_are_refused(text: str, why: str) -> None:
    assert why in " ".join(call("--kv-cache-dtype", text).output.split())
    with pytest.raises(ConfigError, match=re.escape(why)):
        EngineConfig(kv_cache_dtype=text)


def test_nothing_given_is_the_default() -> None:
    assert settings() == EngineConfig()
    assert sampling() == DEFAULTS


def test_the_file_goes_before_the_default(file: Path) -> None:
    config = settings("--config", str(file))
    assert (config.max_model_len, config.max_num_seqs, config.seed) == (2048, 3, 5)


def test_the_environment_goes_before_the_file(file: Path) -> None:
    config = settings("--config", str(file), env={"OCKHAM_MAX_NUM_SEQS": "4"})
    assert (config.max_num_seqs, config.seed) == (4, 5)


def test_a_flag_goes_before_the_environment(file: Path) -> None:
    env = {"OCKHAM_MAX_NUM_SEQS": "4", "OCKHAM_SEED": "6"}
    config = settings("--config", str(file), "--max-num-seqs", "5", env=env)
    assert (config.max_num_seqs, config.seed) == (5, 6)


def test_the_file_can_be_named_in_the_environment(file: Path) -> None:
    assert settings(env={"OCKHAM_CONFIG": str(file)}).seed == 5


def test_the_model_is_an_argument_or_a_flag(file: Path) -> None:
    assert settings().model == "lab"
    assert settings("--model", "a").model == "a"
    assert settings(env={"OCKHAM_MODEL": "b"}).model == "b"
    assert settings("c", env={"OCKHAM_MODEL": "b"}).model == "c"
    assert settings("c", "--model", "c").model == "c"
    refused = call("c", "--model", "a")
    assert "two models are named, 'c' and --model 'a'" in str(refused.exception)


def test_every_flag_has_its_environment_variable() -> None:
    for parameter in probe.params:
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len).removeprefix("--")
            assert parameter.envvar == "OCKHAM_" + flag.upper().replace("-", "_")


def test_every_flag_explains_itself() -> None:
    fields = msgspec.structs.fields
    assert {f.name for f in fields(EngineConfig)} - {"model"} == set(options._ENGINE_HELP)
    assert {f.name for f in fields(SamplingParams)} - {"asks", "thought"} == set(
        options._SAMPLING_HELP
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1024", 1024),
        ("1k", 1000),
        ("32K", 32768),
        ("1.5k", 1500),
        ("2M", 2 << 20),
        ("1_000", 1000),
    ],
)
def test_integers_may_be_short(text: str, value: int) -> None:
    assert settings("--max-model-len", text).max_model_len == value


@pytest.mark.parametrize("text", ["many", "1.5", "1.0001k", "k", "", "1e400K"])
def test_what_is_no_integer_is_refused(text: str) -> None:
    result = call("--max-model-len", text)
    assert result.exit_code == 2
    assert "is not an integer" in result.output


def test_sampling_flags_change_only_what_they_name() -> None:
    params = sampling("--top-k", "3", "--stop", "x y", "--stop", "z", "--sampling-seed", "9")
    assert params == msgspec.structs.replace(DEFAULTS, top_k=3, stop=["x y", "z"], seed=9)


def test_lists_and_objects_have_their_own_spelling() -> None:
    params = sampling("--allowed-token-ids", "1,2", "--logit-bias", '{"3": -1}', "--ignore-eos")
    assert (params.allowed_token_ids, params.logit_bias) == ([1, 2], {3: -1.0})
    assert params.ignore_eos


def test_a_stop_text_from_the_environment_may_hold_spaces() -> None:
    assert sampling(env={"OCKHAM_STOP": "a b"}).stop == ["a b"]
    assert sampling(env={"OCKHAM_STOP": '["a b", "c"]'}).stop == ["a b", "c"]


def test_a_single_stop_text_in_the_file_is_one_text(file: Path) -> None:
    assert sampling("--config", str(file)).stop == ["a b"]


def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max-model-length: 3\n")
    result = call("--config", str(path))
    assert result.exit_code == 2
    assert "'max-model-length'" in result.output
    assert "max-model-len" in result.output


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    result = call("--config", str(path))
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_value_of_the_wrong_kind_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max-num-seqs: [1]\n")
    assert call("--config", str(path)).exit_code == 2


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# nothing yet\n")
    assert settings("--config", str(path)) == EngineConfig()


def test_a_missing_file_is_refused() -> None:
    assert call("--config", "/no/such/file.yaml").exit_code == 2


@pytest.mark.parametrize("flags", [["--logit-bias", "3"], ["--allowed-token-ids", "1,x"]])
def test_malformed_lists_are_refused(flags: list[str]) -> None:
    assert call(*flags).exit_code == 2


def test_a_count_that_is_no_integer_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"max_tokens must be an integer in .*, got 0\.5"):
        SamplingParams(max_tokens=0.5)  # type: ignore[arg-type]


def test_a_file_may_hold_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("speculative-config: {method: ngram, num_speculative_tokens: 4}\n")
    expected = {"method": "copying", "num_speculative_tokens": 4}
    assert settings("--config", str(path)).speculative_config == expected


def test_techniques_are_asked_for_by_name() -> None:
    plain = SamplingParams(n=2, temperature=0)
    params = options.sampling_params(plain, ask=("choices", "superposed"))
    assert params.asks is not None
    assert set(params.asks) == {"search/choices", "search/superposed"}
    for given, said in (
        ("nothing", "no technique 'nothing'"),
        ("superposed={", "the settings of superposed are no JSON"),
        ('superposed={"drafts": 2}', "superposed takes no drafts"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            options.sampling_params(plain, ask=(given,))


def test_structured_outputs_are_json() -> None:
    kind = options.Json(StructuredOutputsParams)
    expected = StructuredOutputsParams(regex="a+")
    assert kind.convert('{"regex": "a+"}', None, None) == expected
    assert kind.convert({"regex": "a+"}, None, None) == expected
    for wrong in ("{", "{}", '{"regx": "a"}'):
        with pytest.raises(click.BadParameter, match="cannot be used"):
            kind.convert(wrong, None, None)
