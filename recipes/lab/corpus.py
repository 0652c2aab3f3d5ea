"""The corpus: text that is on every machine with Python 3.11.

Four sources, each a list of documents in a fixed order:

* ``code``: the standard library's own modules;
* ``tests``: its test suite, where it is installed;
* ``prose``: the docstrings of the modules, and the language reference that pydoc carries;
* ``chat``: questions and answers made from functions and their docstrings, in ChatML.

A file, with everything that is made from it, is either trained on or held out, by a hash of its
path. This file knows nothing about tokens.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("code", "tests", "prose", "chat")
HELD_OUT_PER_MILLE = 40
TOPICS = "pydoc_data/topics.py"

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "data"}
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_LONGEST_LINE_CHARS = 1_000
_LONGEST_CHAT_SOURCE_CHARS = 2_400
_MOST_DIGITS = 0.15

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """One text of the corpus.

    ``path`` is relative to the standard library, so that it is the same on every machine.
    """

    source: str
    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the document is kept for evaluation."""
        return is_held_out(self.path)


def is_held_out(path: str) -> bool:
    """Whether the file (or the topic) of this name is kept for evaluation."""
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def build_corpus(stdlib: Path | None = None) -> list[Document]:
    """All documents, in an order that depends on names and contents only."""
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    documents: list[Document] = []
    seen: set[str] = set()
    for path, text in _read_modules(root):
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        tree = _parse(text)
        if tree is None:
            continue
        if path == TOPICS:
            documents.extend(_topics(tree))
            continue
        is_test = not _TEST_FOLDERS.isdisjoint(path.split("/"))
        documents.append(Document("tests" if is_test else "code", path, text))
        if not is_test:
            documents.extend(_prose(path, tree))
            documents.extend(_chats(path, text, tree))
    return documents


def corpus_digest(documents: list[Document]) -> str:
    """SHA-256 over all documents: the same digest means the same training text."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.source, document.path, document.text):
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def chatml(user: str, assistant: str, system: str = "") -> str:
    """One exchange, exactly as the chat template renders it."""
    turns = [("system", system)] if system else []
    turns += [("user", user), ("assistant", assistant)]
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)


def _read_modules(root: Path) -> Iterator[tuple[str, str]]:
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for name in sorted(paths):
        folders = set(name.split("/")[:-1])
        generated = name.startswith("_sysconfigdata") or any("config-3" in part for part in folders)
        if generated or not _SKIPPED_FOLDERS.isdisjoint(folders):
            continue
        try:
            text = paths[name].read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        text = text.replace("\r\n", "\n").strip() + "\n"
        if name == TOPICS or _reads_like_a_program(text):
            yield name, text


def _reads_like_a_program(text: str) -> bool:
    """Whether it is a program: not a table of codes, not data, not empty."""
    if len(text) < 200 or "\0" in text or "decoding_table" in text:
        return False
    if max(map(len, text.splitlines())) > _LONGEST_LINE_CHARS:
        return False
    unusual = sum(char.isdigit() or ord(char) > 0x2FFF for char in text)
    return unusual / len(text) < _MOST_DIGITS


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return None


def _topics(tree: ast.Module) -> Iterator[Document]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                topic, text = (
                    part.value if isinstance(part, ast.Constant) else None for part in (key, value)
                )
                if isinstance(topic, str) and isinstance(text, str):
                    yield Document("prose", f"{TOPICS}#{topic}", text.strip() + "\n")


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _described(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | Function, str]]:
    """Every class and function that has a docstring: its qualified name, its node, the text."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    for name, node in walk(tree.body, ""):
        assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        docstring = ast.get_docstring(node)
        if docstring and docstring.strip():
            yield name, node, docstring.strip()


def _signature(name: str, node: ast.ClassDef | Function) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    return f"{name}({ast.unparse(node.args)})"


def _prose(path: str, tree: ast.Module) -> Iterator[Document]:
    """The docstrings of one module as one document, each under its signature."""
    module = _module_name(path)
    parts = []
    docstring = ast.get_docstring(tree)
    if docstring and docstring.strip():
        parts.append(f"{module}\n\n{docstring.strip()}")
    parts += [f"{_signature(name, node)}\n\n{text}" for name, node, text in _described(tree)]
    if parts:
        yield Document("prose", path, "\n\n".join(parts) + "\n")


def _chats(path: str, text: str, tree: ast.Module) -> Iterator[Document]:
    """Questions about the functions of one module; the form of each follows from its name."""
    module = _module_name(path)
    lines = text.splitlines()
    for name, node, docstring in _described(tree):
        if isinstance(node, ast.ClassDef) or len(docstring) < 20:
            continue
        full = "\n".join(_source_lines(lines, node))
        bare = _without_docstring(lines, node)
        if bare is None or len(full) > _LONGEST_CHAT_SOURCE_CHARS:
            continue
        summary = docstring.split("\n\n")[0]
        form = int.from_bytes(hashlib.sha256(f"{path}#{name}".encode()).digest()[:4], "big")
        system = "You are a helpful assistant." if form % 5 == 0 else ""
        signature = _signature(node.name, node)
        question, answer = (
            (f"What does `{module}.{name}` do?", docstring),
            (f"Explain the function `{node.name}`:\n\n```python\n{bare}\n```", docstring),
            (f"Write the function `{signature}`.\n\n{summary}", f"```python\n{full}\n```"),
            (f"Write a Python function: {summary}", f"```python\n{full}\n```"),
        )[form // 8 % 4]
        yield Document("chat", path, chatml(question, answer, system))


def _source_lines(lines: list[str], node: Function) -> list[str]:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    source = lines[first - 1 : node.end_lineno]
    indent = node.col_offset
    return [line[indent:] if line[:indent].isspace() or not indent else line for line in source]


def _without_docstring(lines: list[str], node: Function) -> str | None:
    """The function's source less its docstring; None where nothing else is in its body."""
    docstring = node.body[0]
    if len(node.body) < 2 or docstring.lineno == node.lineno or docstring.end_lineno is None:
        return None
    source = _source_lines(lines, node)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    body = source[docstring.end_lineno - first + 1 :]
    while body and not body[0].strip():
        del body[0]
    return "\n".join(source[: docstring.lineno - first] + body)
