"""`ockham run` writes the completion to stdout and everything else to stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ockham import LLM, SamplingParams, __version__
from ockham.cli.options import WITHOUT_FLAG
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
PROMPT = "def quicksort("


def ockham(
    *args: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ockham", *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("tiny"), tokenizer=True))


def test_the_lab_model_completes_code_on_stdout() -> None:
    done = ockham("run", "--prompt", PROMPT, "--max-tokens", "8", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    params = SamplingParams(temperature=0.0, max_tokens=8)
    assert done.stdout == LLM().generate(PROMPT, params)[0].outputs[0].text
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("[8 tokens at ")
    assert "tokens/s; prompt of " in line
    assert "waste" not in line


def test_the_bill_and_what_was_loaded_are_told_where_they_are_asked_for() -> None:
    done = ockham("run", "-p", PROMPT, "-n", "8", "--temperature", "0", "--stats")
    assert "memory: weights" in done.stderr
    assert "prompt tokens" in done.stderr
    assert "FLOP" in done.stderr


def test_a_quiet_run_says_nothing_beside_the_completion() -> None:
    loud = ockham("run", "-p", PROMPT, "-n", "8", "--temperature", "0")
    quiet = ockham("run", "-p", PROMPT, "-n", "8", "--temperature", "0", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (loud.stdout, "")
    assert ockham("run", "-p", PROMPT, "--quiet", "--stats").returncode == 2


def test_drafted_tokens_are_marked_where_nothing_can_be_underlined() -> None:
    text = "def add(a, b):\n    return a + b\n\n"
    always = '{"method": "copying", "adaptive": false}'  # however long its steps take
    flags = ("--max-tokens", "12", "--temperature", "0", "--show-drafts")
    done = ockham("run", "-p", text + "def add(a, b):", *flags, "--speculative-config", always)
    assert done.returncode == 0, done.stderr
    shown = done.stderr.partition("tokens were drafted:\n")[2].removesuffix("\n")
    assert "‹" in shown
    assert shown.replace("‹", "").replace("›", "") == done.stdout


def test_the_prompt_may_come_from_stdin(tiny: str) -> None:
    flags = ("--temperature", "0", "--max-tokens", "8", "--ignore-eos")
    expected = ockham("run", tiny, "-p", PROMPT, *flags).stdout
    assert expected
    assert ockham("run", tiny, *flags, stdin=PROMPT).stdout == expected
    assert ockham("run", tiny, "-p", "-", *flags, stdin=PROMPT).stdout == expected


def test_one_newline_at_the_end_of_stdin_is_no_part_of_the_prompt(tiny: str) -> None:
    flags = ("run", tiny, "--raw", "--json", "-n", "1")
    for stdin, prompt in ((f"{PROMPT}\n", PROMPT), (f"{PROMPT}\r\n", PROMPT), ("a\n\n", "a\n")):
        assert json.loads(ockham(*flags, stdin=stdin).stdout)["prompt"] == prompt
    assert "stdin is empty" in ockham(*flags, stdin="\n").stderr


def test_a_text_in_the_place_of_the_model_is_told_so() -> None:
    for text in ("what is up", "what's up? " * 40):
        done = ockham("run", text)
        assert done.returncode == 2
        assert "the first word is the model" in done.stderr
        assert "ockham run -p " in done.stderr
        assert "stdin" not in done.stderr


def test_json_holds_the_whole_output(tiny: str) -> None:
    flags = ("--raw", "--json", "--max-tokens", "4", "--logprobs", "1", "--n", "2")
    done = ockham("run", tiny, "-p", PROMPT, *flags)
    record = json.loads(done.stdout)
    assert record["prompt"] == PROMPT
    assert [choice["index"] for choice in record["outputs"]] == [0, 1]
    assert record["ledger"]["generated_tokens"] <= 8
    assert record["time_to_first_token_s"] > 0


def test_log_probabilities_have_names_in_json(tiny: str) -> None:
    flags = ("--logprobs", "1", "--prompt-logprobs", "1", "--max-tokens", "1")
    done = ockham("run", tiny, "-p", PROMPT, "--json", *flags)
    output = json.loads(done.stdout)
    first, *others = output["prompt_logprobs"]
    assert first is None
    for position in (*others, *output["outputs"][0]["logprobs"]):
        for entry in position.values():
            assert set(entry) == {"logprob", "rank", "decoded_token"}


def test_a_context_that_ends_before_max_tokens_is_told(tiny: str) -> None:
    flags = ("--max-tokens", "1000", "--max-model-len", "32", "--ignore-eos")
    done = ockham("run", tiny, "-p", PROMPT, *flags)
    assert done.returncode == 0
    assert "the context of 32 tokens is full" in done.stderr
    assert "is full" not in ockham("run", tiny, "-p", PROMPT, "--max-tokens", "2").stderr


def test_an_empty_stdin_is_no_prompt(tiny: str) -> None:
    done = ockham("run", tiny)
    assert done.returncode == 2
    assert "stdin is empty; give a prompt with --prompt" in done.stderr


@pytest.mark.parametrize("name", sorted(WITHOUT_FLAG))
def test_a_variable_that_stands_for_no_flag_is_not_taken_for_a_mistyped_one(
    tiny: str, tmp_path: Path, name: str
) -> None:
    """OCKHAM_ISA looks like OCKHAM_PINS."""
    value = "portable" if name == "OCKHAM_ISA" else str(tmp_path)
    done = ockham("run", tiny, "-p", "a", "-n", "1", "--quiet", env={name: value})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistyped_variable_is_noticed(tiny: str) -> None:
    env = {"OCKHAM_QUANTISATION": "int4", "OCKHAM_PORT": "80"}
    done = ockham("run", tiny, "-p", PROMPT, "--max-tokens", "1", env=env)
    assert done.returncode == 0
    assert "OCKHAM_QUANTISATION is not a setting; do you mean OCKHAM_QUANTIZATION?" in done.stderr


def test_a_variable_of_another_command_is_left_alone(tiny: str) -> None:
    env = {"OCKHAM_LOG_FORMAT": "text", "OCKHAM_LOAD_FORMATS": "auto"}
    done = ockham("run", tiny, "-p", PROMPT, "--max-tokens", "1", env=env)
    assert done.returncode == 0
    assert "OCKHAM_LOG_FORMAT" not in done.stderr
    assert "OCKHAM_LOAD_FORMATS is not a setting; do you mean OCKHAM_LOAD_FORMAT?" in done.stderr
    assert "OCKHAM_PORT" not in done.stderr


def test_sampling_flags_act(tiny: str) -> None:
    flags = (
        "-p",
        PROMPT,
        "--json",
        "--allowed-token-ids",
        "70,71",
        "--max-tokens",
        "5",
        "--ignore-eos",
    )
    tokens = json.loads(ockham("run", tiny, *flags).stdout)["outputs"][0]["token_ids"]
    assert len(tokens) == 5
    assert set(tokens) <= {70, 71}


def test_the_same_seed_gives_the_same_text(tiny: str) -> None:
    flags = ("run", tiny, "-p", PROMPT, "--max-tokens", "8", "--sampling-seed", "4")
    assert ockham(*flags).stdout == ockham(*flags).stdout


def test_a_checkpoint_without_tokenizer_runs_on_token_ids(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path))
    flags = (
        "--skip-tokenizer-init",
        "--prompt-token-ids",
        "5,6",
        "--max-tokens",
        "3",
        "--ignore-eos",
    )
    done = ockham("run", model, *flags)
    assert len([int(token) for token in done.stdout.split()]) == 3


@pytest.mark.parametrize(
    ("args", "status", "complaint"),
    [
        (("-p", ""), 2, "the prompt is empty"),
        (("-p", "x", "--n", "1000000"), 2, "n must be an integer in [1,"),
        (("-p", "x", "--logprobs", "99"), 2, "logprobs must be an integer in"),
        (("-p", "x", "--max-tokens", "9T"), 2, "max_tokens must be an integer in"),
        (("-p", "x", "--max-num-seqs", "0"), 2, "max_num_seqs must be at least 1"),
        (("-p", "x", "--prompt-token-ids", "1"), 2, "either --prompt or --prompt-token-ids"),
        (("-p", "x", "--policy", "lifo"), 2, "no policy called 'lifo'"),
        (("-p", "x", "--no-such-flag"), 2, "--no-such-flag"),
        (("-p", "x", "--threads", "0"), 2, "threads must lie in [1, 1024]"),
        (("-p", "x", "-tp", "2"), 2, "only as '1'"),
        (("-p", "x", "--enable-sleep-mode"), 2, "only as 'false'"),
        (("/no/such/model", "-p", "x"), 1, "no directory '/no/such/model'"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    tiny: str, args: tuple[str, ...], status: int, complaint: str
) -> None:
    model = () if args[0].startswith("/") else (tiny,)
    done = ockham("run", *model, *args)
    assert done.returncode == status, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("-p", ""), "the prompt is empty"),
        (("-p", "x", "--temperature", "-1"), "temperature"),
        (("-p", "x", "--n", "65"), "at most 64 sequences run at once"),
        (("-p", "x", "--logprobs", "1"), "is shown only with --json"),
        (("--prompt-token-ids", "-1"), "no token id"),
        (("-p", "x", "--structured-outputs", '{"regex": 3}'), "cannot be used"),
    ],
)
def test_what_can_be_checked_before_a_model_is_loaded_is(
    args: tuple[str, ...], complaint: str
) -> None:
    done = ockham("run", "/no/such/model", *args)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "no directory" not in done.stderr


def test_an_empty_name_of_a_model_is_refused(tiny: str) -> None:
    for args, env in ((("", "-p", "x"), {}), (("-p", "x"), {"OCKHAM_MODEL": ""})):
        done = ockham("run", *args, env=env)
        assert done.returncode == 2
        assert "the name of the model is empty" in done.stderr
    assert ockham("run", tiny, "-p", "x", "-n", "1", env={"OCKHAM_MODEL": ""}).returncode == 0


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash in which `ockham` is the program."""
    program = f'ockham() {{ "{sys.executable}" -m ockham "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", program + command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        ("ockham run lab -p x -n 3 >&-", 2, b"stdout is closed"),
        ("ockham run lab <&-", 2, b"stdin is empty"),
        ("ockham run lab -p $'gr\\xf6' -n 1", 2, b"argument 4 is not UTF-8"),
        (
            'ockham run lab -p x --structured-outputs $\'{"choice":["gr\\xf6"]}\'',
            2,
            b"argument 6 is not UTF-8",
        ),
        ("OCKHAM_STOP=$'\\xf6' ockham run lab -p x", 2, b"OCKHAM_STOP is not UTF-8"),
        ("ulimit -v 200000; OPENBLAS_NUM_THREADS=1 ockham run lab -p x -n 1", 1, b"memory"),
    ],
)
def test_what_the_shell_does_to_a_run_is_no_traceback(
    command: str, status: int, complaint: bytes
) -> None:
    done = shell(command)
    assert complaint in done.stderr, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == status


def test_the_pool_fits_into_the_address_space_that_is_left() -> None:
    line = "ulimit -v 600000; OPENBLAS_NUM_THREADS=1 ockham run lab -p x -n 1 --quiet"
    done = shell(line)
    assert done.returncode == 0, done.stderr


def test_a_prompt_that_is_no_text_is_refused(tiny: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ockham", "run", tiny],
        input=b"\xff\xfe",
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr


def test_a_reader_that_leaves_early_causes_no_traceback(tiny: str) -> None:
    command = (
        f"{sys.executable} -m ockham run {tiny} -p x --ignore-eos --max-tokens 200 | head -c 1"
    )
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "Traceback" not in done.stderr


def test_the_version_is_told() -> None:
    assert ockham("--version").stdout == f"ockham {__version__}\n"


def test_the_version_is_that_of_the_package() -> None:
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
