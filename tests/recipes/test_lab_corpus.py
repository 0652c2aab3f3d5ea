"""The corpus of the lab model, on a part of the standard library."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from recipes.lab.corpus import (
    Document,
    build_corpus,
    corpus_digest,
    is_held_out,
)

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the library: whole packages, pydoc's topics, and a file that is there twice."""
    folder = tmp_path_factory.mktemp("stdlib")
    for package in ("json", "asyncio", "concurrent", "pydoc_data"):
        shutil.copytree(STDLIB / package, folder / package)
    shutil.copy(STDLIB / "heapq.py", folder / "a_copy.py")
    shutil.copy(STDLIB / "heapq.py", folder / "heapq.py")
    return folder


@pytest.fixture(scope="module")
def documents(stdlib: Path) -> list[Document]:
    return build_corpus(stdlib)


def test_no_file_is_both_trained_on_and_held_out(documents: list[Document]) -> None:
    held_out = {d.path for d in documents if d.held_out}
    trained = {d.path for d in documents if not d.held_out}
    assert held_out
    assert trained
    assert not held_out & trained


def test_no_module_is_both_trained_on_and_held_out(documents: list[Document]) -> None:
    held_out = {d.text for d in documents if d.held_out and d.source == "code"}
    trained = {d.text for d in documents if not d.held_out and d.source == "code"}
    assert not held_out & trained


def test_what_is_made_from_a_file_stays_on_its_side(documents: list[Document]) -> None:
    for document in documents:
        assert document.held_out == is_held_out(document.path)


def test_a_repeated_file_is_read_once(documents: list[Document]) -> None:
    text = (STDLIB / "heapq.py").read_text().strip() + "\n"
    assert [d.path for d in documents if d.text == text] == ["a_copy.py"]


def test_the_corpus_is_the_same_each_time(stdlib: Path, documents: list[Document]) -> None:
    assert corpus_digest(build_corpus(stdlib)) == corpus_digest(documents)


def test_topics_of_pydoc_are_prose(documents: list[Document]) -> None:
    topics = [d for d in documents if d.path.startswith("pydoc_data/topics.py#")]
    assert len(topics) > 50
    assert {d.source for d in topics} == {"prose"}


def test_code_in_answers_keeps_its_indentation(documents: list[Document]) -> None:
    answers = [d.text for d in documents if d.source == "chat" and "```python\ndef " in d.text]
    assert answers
    for answer in answers:
        code = answer.split("```python\n")[1].split("\n```")[0]
        compile(code, "answer", "exec", dont_inherit=True)
