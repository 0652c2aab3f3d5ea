"""ONNX Runtime GenAI's Generator."""

from __future__ import annotations

import json
import time

import numpy as np
import onnxruntime_genai as og

from benchmarks.peers.workers.serve import Arrival, Generated, Served, one_after_another, serve


class OnnxRuntime:
    def __init__(self, path: str, threads: int) -> None:
        self.version = og.__version__
        config = og.Config(path)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        length = len(prompts[0]) + new_tokens
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=len(prompts), max_length=length, min_length=length, do_sample=False
        )
        ids = np.array(prompts, np.int32)
        start = time.perf_counter()
        generator = og.Generator(self._model, params)
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        end = time.perf_counter()
        tokens = [
            [int(token) for token in generator.get_sequence(row)[len(prompt) :]]
            for row, prompt in enumerate(prompts)
        ]
        return Generated(tokens, start, first, end)

    def write_logits(self, prompt: list[int], out: str) -> None:
        params = og.GeneratorParams(self._model)
        params.set_search_options(batch_size=1, max_length=len(prompt) + 1, do_sample=False)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.array([prompt], np.int32))
        np.save(out, np.asarray(generator.get_output("logits"), np.float32)[0])

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        return one_after_another(self, trace)


if __name__ == "__main__":
    serve(lambda path, precision, threads: OnnxRuntime(path, threads))
