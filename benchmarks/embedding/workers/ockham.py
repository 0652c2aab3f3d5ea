"""Ockham, through `ockham.LLM`."""

from __future__ import annotations

import numpy as np

import ockham
from benchmarks.embedding.workers.serve import serve
from ockham import LLM


class Ockham:
    def __init__(self, path: str, precision: str, threads: int) -> None:
        self.version = ockham.__version__
        # A text that came before would be answered from memory.
        self._llm = LLM(
            path, quantization=precision, threads=threads, reuse="none", weight_cache="off"
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        outputs = self._llm.embed(texts, use_tqdm=False)
        return np.stack([each.outputs.embedding for each in outputs])


if __name__ == "__main__":
    serve(Ockham)
