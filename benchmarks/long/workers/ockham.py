"""Ockham, through `ockham.LLM`: one engine for each type of keys and values, requests ask for the
rest."""

from __future__ import annotations

import gc
from typing import Any

import msgspec

import ockham
from benchmarks.long.configurations import STEP_TOKENS
from benchmarks.long.workers.serve import Moment, Read, now, serve
from ockham import LLM, SamplingParams

POOL_BYTES = 1 << 30


class Ockham:
    def __init__(self, path: str, threads: int) -> None:
        self.version = ockham.__version__
        self._path, self._threads = path, threads
        self._llm: LLM | None = None
        self._state = ""
        self._asks: dict[str, Any] = {}

    def prepare(self, settings: dict[str, Any]) -> bool:
        self._asks = settings.get("asks", {})
        if settings["state"] == self._state:
            return False
        self._llm = None
        gc.collect()
        self._state = settings["state"]
        self._llm = LLM(
            self._path,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            speculative_config="none",
            max_num_seqs=1,
            max_num_batched_tokens=STEP_TOKENS,
            kv_cache_dtype="auto" if self._state == "bfloat16" else self._state,
            kv_cache_memory_bytes=POOL_BYTES,
            threads=self._threads,
        )
        return True

    def read(self, prompt: list[int], new_tokens: int) -> Read:
        params = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, **self._asks
        )
        start = now()
        stream = self._llm.stream({"prompt_token_ids": prompt}, params)
        moments: list[Moment] = []
        for _ in stream:
            moment = now()
            more = len(stream.output.outputs[0].token_ids) - len(moments)
            moments += [moment] * more
        told = {"state": self._state, "ledger": msgspec.to_builtins(stream.output.ledger)}
        return Read(list(stream.output.outputs[0].token_ids), start, moments, told)


if __name__ == "__main__":
    serve(lambda path, precision, threads: Ockham(path, threads))
