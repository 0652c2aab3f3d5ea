"""Ockham, through `ockham.LLM` and its streams: all streams share the engine's steps."""

from __future__ import annotations

import gc
import time
from collections import deque

import numpy as np

import ockham
from benchmarks.peers.workers.serve import (
    MAX_SEQUENCES,
    POOL_TOKENS,
    SETTLE_S,
    WARMUP,
    Arrival,
    Generated,
    Served,
    serve,
    wait_until,
)
from ockham import LLM, SamplingParams

KV_BYTES_PER_TOKEN = 2 * 22 * 4 * 64 * 2
"""Keys and values of the shared checkpoint in bf16."""


class Ockham:
    def __init__(self, path: str) -> None:
        self.version = ockham.__version__
        self._path = path
        self._drafting: LLM | None = None
        self._load(reuse=False)

    def _load(self, reuse: bool) -> None:
        self._reuse = reuse
        # The random checkpoint repeats itself as no text does.
        self._llm = self._made(reuse, speculative_config="none")

    def _made(self, reuse: bool, speculative_config: str) -> LLM:
        return LLM(
            self._path,
            skip_tokenizer_init=True,
            enable_prefix_caching=reuse,
            speculative_config=speculative_config,
            max_num_seqs=MAX_SEQUENCES,
            kv_cache_memory_bytes=POOL_TOKENS * KV_BYTES_PER_TOKEN,
        )

    def drafting(self, prompt: list[int], new_tokens: int, drafted: int) -> Generated:
        """Both engines stay loaded, so that calls with and without drafts may alternate."""
        if not drafted:
            return self.generate([prompt], new_tokens)
        if self._drafting is None:
            self._drafting = self._made(reuse=False, speculative_config="auto")
            self.drafting(WARMUP.prompt, WARMUP.new_tokens, drafted)
            time.sleep(SETTLE_S)
        start = time.perf_counter()
        stream = self._stream(prompt, new_tokens, self._drafting)
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
        end = time.perf_counter()
        return Generated([list(stream.output.outputs[0].token_ids)], start, first, end)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        self._set_reuse(False)
        start = time.perf_counter()
        streams = [self._stream(prompt, new_tokens) for prompt in prompts]
        for stream in streams:
            next(stream)
        first = time.perf_counter()
        for stream in streams:
            for _ in stream:
                pass
        end = time.perf_counter()
        tokens = [list(stream.output.outputs[0].token_ids) for stream in streams]
        return Generated(tokens, start, first, end)

    def write_logits(self, prompt: list[int], out: str) -> None:
        engine, rows = self._llm.engine, []
        engine.on_scored = lambda _, logits: rows.append(logits.copy())
        scored = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)
        try:
            self._llm.generate({"prompt_token_ids": prompt}, scored, use_tqdm=False)
        finally:
            engine.on_scored = None
        np.save(out, np.concatenate(rows))

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        self._set_reuse(False)
        return self._serve(trace, len(trace))

    def returning(self, trace: list[Arrival], at_once: int, reuse: bool) -> list[Served]:
        self._set_reuse(reuse)
        return self._serve(trace, at_once)

    def _set_reuse(self, reuse: bool) -> None:
        if reuse != self._reuse:
            del self._llm
            gc.collect()
            self._load(reuse)
            self._serve([WARMUP], 1)
            time.sleep(SETTLE_S)

    def _serve(self, trace: list[Arrival], at_once: int) -> list[Served]:
        """Requests enter between steps: one stream that runs is asked for its next token, which is
        one step for all, and then whatever has arrived meanwhile is added."""
        start = time.perf_counter()
        coming = deque(enumerate(trace))
        running = {}
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
                running[index] = self._stream(arrival.prompt, arrival.new_tokens)
            next(running[min(running)], None)
            now_s = time.perf_counter() - start
            for index, stream in list(running.items()):
                output = stream.output
                if output.outputs[0].token_ids:
                    first.setdefault(index, now_s)
                if output.finished:
                    count = len(output.outputs[0].token_ids)
                    served[index] = Served(count, begun[index], first[index], now_s)
                    del running[index]
        return [served[index] for index in range(len(trace))]

    def _stream(self, prompt: list[int], new_tokens: int, llm: LLM | None = None):
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        return (llm or self._llm).stream({"prompt_token_ids": prompt}, params)


if __name__ == "__main__":
    serve(lambda path, precision, threads: Ockham(path))
