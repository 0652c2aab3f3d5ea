"""OpenVINO GenAI: LLMPipeline for static batches, ContinuousBatchingPipeline for mixed traffic.

One of the two is loaded at a time; changing over happens before a call's time starts.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.peers.workers.serve import (
    MAX_SEQUENCES,
    SETTLE_S,
    WARMUP,
    Arrival,
    Generated,
    Served,
    serve,
    wait_until,
)

CACHE_GB = 1
STEP_TOKENS = 512
LONGEST_MATCH = 3
"""Tokens that prompt lookup looks for; as in OpenVINO GenAI's own sample."""


class OpenVino:
    def __init__(self, path: str, threads: int) -> None:
        self.version = genai.__version__.split("-")[0]
        self._path = path
        self._properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline: Any = None
        self._lookup: Any = None
        self._reuse = False
        self._static()

    def _static(self) -> Any:
        if not isinstance(self._pipeline, genai.LLMPipeline):
            self._pipeline = None
            self._pipeline = genai.LLMPipeline(
                self._path, "CPU", ATTENTION_BACKEND="SDPA", **self._properties
            )
        return self._pipeline

    def _continuous(self, reuse: bool) -> Any:
        if not isinstance(self._pipeline, genai.ContinuousBatchingPipeline) or (
            reuse != self._reuse
        ):
            self._pipeline, self._reuse = None, reuse
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = reuse
            scheduler.cache_size = CACHE_GB
            scheduler.max_num_seqs = MAX_SEQUENCES
            scheduler.max_num_batched_tokens = STEP_TOKENS
            scheduler.dynamic_split_fuse = True
            self._pipeline = genai.ContinuousBatchingPipeline(
                self._path, scheduler, "CPU", self._properties
            )
            self._serve([WARMUP], 1)
            time.sleep(SETTLE_S)
        return self._pipeline

    def drafting(self, prompt: list[int], new_tokens: int, drafted: int) -> Generated:
        """Both pipelines stay loaded, so that calls with and without drafts may alternate."""
        if not drafted:
            return self.generate([prompt], new_tokens)
        if self._lookup is None:
            self._lookup = genai.LLMPipeline(
                self._path, "CPU", prompt_lookup=True, **self._properties
            )
            self.drafting(WARMUP.prompt, WARMUP.new_tokens, drafted)
            time.sleep(SETTLE_S)
        config = greedy(new_tokens)
        config.num_assistant_tokens, config.max_ngram_size = drafted, LONGEST_MATCH
        return self._run(self._lookup, [prompt], config)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        return self._run(self._static(), prompts, greedy(new_tokens))

    @staticmethod
    def _run(pipeline: Any, prompts: list[list[int]], config: Any) -> Generated:
        ids = np.array(prompts, np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = pipeline.generate(inputs, config)
        end = time.perf_counter()
        first = min(end, start + result.perf_metrics.get_ttft().mean / 1e3)
        return Generated([list(map(int, row)) for row in result.tokens], start, first, end)

    def write_logits(self, prompt: list[int], out: str) -> None:
        """The pipelines show no logits, so the compiled model itself is asked."""
        model = ov.Core().compile_model(f"{self._path}/openvino_model.xml", "CPU", self._properties)
        count = len(prompt)
        values = {
            "input_ids": np.array([prompt], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for each in model.inputs for name in each.names}
        found = model.create_infer_request().infer({n: v for n, v in values.items() if n in names})
        np.save(out, np.asarray(found["logits"][0], np.float32))

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        self._continuous(reuse=False)
        return self._serve(trace, len(trace))

    def returning(self, trace: list[Arrival], at_once: int, reuse: bool) -> list[Served]:
        self._continuous(reuse)
        return self._serve(trace, at_once)

    def _serve(self, trace: list[Arrival], at_once: int) -> list[Served]:
        pipeline = self._pipeline
        start = time.perf_counter()
        coming = deque(enumerate(trace))
        running: dict[int, Any] = {}
        counts: dict[int, int] = {}
        begun: dict[int, float] = {}
        first: dict[int, float] = {}
        served: dict[int, Served] = {}
        while coming or running:
            now_s = time.perf_counter() - start
            if not running:
                now_s = wait_until(start, coming[0][1].arrival_s)
            while coming and len(running) < at_once and coming[0][1].arrival_s <= now_s:
                index, arrival = coming.popleft()
                begun[index] = time.perf_counter() - start
                ids = ov.Tensor(np.array([arrival.prompt], np.int64))
                running[index] = pipeline.add_request(index, ids, greedy(arrival.new_tokens))
            pipeline.step()
            now_s = time.perf_counter() - start
            for index, handle in list(running.items()):
                while handle.can_read():
                    for output in handle.read().values():
                        counts[index] = counts.get(index, 0) + len(output.generated_ids)
                        first.setdefault(index, now_s)
                if handle.get_status() == genai.GenerationStatus.FINISHED:
                    served[index] = Served(counts[index], begun[index], first[index], now_s)
                    del running[index]
        return [served[index] for index in range(len(trace))]


def greedy(new_tokens: int) -> Any:
    """Exactly so many tokens, the likeliest each time."""
    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    return config


if __name__ == "__main__":
    serve(lambda path, precision, threads: OpenVino(path, threads))
