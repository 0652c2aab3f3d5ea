"""OpenVINO GenAI: a ContinuousBatchingPipeline for each way to keep and to read, made when it is
asked for."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.long.workers.serve import Moment, Read, now, serve
from benchmarks.peers.workers.openvino import greedy

CACHE_GB = 1
STEP_TOKENS = 512


class OpenVino:
    def __init__(self, path: str, threads: int) -> None:
        self.version = genai.__version__.split("-")[0]
        self._path = path
        self._properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._settings: dict[str, Any] | None = None
        self._pipeline: Any = None
        self._requests = 0

    def prepare(self, settings: dict[str, Any]) -> bool:
        if settings == self._settings:
            return False
        self._pipeline = None
        gc.collect()
        self._pipeline = genai.ContinuousBatchingPipeline(
            self._path, scheduler(settings), "CPU", self._properties
        )
        self._settings = settings
        return True

    def read(self, prompt: list[int], new_tokens: int) -> Read:
        self._requests += 1
        ids = ov.Tensor(np.array([prompt], np.int64))
        tokens: list[int] = []
        moments: list[Moment] = []
        start = now()
        handle = self._pipeline.add_request(self._requests, ids, greedy(new_tokens))
        while handle.get_status() == genai.GenerationStatus.RUNNING:
            self._pipeline.step()
            moment = now()
            while handle.can_read():
                for output in handle.read().values():
                    tokens += map(int, output.generated_ids)
                    moments += [moment] * len(output.generated_ids)
        state = ov.Core().get_property("CPU", "KV_CACHE_PRECISION").get_type_name()
        return Read(tokens, start, moments, {"state": state})


def scheduler(settings: dict[str, Any]) -> Any:
    """Of a pipeline with `eviction` (start, recent, most, window: tokens) or `sparse` (the fields
    of SparseAttentionConfig)."""
    found = genai.SchedulerConfig()
    found.enable_prefix_caching = False
    found.cache_size = CACHE_GB
    found.max_num_seqs = 1
    found.max_num_batched_tokens = STEP_TOKENS
    found.dynamic_split_fuse = True
    if eviction := settings.get("eviction"):
        found.use_cache_eviction = True
        found.cache_eviction_config = genai.CacheEvictionConfig(
            eviction["start"],
            eviction["recent"],
            eviction["most"],
            genai.AggregationMode.NORM_SUM,
            False,
            eviction["window"],
        )
    if sparse := settings.get("sparse"):
        chosen = dict(sparse)
        found.use_sparse_attention = True
        chosen["mode"] = getattr(genai.SparseAttentionMode, chosen["mode"])
        for name, value in chosen.items():
            setattr(found.sparse_attention_config, name, value)
    return found


if __name__ == "__main__":
    serve(lambda path, precision, threads: OpenVino(path, threads))
