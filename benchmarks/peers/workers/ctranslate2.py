"""CTranslate2's Generator."""

from __future__ import annotations

import json
import time
from pathlib import Path

import ctranslate2
import numpy as np

from benchmarks.peers.workers.serve import Arrival, Generated, Served, one_after_another, serve


class CTranslate2:
    def __init__(self, path: str, precision: str, threads: int) -> None:
        self.version = ctranslate2.__version__
        self._generator = ctranslate2.Generator(
            path, device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
        )
        self._vocabulary = json.loads((Path(path) / "vocabulary.json").read_text())

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        texts = [[self._vocabulary[token] for token in prompt] for prompt in prompts]
        first: dict[int, float] = {}
        start = time.perf_counter()

        def note(step: ctranslate2.GenerationStepResult) -> bool:
            first.setdefault(step.batch_id, time.perf_counter())
            return False

        results = self._generator.generate_batch(
            texts,
            max_length=new_tokens,
            min_length=new_tokens,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )
        end = time.perf_counter()
        tokens = [list(result.sequences_ids[0]) for result in results]
        return Generated(tokens, start, max(first.values()), end)

    def write_logits(self, prompt: list[int], out: str) -> None:
        texts = [[self._vocabulary[token] for token in prompt]]
        found = self._generator.forward_batch(texts, return_log_probs=False)
        np.save(out, np.asarray(found.to(ctranslate2.DataType.float32))[0])

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        return one_after_another(self, trace)


if __name__ == "__main__":
    serve(CTranslate2)
