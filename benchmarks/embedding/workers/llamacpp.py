"""llama.cpp's embeddings, through llama-cpp-python's bindings of its C interface."""

from __future__ import annotations

import subprocess
import sys

import llama_cpp as ll
import numpy as np

from benchmarks.embedding.workers.serve import serve

BATCH_TOKENS = 512
"""llama.cpp's own default. Sequences of a batch share one attention, whose mask grows with its
square, so that larger batches are slower."""
MAX_SEQUENCES = 64


TRIAL = "--trial"


class LlamaCpp:
    def __init__(self, path: str, precision: str, threads: int, repacks: bool = True) -> None:
        """`repacks`: whether it may lay out weights anew for the processor (its default)."""
        self.version = ll.__version__ + ("" if repacks else ", which crashes here if it repacks")
        ll.llama_backend_init()
        settings = ll.llama_model_default_params()
        settings.use_extra_bufts = repacks
        model = ll.llama_model_load_from_file(path.encode(), settings)
        if not model:
            raise RuntimeError(f"{path} could not be loaded.")
        self._vocabulary = ll.llama_model_get_vocab(model)
        self._dimensions = ll.llama_model_n_embd(model)
        params = ll.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.kv_unified = True
        self._context = ll.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"no context of {BATCH_TOKENS} tokens could be made.")
        self._batch = ll.llama_batch_init(BATCH_TOKENS, 0, 1)

    def embed(self, texts: list[str]) -> np.ndarray:
        found = np.empty((len(texts), self._dimensions), np.float32)
        waiting: list[int] = []
        for index, text in enumerate(texts):
            tokens = self._tokens(text)
            if len(waiting) == MAX_SEQUENCES or self._batch.n_tokens + len(tokens) > BATCH_TOKENS:
                self._run(waiting, found)
                waiting = []
            for position, token in enumerate(tokens):
                self._add(token, position, len(waiting))
            waiting.append(index)
        self._run(waiting, found)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def _tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = (ll.llama_token * BATCH_TOKENS)()
        count = ll.llama_tokenize(self._vocabulary, data, len(data), room, BATCH_TOKENS, True, True)
        if count < 0:
            raise ValueError(f"a text has {-count} tokens, more than {BATCH_TOKENS}.")
        return room[:count]

    def _add(self, token: int, position: int, sequence: int) -> None:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = True
        batch.n_tokens = index + 1

    def _run(self, indices: list[int], found: np.ndarray) -> None:
        """Embed the texts that wait in the batch, by their numbers."""
        status = ll.llama_encode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_encode returned {status}.")
        self._batch.n_tokens = 0
        for sequence, index in enumerate(indices):
            values = ll.llama_get_embeddings_seq(self._context, sequence)
            found[index] = np.ctypeslib.as_array(values, (self._dimensions,))


def load(path: str, precision: str, threads: int) -> LlamaCpp:
    """With its weights repacked, unless that ends a process that tries it: 0.3.36 does so for bert
    in Q8_0 where the processor has AMX."""
    command = [sys.executable, "-m", "benchmarks.embedding.workers.llamacpp", TRIAL, path]
    repacks = subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0
    return LlamaCpp(path, precision, threads, repacks)


if __name__ == "__main__":
    if sys.argv[1:2] == [TRIAL]:
        LlamaCpp(sys.argv[2], "", 1).embed(["A trial."] * 4)
    else:
        serve(load)
