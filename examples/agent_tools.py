"""The tools of agent.py: functions of the documents and of what the model says."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 2000  # of a result: what a tool says is read by the model, token by token
OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def search(documents: Path, words: str) -> str:
    """Find the lines of the documents that have most of the words."""
    wanted = set(re.findall(r"\w+", words.lower()))
    lines = [
        (len(wanted & set(re.findall(r"\w+", line.lower()))), f"{path.name}:{number}: {line}")
        for path in sorted(documents.glob("*.md"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    ]
    best = sorted(lines, key=lambda each: -each[0])[:8]
    return "\n".join(line for count, line in best if count) or "nothing was found"


def read_file(documents: Path, name: str, first_line: int = 1) -> str:
    """Read a file of the documents from a line on."""
    path = (documents / name).resolve()
    if not path.is_relative_to(documents.resolve()):  # the model's words are no one's orders
        raise ValueError(f"{name} is not below the directory of the documents")
    return "\n".join(path.read_text("utf-8").splitlines()[max(0, first_line - 1) :])


def calculate(documents: Path, expression: str) -> str:
    """Calculate an expression of numbers, such as (2 + 3) * 4.5."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.operand))
        raise ValueError(f"{ast.unparse(node)} is no sum, difference, product or quotient")

    return str(value(ast.parse(expression, mode="eval").body))


TOOLS: dict[Callable[..., str], dict[str, Any]] = {
    search: {"words": {"type": "string", "maxLength": 80}},
    read_file: {"name": {"type": "string", "maxLength": 80}, "first_line": {"type": "integer"}},
    calculate: {"expression": {"type": "string", "maxLength": 80}},
}


def described(tool: Callable[..., str], properties: dict[str, Any]) -> Any:
    first = next(iter(properties))
    schema = {"type": "object", "properties": properties, "required": [first]}
    function = {"name": tool.__name__, "description": tool.__doc__, "parameters": schema}
    return {"type": "function", "function": function}


def run(documents: Path, name: str, arguments: str) -> str:
    """What a tool says. Mistakes are told to the model, which may correct them."""
    try:
        tool = {each.__name__: each for each in TOOLS}[name]
        return tool(documents, **json.loads(arguments))[:MOST_CHARACTERS]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
