"""transformers on PyTorch, eager, in bf16."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.peers.workers.serve import Arrival, Generated, Served, one_after_another, serve


class Clock(transformers.StoppingCriteria):
    """Notes when the first token came; stops nothing."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.first = self.first or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Transformers:
    def __init__(self, path: str, threads: int) -> None:
        self.version = f"{transformers.__version__} on torch {torch.__version__}"
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        ids = torch.tensor(prompts)
        clock = Clock()
        start = time.perf_counter()
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        end = time.perf_counter()
        assert clock.first is not None, "a criterion is asked after each token"
        return Generated(output[:, ids.shape[1] :].tolist(), start, clock.first, end)

    def write_logits(self, prompt: list[int], out: str) -> None:
        found = self._model(torch.tensor([prompt])).logits
        np.save(out, found[0].float().numpy())

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        return one_after_another(self, trace)


if __name__ == "__main__":
    serve(lambda path, precision, threads: Transformers(path, threads))
