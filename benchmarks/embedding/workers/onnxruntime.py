"""ONNX Runtime on a model whose attention, GELU and norms its own optimiser has fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from benchmarks.embedding.workers.serve import padded_batches, serve


class OnnxRuntime:
    def __init__(self, path: str, precision: str, threads: int) -> None:
        self.version = ort.__version__
        self._tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(
            str(Path(path) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        encoded = [each.ids for each in self._tokenizer.encode_batch(texts)]
        found: list[np.ndarray | None] = [None] * len(texts)
        for batch in padded_batches([len(ids) for ids in encoded]):
            shape = (len(batch), len(encoded[batch[0]]))
            ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            for row, index in enumerate(batch):
                ids[row, : len(encoded[index])] = encoded[index]
                mask[row, : len(encoded[index])] = 1
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(ids),
            }
            (states,) = self._session.run(None, inputs)
            weights = mask[:, :, None].astype(np.float32)
            pooled = (states * weights).sum(1) / weights.sum(1)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            for row, index in enumerate(batch):
                found[index] = pooled[row]
        return np.stack(found)


if __name__ == "__main__":
    serve(OnnxRuntime)
