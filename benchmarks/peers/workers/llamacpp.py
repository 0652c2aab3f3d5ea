"""llama.cpp through llama-cpp-python's bindings of its C interface.

Each call gets a context of the size that it needs, made before its time starts. Mixed traffic is
served the way its own server does it: every batch holds one token of each running sequence and
fills up with the prompts that have come.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import llama_cpp as ll
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from benchmarks.peers.workers.serve import (
    MAX_SEQUENCES,
    Arrival,
    Generated,
    Served,
    serve,
    wait_until,
)
from benchmarks.peers.workers.slots import SLOTS, Slots

BATCH_TOKENS = 2048
LOGITS_TOKENS = 256
"""Whose logits are held at a time."""
MIXED_BATCH_TOKENS = 512
"""With a long batch those that already run would wait for all of a prompt."""


class Context:
    """A llama_context and the batch that is put together for it."""

    def __init__(self, model: int, threads: int, sequences: int, tokens_each: int) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx = sequences * (-(-tokens_each // 256) * 256)
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self._vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        self._context = ll.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"no context of {params.n_ctx} tokens could be made.")
        self._batch = ll.llama_batch_init(BATCH_TOKENS, 0, 1)

    def close(self) -> None:
        ll.llama_batch_free(self._batch)
        ll.llama_free(self._context)

    def add(self, token: int, position: int, sequence: int, wants_logits: bool) -> int:
        """Put a token into the batch; returns its index there."""
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = wants_logits
        batch.n_tokens = index + 1
        return index

    @property
    def room(self) -> int:
        return BATCH_TOKENS - self._batch.n_tokens

    @property
    def used(self) -> int:
        return int(self._batch.n_tokens)

    def run(self, indices: list[int]) -> list[int]:
        """Run the batch; the most likely next token after each index."""
        status = ll.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}.")
        self._batch.n_tokens = 0
        return [self._best(index) for index in indices]

    def logits(self, index: int) -> np.ndarray:
        """A copy of the logits at an index of the batch that ran last."""
        found = ll.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(found, (self._vocabulary,)).copy()

    def forget(self, sequence: int, from_position: int) -> None:
        """Drop the keys and values of a sequence from a position on."""
        ll.llama_memory_seq_rm(ll.llama_get_memory(self._context), sequence, from_position, -1)

    def _best(self, index: int) -> int:
        logits = ll.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


@dataclass
class Running:
    """A request of mixed traffic that has a place."""

    arrival: Arrival
    index: int
    begun_s: float
    prompt_done: int = 0
    given: list[int] = field(default_factory=list)
    first_s: float = 0.0


class LlamaCpp:
    def __init__(self, path: str, threads: int) -> None:
        self.version = ll.__version__
        self._threads = threads
        ll.llama_backend_init()
        self._model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path} could not be loaded.")

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        context = self._context(len(prompts), len(prompts[0]) + new_tokens)
        try:
            return self._generate(context, prompts, new_tokens)
        finally:
            context.close()

    @staticmethod
    def _generate(context: Context, prompts: list[list[int]], new_tokens: int) -> Generated:
        start = time.perf_counter()
        tokens: list[list[int]] = [[] for _ in prompts]
        waiting: dict[int, int] = {}  # sequence -> its last token's index in the batch

        def flush() -> None:
            for sequence, token in zip(waiting, context.run(list(waiting.values())), strict=True):
                tokens[sequence].append(token)
            waiting.clear()

        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                if not context.room:
                    flush()
                last = position == len(prompt) - 1
                index = context.add(token, position, sequence, last)
                if last:
                    waiting[sequence] = index
        flush()
        first = time.perf_counter()
        for step in range(new_tokens - 1):
            for sequence, prompt in enumerate(prompts):
                place = len(prompt) + step
                waiting[sequence] = context.add(tokens[sequence][-1], place, sequence, True)
            flush()
        return Generated(tokens, start, first, time.perf_counter())

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        return self._serve(trace, min(MAX_SEQUENCES, len(trace)), MAX_SEQUENCES, reuse=False)

    def returning(self, trace: list[Arrival], at_once: int, reuse: bool) -> list[Served]:
        return self._serve(trace, max(at_once, SLOTS), at_once, reuse)

    def drafting(self, prompt: list[int], new_tokens: int, drafted: int) -> Generated:
        context = self._context(1, len(prompt) + new_tokens + drafted)
        try:
            return self._drafting(context, prompt, new_tokens, drafted)
        finally:
            context.close()

    @staticmethod
    def _drafting(context: Context, prompt: list[int], new_tokens: int, drafted: int) -> Generated:
        """One row for the last token and each drafted one; what was not said is dropped."""
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=drafted)
        start = time.perf_counter()
        text = list(prompt)
        for position, token in enumerate(prompt):
            if not context.room:
                context.run([])
            index = context.add(token, position, 0, position == len(prompt) - 1)
        text += context.run([index])
        first = time.perf_counter()
        while (left := len(prompt) + new_tokens - len(text)) > 0:
            draft = lookup(np.array(text, np.intc))[: left - 1].tolist() if drafted else []
            place = len(text) - 1
            rows = [text[-1], *draft]
            found = context.run(
                [context.add(token, place + at, 0, True) for at, token in enumerate(rows)]
            )
            right = 0
            while right < len(draft) and draft[right] == found[right]:
                right += 1
            text += found[: right + 1]
            if right < len(draft):
                context.forget(0, len(text) - 1)
        return Generated([text[len(prompt) :]], start, first, time.perf_counter())

    def write_logits(self, prompt: list[int], out: str) -> None:
        context = self._context(1, len(prompt))
        rows: list[np.ndarray] = []
        try:
            for start in range(0, len(prompt), LOGITS_TOKENS):
                part = prompt[start : start + LOGITS_TOKENS]
                indices = [context.add(token, start + i, 0, True) for i, token in enumerate(part)]
                context.run([])
                rows += [context.logits(index) for index in indices]
        finally:
            context.close()
        np.save(out, np.stack(rows))

    def _serve(self, trace: list[Arrival], slots: int, at_once: int, reuse: bool) -> list[Served]:
        longest = max(len(each.prompt) + each.new_tokens for each in trace)
        context = self._context(slots, longest)
        try:
            return self._served(context, trace, Slots(slots, reuse, context.forget), at_once)
        finally:
            context.close()

    @staticmethod
    def _served(context: Context, trace: list[Arrival], slots: Slots, at_once: int) -> list[Served]:
        start = time.perf_counter()
        coming = deque(enumerate(trace))
        running: dict[int, Running] = {}  # sequence -> request
        served: dict[int, Served] = {}
        while coming or running:
            now_s = time.perf_counter() - start
            if not running:
                now_s = wait_until(start, coming[0][1].arrival_s)
            while coming and len(running) < at_once and coming[0][1].arrival_s <= now_s:
                index, arrival = coming.popleft()
                begun_s = time.perf_counter() - start
                sequence, common = slots.take(arrival.prompt)
                running[sequence] = Running(arrival, index, begun_s, common)
            wanted = _fill(context, running)
            found = context.run(list(wanted.values()))
            now_s = time.perf_counter() - start
            for sequence, token in zip(wanted, found, strict=True):
                request = running[sequence]
                request.given.append(token)
                request.first_s = request.first_s or now_s
                count = len(request.given)
                if count == request.arrival.new_tokens:
                    served[request.index] = Served(count, request.begun_s, request.first_s, now_s)
                    slots.give_back(sequence, request.arrival.prompt + request.given[:-1])
                    del running[sequence]
        return [served[index] for index in range(len(trace))]

    def _context(self, sequences: int, tokens_each: int) -> Context:
        return Context(self._model, self._threads, sequences, tokens_each)


def _fill(context: Context, running: dict[int, Running]) -> dict[int, int]:
    """The next batch: sequence -> index of the token whose successor is wanted."""
    wanted = {}
    for sequence, request in running.items():
        if request.given:
            position = len(request.arrival.prompt) + len(request.given) - 1
            wanted[sequence] = context.add(request.given[-1], position, sequence, True)
    for sequence, request in running.items():
        prompt = request.arrival.prompt
        while request.prompt_done < len(prompt) and context.used < MIXED_BATCH_TOKENS:
            position = request.prompt_done
            request.prompt_done += 1
            last = request.prompt_done == len(prompt)
            index = context.add(prompt[position], position, sequence, last)
            if last:
                wanted[sequence] = index
    return wanted


if __name__ == "__main__":
    serve(lambda path, precision, threads: LlamaCpp(path, threads))
