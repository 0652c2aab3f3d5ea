"""`ockham bench`, `doctor`, `models` and `techniques` report what is so, in words and as JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from ockham.cli.machine import Limits, allowed_cores
from ockham.cli.main import cli
from ockham.cli.random_checkpoint import SHAPES, write_random_checkpoint
from ockham.cli.report import describe_speed
from ockham.cli.spread import percentile, spread
from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.model.program.architectures import ARCHITECTURES
from tests.helpers.clocks import Clock


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def report(*args: str) -> Any:
    result = call(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    assert call("bench", "make-checkpoint", "--shape", "tiny", str(directory)).exit_code == 0
    return str(directory)


def test_an_instruction_set_that_is_none_is_refused_in_a_sentence(
    random_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCKHAM_ISA", "mmx")
    for args in (("doctor",), ("bench", "latency", random_model)):
        result = call(*args)
        assert result.exit_code == 2
        assert "OCKHAM_ISA: no instruction set is called 'mmx'" in result.output


def test_prefill_alone_is_compared_with_the_arithmetic_of_its_format(random_model: str) -> None:
    lengths = ("--input-len", "64", "--output-len", "1", "--repeats", "1")
    for quantization, arithmetic in (("int8", "int8"), ("bf16", "bf16"), ("fp32", "fp32")):
        args = ("bench", "latency", random_model, *lengths, "--quantization", quantization)
        assert report(*args)["limit_arithmetic"] == arithmetic
    assert "nan" not in call(*args).output


def test_latency_is_reported_beside_the_limits(
    random_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(1, 2e15, 3e15)  # above any machine's
    monkeypatch.setattr("ockham.cli.machine.measure_limits", lambda threads: limits)
    lengths = ("--input-len", "8", "--output-len", "4")
    found = report(
        "bench", "latency", random_model, *lengths, "--repeats", "2", "--batch-size", "2"
    )
    assert found["total_s"]["min"] > 0
    assert found["decode_tokens_per_s"]["median"] > 0
    assert 0 < found["decode_share_of_memory_limit"]["median"] < 1
    assert (found["limit_read_bytes_per_s"], found["limit_arithmetic_per_s"]) == (2e15, 3e15)
    for which in ("min", "max"):  # 2 tokens a step, which reads all weights and a little state
        share = found["decode_share_of_memory_limit"][which]
        step_bytes = 2 * share * 2e15 / found["decode_tokens_per_s"][which]
        assert 1 < step_bytes / found["model_weight_bytes"] < 1.1
    assert 0 < found["prefill_share_of_arithmetic_limit"]["median"] < 1
    assert found["time_to_first_token_s"]["median"] <= found["total_s"]["max"]
    assert 0 < found["step_overhead_s"]["median"] < found["total_s"]["median"]
    assert 0 < found["decode_overhead_share"]["median"] < 1


def test_startup_times_a_first_token_an_import_and_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The processes are real; how long they take is said by a clock that the test moves."""
    clock = Clock()

    def takes(arguments: list[str]) -> float:
        return {"import ockham": 5.0, "pass": 2.0}.get(arguments[-1], 11.0)

    class Timed(subprocess.Popen[bytes]):
        def __init__(self, arguments: list[str], **settings: Any) -> None:
            clock.move(takes(arguments))
            super().__init__(arguments, **settings)

    monkeypatch.setattr("ockham.cli.startup.time", clock)
    monkeypatch.setattr(subprocess, "Popen", Timed)
    found = report("bench", "startup", "lab", "--repeats", "1")
    times = [found[name]["median"] for name in ("first_token_s", "import_s", "python_s")]
    assert times == [11.0, 5.0, 2.0]
    assert found["prompt"] == "text"


def test_startup_takes_the_tokenizer_of_a_gguf_file_into_account(tmp_path: Path) -> None:
    args = ("bench", "make-checkpoint", "--shape", "tiny", "--gguf", str(tmp_path / "tiny"))
    assert call(*args).exit_code == 0
    found = report("bench", "startup", str(tmp_path / "tiny"), "--repeats", "1")
    assert found["prompt"] == "text"
    told = call("bench", "startup", str(tmp_path / "tiny"), "--repeats", "1")
    assert "to its first byte, a prompt of text" in told.output
    again = call(*args)
    assert again.exit_code == 2
    assert "is not an empty directory" in again.output


def test_startup_without_a_tokenizer_says_that_the_prompt_is_token_ids(random_model: str) -> None:
    assert report("bench", "startup", random_model, "--repeats", "1")["prompt"] == "token ids"


@pytest.mark.parametrize(
    "args",
    [
        ("latency", "--batch-size", "0"),
        ("latency", "--repeats", "-1"),
        ("throughput", "--num-prompts", "0"),
        ("startup", "--repeats", "0"),
    ],
)
def test_a_count_that_measures_nothing_is_refused(args: tuple[str, ...]) -> None:
    result = call("bench", *args)
    assert result.exit_code == 2
    assert "must be at least 1" in result.output


