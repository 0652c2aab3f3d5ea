"""The worker's side of the protocol, and what all workers share. Standard library and NumPy only.

A worker holds one engine. It reads one JSON object a line and answers each with one line:

    {"do": "load", "path": P, "precision": "int8", "threads": 2}
        {"version": "1.2"}
    {"do": "embed", "texts": [..], "one_by_one": false, "out": P}
        {"start": T, "end": T}, and the file holds a NumPy array, float32 (texts, dimensions)

Texts are given to the engine as a user would: tokenizing them and putting them into batches is part
of its work, writing the file is not. T are moments on the clock of `time.perf_counter`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from benchmarks.peers.workers.serve import serve_answers

BATCH = 32
"""Texts that an engine which pads runs together: the default of sentence-transformers."""


class Engine(Protocol):
    """An engine with a model loaded."""

    version: str

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32 (texts, dimensions), each row of length 1."""


def serve(load: Callable[[str, str, int], Engine]) -> None:
    """Answer requests until stdin ends. `load`: path, precision and threads -> engine."""
    serve_answers(load, _answer)


def padded_batches(lengths: list[int], size: int = BATCH) -> list[list[int]]:
    """The numbers of texts by length, the longest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + size] for start in range(0, len(order), size)]


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] != "embed":
        raise ValueError(f"there is no request {request['do']!r}.")
    texts = request["texts"]
    calls = [[text] for text in texts] if request["one_by_one"] else [texts]
    start = time.perf_counter()
    found = [engine.embed(call) for call in calls]
    end = time.perf_counter()
    np.save(request["out"], np.concatenate(found).astype(np.float32))
    return {"start": start, "end": end}
