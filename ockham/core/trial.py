"""Runs a program that a model wrote, and says how it behaves: `python trial.py < TRIAL`.

Run as a file by `engine.programs`, within the limits of `confine.py`; it imports the standard
library only. TRIAL is a JSON object of `program` and `calls`. The program is run once; then each
call is evaluated, in order. The last line of the output is a JSON object: `outputs`, a text for
each call, or `failed`, why there are none. Without calls the only output is what the program
prints.

Before the program begins, this process gives up all that it does not need to compute
(`confine.compute_only`): a program can open no file. It has the modules of the standard library
that stand in `MODULES`.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import io
import json
import random
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

MODULES = (
    *("abc", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "datetime"),
    *("dataclasses", "decimal", "enum", "fractions", "functools", "heapq", "itertools", "json"),
    *("math", "numbers", "operator", "random", "re", "statistics", "string", "textwrap", "time"),
    *("typing", "unicodedata"),
)
MOST_PRINTED = 1 << 16
MOST_OUTPUT = 500
"""Characters of an output that is told whole; of a longer one the beginning and a hash are."""
_DEEPEST, _DIGITS, _MOST_ITEMS = 12, 12, 100_000
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class _Printed(io.StringIO):
    """What a program prints, up to a limit."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > MOST_PRINTED:
            raise MemoryError(f"more than {MOST_PRINTED} characters were printed")
        return super().write(text)


def main() -> None:
    trial = json.load(sys.stdin)
    program, calls = trial["program"], trial["calls"]
    said = "\n".join([program, *calls])
    for name in MODULES:  # while files can be opened still
        if re.search(rf"\b{name.partition('.')[0]}\b", said):
            importlib.import_module(name)
    _confinement().compute_only()
    random.seed(0)
    told = sys.stdout
    found = _behaviour(program, calls)
    told.write("\n" + json.dumps(found) + "\n")
    told.flush()


def _behaviour(program: str, calls: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    printed = _Printed()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        try:
            exec(compile(program, "program", "exec", dont_inherit=True), names)
        except BaseException as error:
            return {"failed": _kind(error)}
        if not calls:
            text = printed.getvalue().strip()
            return {"outputs": [_short(text)]} if text else {"failed": "it printed nothing"}
        outputs = [_output(call, names) for call in calls]
    raised = [kind for output, kind in outputs if kind is not None]
    if len(raised) == len(outputs):
        return {"failed": raised[0]}
    return {"outputs": [output for output, _ in outputs]}


def _output(call: str, names: dict[str, Any]) -> tuple[str, str | None]:
    """What a call returns, or prints if it returns nothing; and what it raises, if it does."""
    printed = _Printed()
    with redirect_stdout(printed):
        try:
            value = eval(compile(call, "call", "eval", dont_inherit=True), names)
            text = printed.getvalue().strip()
            return _short(text if value is None and text else shown(value)), None
        except BaseException as error:
            kind = _kind(error)
            return f"raises {kind}", kind


def shown(value: Any, depth: int = 0) -> str:
    """A value as text that is the same for equal values: floats to 12 digits, sets and dictionaries
    in order, and no addresses."""
    if depth > _DEEPEST:
        raise ValueError("an output is nested too deeply")
    kind = type(value)
    if kind is float and value - value == 0.0 and value == int(value):
        return str(int(value))  # 2.0 and 2 are equal
    if kind in (float, complex):
        return format(value, f".{_DIGITS}g")
    if kind in (list, tuple, set, frozenset, dict) and len(value) > _MOST_ITEMS:
        raise ValueError("an output has too many items")
    if kind in (list, tuple):
        inner = ", ".join(shown(each, depth + 1) for each in value)
        return f"[{inner}]" if kind is list else f"({inner})"
    if kind in (set, frozenset):
        return "{" + ", ".join(sorted(shown(each, depth + 1) for each in value)) + "}"
    if kind is dict:
        pairs = (f"{shown(k, depth + 1)}: {shown(v, depth + 1)}" for k, v in value.items())
        return "{" + ", ".join(sorted(pairs)) + "}"
    return _ADDRESS.sub("", repr(value))


def _short(text: str) -> str:
    if len(text) <= MOST_OUTPUT:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    return f"{text[:MOST_OUTPUT]}... ({len(text)} characters, {digest})"


def _kind(error: BaseException) -> str:
    return type(error).__name__[:60]


def _confinement() -> Any:
    """`confine.py`, which lies beside this file: its directory is not where modules are found."""
    path = Path(__file__).with_name("confine.py")
    spec = importlib.util.spec_from_file_location("confine", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