def test_throughput_is_told_in_words(random_model: str) -> None:
    lengths = ("--input-len", "8", "--output-len", "4", "--repeats", "1", "--warmup", "0")
    result = call("bench", "throughput", random_model, "--num-prompts", "3", *lengths)
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.stdout
    assert "of the memory limit" in result.stdout


def test_a_request_that_does_not_fit_the_context_is_refused(random_model: str) -> None:
    result = call("bench", "latency", random_model, "--input-len", "1k")
    assert result.exit_code == 2
    assert "has 1000 tokens" in result.output


def test_a_server_that_is_not_there_is_told() -> None:
    result = call("bench", "serve", "--base-url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "Is the server up?" in result.output


@pytest.mark.parametrize("flag", ["--num-prompts", "--request-rate", "--max-concurrency"])
def test_a_load_of_nothing_is_refused(flag: str) -> None:
    result = call("bench", "serve", flag, "0")
    assert result.exit_code == 2
    assert "must be above 0, got" in result.output


def test_a_random_checkpoint_is_one_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_random_checkpoint("tiny", tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    deviation = model.model.layers[0].mlp.up_proj.weight.detach().float().std()
    assert float(deviation) == pytest.approx(0.02, rel=0.05)


def test_a_random_checkpoint_depends_on_its_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_checkpoint("tiny", tmp_path / name, seed)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_tensors_lie_one_after_another(tmp_path: Path) -> None:
    nbytes = write_random_checkpoint("tiny", tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert sum(file.get_tensor(key).nbytes for key in file.keys()) == nbytes  # noqa: SIM118


def test_real_shapes_have_their_published_sizes() -> None:
    import math

    parameters = {
        name: sum(math.prod(sizes) for _, sizes in shape.tensors())
        for name, shape in SHAPES.items()
    }
    assert parameters["tinyllama"] == 1_100_048_384
    assert parameters["qwen2-0.5b"] == 494_032_768
    assert parameters["llama3-8b-layer"] == 218_112_000 + 2 * 2048 * 4096 + 4096


def test_a_directory_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="not an empty directory"):
        write_random_checkpoint("tiny", tmp_path)


def test_an_unknown_shape_is_refused_with_those_known() -> None:
    result = call("bench", "make-checkpoint", "--shape", "huge", "never")
    assert result.exit_code == 2
    assert "tinyllama" in result.output


def test_percentiles_are_those_of_numpy() -> None:
    import numpy as np

    values = [5.0, 1.0, 4.0, 2.0]
    for percent in (0, 10, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert spread(values)["median"] == 3.0


def test_the_doctor_measures_the_machine() -> None:
    found = report("doctor")
    assert found["cores_allowed"] == allowed_cores()
    assert [limits["threads"] for limits in found["limits"]] == sorted({1, allowed_cores()})
    for limits in found["limits"]:
        assert limits["read_bytes_per_s"] > 1e8
        assert limits["fp32_flops_per_s"] > 1e8
    assert found["memory_allowed_bytes"] <= found["memory_bytes"]
    assert found["memory_plan"]["weights_bytes"] > 0


def test_the_doctor_says_that_the_reference_backend_is_slow() -> None:
    result = call("doctor", "--no-measure")
    assert result.exit_code == 0, result.output
    assert "reference: plain NumPy: it defines what is right, and is slow" in result.stdout


def test_a_model_that_cannot_be_planned_is_a_finding() -> None:
    result = call("doctor", "/no/such/model", "--no-measure", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert "no directory" in found["memory_plan"]["error"]
    assert found["cores_allowed"] == allowed_cores()


def test_one_token_is_singular() -> None:
    assert describe_speed(Ledger(prompt_tokens=1)).startswith("1 prompt token, ")


def test_models_lists_the_built_in_and_the_supported() -> None:
    found = report("models")
    assert [model["name"] for model in found["built_in"]] == [
        "lab",
        "lab-drafter",
        "lab-moe",
        "lab-nested",
        "lab-small",
        "lab-recursive",
    ]
    assert all(model["supported"] for model in found["built_in"])
    assert found["architectures"] == list(ARCHITECTURES)
    assert "LlamaForCausalLM" in call("models").stdout


def test_models_lists_what_the_hub_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"architectures": ["UnknownForCausalLM"]}')
    (snapshot / "model.safetensors").write_bytes(b"12345")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (found,) = report("models")["cached"]
    assert (found["name"], found["supported"], found["weight_bytes"]) == ("some/model", False, 5)
    assert "some/model" in call("models").stdout


def test_techniques_lists_the_registry_by_seam() -> None:
    from ockham.core.registry import techniques

    found = report("techniques")
    assert [(t["seam"], t["name"]) for t in found] == [(t.seam, t.name) for t in techniques()]
    assert {"format", "reuse", "keep", "drafter", "policy"} <= {t["seam"] for t in found}
    listed = " ".join(call("techniques").stdout.split())
    assert all(technique["summary"] in listed for technique in found)
