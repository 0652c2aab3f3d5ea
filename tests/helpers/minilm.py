"""The real model of embeddings, and what sentence-transformers says of it.

`python -m benchmarks.embedding reference` writes the file.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.embedding.engines import PACKAGE, NoModel, packaged_model


def find_minilm() -> Path:
    """The directory of all-MiniLM-L6-v2; skips the test where it is not installed."""
    try:
        return packaged_model()
    except NoModel:
        pytest.skip(f"{PACKAGE[1]} is not installed")


@cache
def reference() -> dict[str, Any]:
    """`sentences`, the `tokens` of each, their `embeddings` (sentences, 384), and the `ranking` of
    all but `query` by their cosine to it, best first, with the `cosines` of all."""
    path = Path(__file__).with_name("minilm_reference.json")
    return dict(json.loads(path.read_text("utf-8")))
