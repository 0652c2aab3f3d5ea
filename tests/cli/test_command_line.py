"""Help in sections, words that are guessed, flags of other programs, completion, files of flags."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ockham.cli.config_file import read_config
from ockham.cli.main import cli
from ockham.cli.serve import serve

ROOT = Path(__file__).parents[2]


def call(*args: str, **settings: Any) -> Result:
    return CliRunner().invoke(cli, args, **settings)


def positions(text: str, *words: str) -> list[int]:
    found = [text.find(word) for word in words]
    assert min(found) >= 0, dict(zip(words, found, strict=True))
    return found


def test_the_help_of_run_has_sections_and_begins_with_what_is_used_most() -> None:
    text = call("run", "--help").stdout
    order = (
        "--prompt",
        "Sampling:",
        "--temperature",
        "Model:",
        "Speculation:",
        "Cache:",
        "Memory:",
    )
    assert positions(text, *order) == sorted(positions(text, *order))
    assert "ockham run smollm2" in text
    for short in ("-p, --prompt", "-n, --max-tokens", "-t, --threads", "-c, --max-model-len"):
        assert short in text


def test_the_help_of_serve_begins_with_the_address() -> None:
    text = call("serve", "--help").stdout
    order = ("\nServer:", "\n  --host", "\n  --port", "\n  --api-key", "\nModel:", "\nCache:")
    assert positions(text, *order) == sorted(positions(text, *order))


def test_every_engine_flag_stands_in_a_named_section() -> None:
    for verb in ("run", "serve", "chat", "run-batch", "doctor", "eval"):
        assert "\nOther:" not in call(verb, "--help").stdout


def test_a_help_is_as_wide_as_the_terminal() -> None:
    for columns in (90, 140):
        lines = call("run", "--help", terminal_width=columns).stdout.splitlines()
        widest = max(len(line) for line in lines if "▕" not in line and "ockham " not in line)
        assert columns * 0.7 < widest <= columns


@pytest.mark.parametrize(
    ("args", "meant"),
    [(("rnu",), "run"), (("server",), "serve"), (("bench", "latencies"), "latency")],
)
def test_a_misspelt_verb_is_guessed(args: tuple[str, ...], meant: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert f"Did you mean {meant}" in result.output


def test_a_misspelt_key_of_a_file_is_guessed_and_the_others_are_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("temprature: 1\n")
    result = call("run", "--config", str(path), "-p", "x")
    assert result.exit_code == 2
    assert "Did you mean temperature" in " ".join(result.output.split())
    assert "--max-num-seqs" not in result.output


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("speculative-config: off", "speculative_config", "off"),
        ("weight-cache: off", "weight_cache", "off"),
        ("stop: no", "stop", ["no"]),
        ("stop: 12:30", "stop", ["12:30"]),
        ("stop: 2026-01-02", "stop", ["2026-01-02"]),
        ("json: true", "as_json", True),
        ("temperature: 1e-1", "temperature", 0.1),
        ("max-tokens: 010", "max_tokens", "010"),
        ("seed: -3", "seed", -3),
        ("tokenizer:", "tokenizer", None),
    ],
)
def test_words_in_a_file_are_the_words_that_they_look_like(
    tmp_path: Path, content: str, name: str, value: object
) -> None:
    from ockham.cli.run import run

    path = tmp_path / "config.yaml"
    path.write_text(content)
    context = run.make_context("run", ["-p", "x"])
    read_config(context, run.params[0], path)
    assert context.default_map == {name: value}


def test_speculation_can_be_off_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("speculative-config: off\n")
    result = call("run", "--config", str(path), "-p", "def f(", "-n", "2", "--temperature", "0")
    assert result.exit_code == 0, result.output


NEUTRAL = (
    *("-tp", "1", "--tensor-parallel-size", "1", "--pipeline-parallel-size=1", "--enforce-eager"),
    *("--load-format", "auto", "--tokenizer-mode", "auto", "--device", "cpu"),
    *("--enable-chunked-prefill", "--no-enable-lora", "--root-path", ""),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"),
)


def test_flags_of_other_programs_are_taken_where_they_ask_for_nothing() -> None:
    given = serve.make_context("serve", ["lab", *NEUTRAL, "-t", "2", "-c", "64"]).params
    plain = serve.make_context("serve", ["lab", "-t", "2", "-c", "64"]).params
    assert given == plain
    assert (given["threads"], given["max_model_len"]) == (2, 64)
    assert serve.make_context("serve", ["-m", "lab"]).params["model"] == "lab"


@pytest.mark.parametrize(
    ("flags", "only"),
    [
        (("--tensor-parallel-size", "2"), "only as '1'"),
        (("--no-enable-chunked-prefill",), "only as 'true'"),
        (("--load-format", "dummy"), "only as 'auto'"),
        (("--device", "cuda"), "or 'cpu'"),
        (("--root-path", "/llm"), "only as empty"),
        (("--ssl-keyfile", "key.pem"), "only as empty"),
    ],
)
def test_other_values_of_such_flags_are_refused(flags: tuple[str, ...], only: str) -> None:
    result = call("run", "-p", "x", *flags)
    assert result.exit_code == 2
    assert only in " ".join(result.output.split())


def test_half_precision_is_taken_for_what_holds_its_values_and_said() -> None:
    for name in ("float16", "half"):
        result = call("run", "-p", "x", "-n", "1", "--dtype", name, "--stats")
        assert result.exit_code == 0, result.output
        assert f"{name} has no kernels of its own" in result.stderr
        assert "fp32" in result.stderr


def test_several_names_may_stand_behind_one_flag() -> None:
    def names(*args: str) -> tuple[object, object]:
        given = serve.make_context("serve", list(args)).params
        return given["served_model_name"], given["model_argument"]

    assert names("lab", "--served-model-name", "a", "b", "--port", "1") == (("a", "b"), ("lab",))
    assert names("--served-model-name", "a", "lab") == (("a",), ("lab",))
    assert names("lab", "--served-model-name", "a", "--served-model-name", "b") == (
        ("a", "b"),
        ("lab",),
    )


def completed(line: str, directory: Path) -> str:
    """What bash is told to complete the last word of a line with."""
    words = line.split(" ")
    env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = "from ockham.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_HUB_CACHE": str(directory / "hub"),
            "_OCKHAM_COMPLETE": "bash_complete",
            **env,
        },
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_a_shell_completes_files_names_and_values(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    assert completed("ockham serve ./", tmp_path) == "file,./\n"
    (tmp_path / ".hidden").touch()
    offered = completed("ockham serve ", tmp_path).splitlines()
    assert {"plain,lab", "plain,smollm2", "plain,all-minilm", "plain,labels/"} <= set(offered)
    assert "plain,.hidden" not in offered
    assert completed("ockham run lab", tmp_path).splitlines()[0] == "plain,lab"
    assert "plain,labels/" in completed("ockham run lab", tmp_path)
    assert "plain,int8" in completed("ockham run lab --quantization in", tmp_path)
    assert "file" in completed("ockham run lab --tokenizer ./t", tmp_path)
    assert completed("ockham ser", tmp_path) == "plain,serve\n"


def test_a_shell_completes_models_that_are_on_this_machine(tmp_path: Path) -> None:
    for name in ("models--owner--one-GGUF", "models--owner--two", "datasets--owner--three"):
        (tmp_path / "hub" / name / "snapshots").mkdir(parents=True)
    both = ["plain,owner/one-GGUF", "plain,owner/two"]
    assert completed("ockham run ow", tmp_path).splitlines() == both
    assert completed("ockham serve ", tmp_path).splitlines()[:2] == both
    assert completed("ockham rm owner/t", tmp_path).splitlines() == ["plain,owner/two"]
    assert completed("ockham rm p", tmp_path).splitlines() == ["plain,packed"]
    assert completed("ockham serve --log-format j", tmp_path).splitlines() == ["plain,json"]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_the_script_for_a_shell_completes_in_it(shell: str, tmp_path: Path) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell}")
    program = tmp_path / "ockham"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from ockham.cli.main import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    script = call("completion", shell).output
    ask = {
        "bash": "COMP_WORDS=(ockham completion z); COMP_CWORD=2; _ockham_completion ockham;"
        'echo "${COMPREPLY[@]}"',
        "fish": 'complete -C "ockham completion z"',
    }
    done = subprocess.run(
        [found, "-c", f"{script}\n{ask[shell]}"],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["zsh"], done.stderr


def test_the_script_for_zsh_completes_each_time() -> None:
    """What click looks at says only of the first call that the function was loaded."""
    assert "[[ $funcstack[1] == _ockham ]]" in call("completion", "zsh").output


def test_an_address_in_use_is_refused_before_a_model_is_loaded() -> None:
    from ockham.api.server.run import bind

    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = call("serve", "/no/such/model", "--port", str(port))
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.output
    assert "no directory" not in result.output


def test_a_socket_that_only_one_may_listen_at_is_had_by_one() -> None:
    """Bound alone, two sockets with SO_REUSEADDR would get along until one of them listens."""
    from ockham.api.server.run import bind
    from ockham.core.errors import ConfigError

    with bind("127.0.0.1", 0) as taken:
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(ConfigError, match="Cannot listen on"):
            bind("127.0.0.1", taken.getsockname()[1])


def test_an_empty_key_in_the_environment_does_not_let_everybody_in() -> None:
    result = call("serve", "/no/such/model", "--port", "0", env={"OCKHAM_API_KEY": ""})
    assert result.exit_code == 2
    assert "OCKHAM_API_KEY is empty" in result.output


def test_memory_that_cannot_be_had_is_told_in_a_sentence() -> None:
    """The plan is told that much is free, and the process may not have it."""
    code = (
        "import resource, sys, ockham.model.loading as loading\n"
        "from ockham.cli.main import main\n"
        "loading.available_bytes = lambda: 1 << 46\n"
        "sys.argv = ['ockham', 'run', 'lab', '-p', 'x', '-n', '1']\n"
        "resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))\n"
        "main()"
    )
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "there is not enough memory" in done.stderr
