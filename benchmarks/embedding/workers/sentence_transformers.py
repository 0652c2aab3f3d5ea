"""sentence-transformers on PyTorch, as its documentation calls it."""

from __future__ import annotations

import numpy as np
import sentence_transformers
import torch

from benchmarks.embedding.workers.serve import BATCH, serve

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SentenceTransformers:
    def __init__(self, path: str, precision: str, threads: int) -> None:
        self.version = f"{sentence_transformers.__version__} on torch {torch.__version__}"
        torch.set_num_threads(threads)
        self._model = sentence_transformers.SentenceTransformer(
            path, device="cpu", model_kwargs={"dtype": TYPES[precision]}
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        """It sorts by length and pads each batch to its longest text."""
        found = self._model.encode(texts, batch_size=BATCH, convert_to_numpy=False)
        return torch.stack(found).float().numpy()


if __name__ == "__main__":
    serve(SentenceTransformers)
