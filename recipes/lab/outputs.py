"""What the lab model writes: continuations of windows of the corpus, and answers to exercises.

They are written by Ockham's own engine and kept in a file. The same weights, corpus and seed give
the same tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ockham import LLM, SamplingParams
from ockham.lab.tasks import TASKS
from recipes.lab.data import Streams, Tokens
from recipes.lab.tokenizer import END_OF_TEXT

_CONTINUED = ("code", "code", "code", "prose", "chat")
"""The sources of consecutive windows."""
_ASKED = ("recall", "documents", "edit", "steps", "chat")
_LONGEST_PROMPT = 512
_LEAST_BEFORE, _MOST_BEFORE = 32, 256


@dataclass(frozen=True)
class Amounts:
    """How many texts are written in each way, and how long."""

    sampled: int = 800
    greedy: int = 160
    answers: int = 1600
    tokens: int = 320
    """Of a continuation, at most."""


def write_outputs(
    model: Path, streams: Streams, tokenizer: Tokenizer, seed: int, cache: Path, amounts: Amounts
) -> dict[str, Tokens]:
    """For each of `OUTPUTS` a stream of texts, each a prompt with what the model wrote after it and
    the end-of-text token. They are read from ``cache`` where they were written before."""
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    facts = f"{weights} {streams.corpus_sha256} {seed} {amounts}"
    path = cache / f"outputs-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        arrays: dict[str, Any] = _written(model, streams, tokenizer, seed, amounts)
        np.savez(partial, **arrays)
        os.replace(partial, path)
    with np.load(path) as stored:
        return dict(stored)


def continuations(
    llm: LLM, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams] | SamplingParams
) -> list[list[int]]:
    """Prompts with what the model writes after each."""
    outputs = llm.generate([list(prompt) for prompt in prompts], params, use_tqdm=False)
    return [
        [*prompt, *out.outputs[0].token_ids] for prompt, out in zip(prompts, outputs, strict=True)
    ]


def _written(
    model: Path, streams: Streams, tokenizer: Tokenizer, seed: int, amounts: Amounts
) -> dict[str, Tokens]:
    llm = LLM(str(model), max_num_batched_tokens=2048, kv_cache_memory_bytes=1 << 30)
    rng = Random(f"outputs {seed}")
    greedy = SamplingParams(temperature=0.0, max_tokens=amounts.tokens)
    sampled = [
        SamplingParams(temperature=1.0, seed=seed + number, max_tokens=amounts.tokens)
        for number in range(amounts.sampled)
    ]
    end: Any = tokenizer.token_to_id(END_OF_TEXT)
    texts = {
        "sampled": continuations(llm, _windows(streams, amounts.sampled, rng), sampled),
        "greedy": continuations(llm, _windows(streams, amounts.greedy, rng), greedy),
        "answers": continuations(llm, _questions(tokenizer, amounts.answers, rng), greedy),
    }
    return {
        name: np.array([token for text in each for token in [*text, end]], np.uint16)
        for name, each in texts.items()
    }


def _windows(streams: Streams, number: int, rng: Random) -> list[list[int]]:
    """Beginnings, of various lengths, of windows of the training text."""
    windows = []
    for i in range(number):
        stream = streams.train[_CONTINUED[i % len(_CONTINUED)]]
        length = rng.randrange(_LEAST_BEFORE, _MOST_BEFORE)
        start = rng.randrange(len(stream) - length)
        windows.append(stream[start : start + length].tolist())
    return windows


def _questions(tokenizer: Tokenizer, number: int, rng: Random) -> list[list[int]]:
    """Prompts of exercises of the train split, rendered as the chat template does."""
    questions: list[list[int]] = []
    while len(questions) < number:
        task = TASKS[_ASKED[len(questions) % len(_ASKED)]]
        item = task.item(rng.randrange(1 << 30), rng.randrange(1 << 30), "train")
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in item.messages]
        ids = tokenizer.encode("".join([*turns, "<|im_start|>assistant\n"])).ids
        if len(ids) <= _LONGEST_PROMPT:
            questions.append(ids)
    return questions
