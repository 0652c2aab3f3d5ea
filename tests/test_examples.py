"""The examples run as a user runs them: each in a process of its own, on a few small texts."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ockham.model.known_models import PACKAGES, named_repository, packaged_file
from tests.helpers.live import LiveServer

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TIME_LIMIT_S = 200

BOATS = """# Boats

The ferry to the island leaves at six in the morning and at noon, from the pier behind the market.

## Tickets

A ticket for the ferry costs four coins. Children and dogs travel without a ticket on every boat.
"""
BREAD = """# Bread

The bakery behind the market opens at five in the morning. Its bread is sold out before noon.
"""
QUESTIONS = ("When does the ferry to the island leave?", "What does a ticket for the ferry cost?")


def run(name: str, *arguments: str, cwd: Path) -> str:
    """What an example prints. It must end well, and within the time limit."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def need_models(*names: str) -> None:
    for name in names:
        repository = named_repository(name)
        if packaged_file(repository) is None:
            pytest.skip(f"{PACKAGES[repository.name][1]} is not installed")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    directory = tmp_path / "documents"
    directory.mkdir()
    (directory / "boats.md").write_text(BOATS)
    (directory / "bread.md").write_text(BREAD)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with both models, as examples/README.md starts it."""
    need_models("smollm2", "all-minilm")
    directory = tmp_path_factory.mktemp("server")
    flags = ("--embedding", "all-minilm", "--reuse", "prefix,chunk", "--batch-dir", "batches")
    with LiveServer("smollm2", directory, *flags) as live:
        yield live


def test_questions_are_answered_in_one_process_and_a_second_start_embeds_nothing(
    documents: Path, tmp_path: Path
) -> None:
    need_models("smollm2", "all-minilm")
    small = ("--passages", "2", "--max-tokens", "8", "--documents", str(documents))
    said = run("rag.py", *QUESTIONS, *small, cwd=tmp_path)
    assert "3 passages, 3 of them embedded now" in said
    first, second = said.partition(QUESTIONS[1])[::2]
    assert re.search(r"0\.\d+ boats\.md: Boats\n", first)
    assert re.search(r"0\.\d+ boats\.md: Boats > Tickets\n", second)
    # The same two passages, the other way round: a prefix does not help, the chunk does.
    assert " by chunk" not in first
    assert int(re.findall(r"(\d+) by chunk", second)[0]) > 16
    (kept,) = documents.glob(".vectors-*.npz")
    written = kept.stat().st_mtime_ns

    asked = tmp_path / "questions.jsonl"
    lines = [{"question": each, "source": "boats.md"} for each in QUESTIONS]
    asked.write_text("\n".join(map(json.dumps, lines)))
    said = run("rag_recall.py", str(asked), "--documents", str(documents), cwd=tmp_path)
    assert "2 questions, 3 passages of 2 files, 0 of them embedded now" in said
    assert re.search(r"\| as they are \| 4,608 \| 100% \| 100% \| 100% \|", said)
    assert kept.stat().st_mtime_ns == written


def test_the_server_embeds_and_answers(server: LiveServer, documents: Path, tmp_path: Path) -> None:
    small = ("--passages", "2", "--max-tokens", "8", "--documents", str(documents))
    said = run("rag_server.py", *QUESTIONS, *small, "--url", f"{server.url}/v1", cwd=tmp_path)
    assert "3 passages, 3 of them embedded now" in said
    assert int(re.findall(r"(\d+) by chunk", said)[0]) > 16


def test_an_agent_calls_a_tool_and_answers(
    server: LiveServer, documents: Path, tmp_path: Path
) -> None:
    small = ("--turns", "2", "--max-tokens", "90", "--documents", str(documents))
    question = "Search for the words: ferry ticket."
    url = f"{server.url}/v1"
    said = run("agent.py", question, "--insist", *small, "--url", url, cwd=tmp_path)
    assert re.match(r"(search|read_file|calculate)\(\{", said), said
    assert re.search(r"bill: \d+ prompt tokens in 2 turns, \d+ of them computed\n$", said)


def test_a_batch_labels_the_rows_of_a_table(server: LiveServer, tmp_path: Path) -> None:
    table = tmp_path / "reviews.csv"
    table.write_text("id,text\n7,The soup was wonderful.\n8,\n9,My parcel arrived broken.\n")
    url = f"{server.url}/v1"
    run("batch.py", "reviews.csv", "labelled.csv", "--url", url, cwd=tmp_path)
    with (tmp_path / "labelled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["7", "8", "9"]
    assert [row["error"] for row in rows] == ["", "the row has no text", ""]
    for row in (rows[0], rows[2]):
        assert row["mood"] in ("positive", "neutral", "negative")
        assert row["topic"]
    # The server keeps nothing of it.
    assert server.get("/v1/files").json()["data"] == []


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_tools_do_what_they_say_and_nothing_else(on_path: None, documents: Path) -> None:
    from agent_tools import run as call  # type: ignore[import-not-found]

    assert call(documents, "calculate", '{"expression": "-(2 + 3) * 4.5 / 9"}') == "-2.5"
    assert "boats.md:7: A ticket" in call(documents, "search", '{"words": "ferry ticket costs"}')
    assert call(documents, "read_file", '{"name": "bread.md"}').startswith("# Bread")
    for name, arguments in (
        ("calculate", '{"expression": "__import__(\'os\').getcwd()"}'),
        ("calculate", '{"expression": "2 ** 2 ** 99"}'),
        ("read_file", '{"name": "../questions.jsonl"}'),
        ("read_file", '{"name": "gone.md"}'),
        ("shell", "{}"),
        ("search", "no JSON"),
    ):
        assert "Error: " in call(documents, name, arguments)


def test_only_passages_that_changed_are_embedded_again(on_path: None, documents: Path) -> None:
    from passages import Index, cut, read_passages  # type: ignore[import-not-found]

    def embed(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return np.eye(len(texts), 4, dtype=np.float32)

    calls: list[int] = []
    kept = documents / ".vectors-test.npz"
    for _ in range(2):
        index = Index(read_passages(documents, 800), embed, kept)
    (documents / "bread.md").write_text(BREAD.replace("five", "six"))
    index = Index(read_passages(documents, 800), embed, kept)
    assert (calls, index.embedded) == ([3, 1], 1)
    [(cosine, best)] = index.search(np.array([0, 1, 0, 0], dtype=np.float32), 1)
    assert (cosine, best.text.splitlines()[0]) == (1.0, "Boats > Tickets")
    for text in cut(
        "# A\n\n" + "one word after another\n" * 200 + "\n## B\n\nlast " + "x" * 999, 300
    ):
        assert len(text) <= 300 + len("A > B\n")
        assert text.startswith("A")
