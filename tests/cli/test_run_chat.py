"""`ockham run` talks to a model that has a chat template, and completes plain text where asked."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from ockham import LLM
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
FLAGS = ("-n", "6", "--temperature", "0", "--ignore-eos")
QUESTION = "What is the capital of France?"


def ockham(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ockham", *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("talking"), tokenizer=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tiny_llama(tmp_path_factory.mktemp("plain"), tokenizer=True)
    (directory / "chat_template.jinja").unlink()
    return str(directory)


def answer(model: str, *messages: dict[str, str]) -> str:
    """What `LLM.chat` answers with FLAGS."""
    with LLM(model) as llm:
        params = msgspec.structs.replace(
            llm.get_default_chat_sampling_params(), temperature=0, max_tokens=6, ignore_eos=True
        )
        return llm.chat(list(messages), params)[0].outputs[0].text


def test_a_model_with_a_template_answers_as_a_chat(talking: str) -> None:
    expected = answer(talking, {"role": "user", "content": QUESTION})
    for given in ((QUESTION,), ("-p", QUESTION)):
        done = ockham("run", talking, *given, *FLAGS)
        assert (done.stdout, done.returncode) == (expected, 0), done.stderr
    assert ockham("run", talking, *FLAGS, stdin=f"{QUESTION}\n").stdout == expected


def test_a_system_prompt_goes_before_the_question(talking: str) -> None:
    system = {"role": "system", "content": "Be terse."}
    expected = answer(talking, system, {"role": "user", "content": QUESTION})
    done = ockham("run", talking, QUESTION, "--system", "Be terse.", *FLAGS)
    assert done.stdout == expected, done.stderr


def test_json_shows_the_prompt_that_the_template_made(talking: str) -> None:
    record = json.loads(ockham("run", talking, "hi", "--json", *FLAGS).stdout)
    assert record["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_raw_completes_plain_text_and_so_do_models_without_a_template(
    talking: str, plain: str
) -> None:
    raw = ockham("run", talking, QUESTION, "--raw", *FLAGS)
    assert raw.returncode == 0, raw.stderr
    assert raw.stdout == ockham("run", plain, QUESTION, *FLAGS).stdout
    assert raw.stdout != ockham("run", talking, QUESTION, *FLAGS).stdout


def test_the_built_in_model_completes_unless_it_is_talked_to() -> None:
    completed = ockham("run", "lab", "-p", "def f(", *FLAGS).stdout
    assert completed == ockham("run", "lab", "-p", "def f(", "--raw", *FLAGS).stdout
    talked = ockham("run", "lab", "-p", "def f(", "--chat", *FLAGS).stdout
    assert talked == answer("lab", {"role": "user", "content": "def f("})


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("x", "--raw", "--system", "y"), "--system is for chats"),
        (("x", "-p", "y"), "the prompt is given twice"),
        (("--prompt-token-ids", "1", "--system", "y"), "--system is for chats"),
        (("--prompt-token-ids", "1", "--chat"), "the prompt is token ids"),
        (("x", "--bill", "--quiet"), "--quiet and --bill contradict each other"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_loaded(
    args: tuple[str, ...], complaint: str
) -> None:
    done = ockham("run", "/no/such/model", *args)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_system_prompt_without_a_template_is_refused(plain: str) -> None:
    done = ockham("run", plain, "x", "--system", "y")
    assert done.returncode == 2
    assert "has no chat template, which a system prompt needs" in done.stderr


def test_a_broken_template_is_told_with_the_way_round(talking: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("{% if %}")
    done = ockham("run", talking, "x", "--chat-template", str(tmp_path / "broken"))
    assert done.returncode == 2
    assert "is not valid Jinja" in done.stderr
    assert "--raw" in done.stderr


def test_the_bill_comes_without_what_was_loaded(talking: str) -> None:
    done = ockham("run", talking, "x", "--bill", *FLAGS)
    assert "FLOP" in done.stderr
    assert "memory: weights" not in done.stderr


def test_in_a_terminal_a_run_without_a_prompt_begins_a_chat(talking: str) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "ockham", "run", talking, *FLAGS])
    shown = b""
    end = time.monotonic() + 120
    try:
        while b"/help shows the commands" not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096)
        assert b"/help shows the commands" in shown
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)
