"""`ockham chat --url`: with a server that runs, in place of a model in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from tests.helpers.families import FAMILIES
from tests.helpers.live import LiveServer
from tests.helpers.tiny import tiny_llama

SAID = "<think>\\nwell\\n</think>\\n\\nIt is so."


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("url")
    model = tiny_llama(directory, tokenizer=True, max_position_embeddings=2048)
    template = directory / "template.jinja"
    template.write_text(FAMILIES["hermes"].template)
    flags = ("--kv-cache-memory-bytes", "8M", "--chat-template", str(template))
    flags += ("--api-key", "key", "--served-model-name", "tiny", "--enable-in-reasoning")
    with LiveServer(model, directory, *flags) as server:
        yield server


def chat(live: LiveServer, text: str, *flags: str, key: str = "key") -> Result:
    args = ["chat", "--url", f"{live.url}/v1", "--api-key", key, *flags]
    return CliRunner().invoke(cli, args, input=text)


def test_thoughts_and_answers_are_told_apart_and_the_talk_goes_on(live: LiveServer) -> None:
    structured = f'{{"choice": ["{SAID}"]}}'
    found = chat(live, "hello\nagain\n/stats\n", "--structured-outputs", structured)
    assert found.exit_code == 0, found.output
    assert found.stdout == "It is so.\nIt is so.\n"
    assert found.stderr.count("well") == 2
    assert "tokens" in found.stderr.partition("well")[2]


def test_sampling_flags_go_to_the_server(live: LiveServer, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    said = [
        chat(live, f"hello\n/save {saved}\n", "--temperature", "0", "--max-tokens", str(count))
        for count in (2, 2, 8)
    ]
    assert said[0].stdout == said[1].stdout
    assert said[2].stdout.startswith(said[0].stdout.rstrip("\n"))
    assert len(said[2].stdout) > len(said[0].stdout)
    assert "cut at the limit" in said[0].stderr
    assert '"model": "tiny"' in saved.read_text()


@pytest.mark.parametrize(
    ("flags", "key", "sentence"),
    [
        ((), "wrong", "The API key is missing or wrong"),
        (("nope",), "key", "has no model 'nope'; it has tiny"),
        (("--threads", "1"), "key", "--threads is a setting of an engine"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    live: LiveServer, flags: tuple[str, ...], key: str, sentence: str
) -> None:
    found = chat(live, "hello\n", *flags, key=key)
    assert found.exit_code != 0
    assert sentence in found.stderr
    assert "Traceback" not in found.stderr


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    found = CliRunner().invoke(cli, ["chat", "--url", "http://127.0.0.1:9"], input="hello\n")
    assert found.exit_code == 2
    assert "does not answer as OpenAI's API does" in found.stderr
    found = CliRunner().invoke(cli, ["chat", "--api-key", "x"], input="hello\n")
    assert "--api-key goes with --url" in found.stderr


def test_a_message_that_is_refused_is_dropped(live: LiveServer) -> None:
    found = chat(live, "x " * 3000 + "\nshort\n", "--max-tokens", "2")
    assert found.exit_code == 0, found.output
    assert "/undo and /reset make room" in found.stderr
    assert found.stdout.count("\n") >= 1
