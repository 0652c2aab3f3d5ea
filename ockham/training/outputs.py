"""What the target itself writes, by Ockham's own engine: what drafters are trained and measured on.

A drafter has to know what its target would say, not what people say; so it learns from the target's
own texts (FastDraft, arXiv:2411.11055, paper 238).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.owned_files import replacing
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.running import drive
from ockham.training.documents import Piece, Pieces

Tokens = npt.NDArray[np.int32]

LONGEST_ANSWER = 256
LEAST_PROMPT = 16
HELD_OUT_PROMPTS = 64
HELD_OUT_ANSWER = 96
AT_ONCE = 64
"""Prompts that are given to the engine together; fewer towards the end."""
_LEAST_AT_ONCE = 8
KEPT_S = 60.0
_TRAIN, _TOKENS, _SIZES = "/train", "/tokens", "/sizes"


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt's tokens, of which there are `prompt`, with the target's own after them."""

    tokens: list[int]
    prompt: int


@dataclass(frozen=True, slots=True)
class Outputs:
    """`train`: texts of the target after prompts of the training data, sampled and greedy in turn.
    `held_out`: greedy ones after prompts that training never reads, by the name of their file."""

    train: list[Written]
    held_out: dict[str, list[Written]]

    def save(self, path: Path) -> None:
        """Keep them in a file, which is whole or not there."""
        arrays: dict[str, Any] = {}
        for name, texts in {_TRAIN: self.train, **self.held_out}.items():
            tokens = [token for text in texts for token in text.tokens]
            arrays[f"{name}{_TOKENS}"] = np.array(tokens, np.int32)
            sizes = [(len(text.tokens), text.prompt) for text in texts]
            arrays[f"{name}{_SIZES}"] = np.array(sizes, np.int32).reshape(-1, 2)
        with replacing(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Outputs:
        with np.load(path) as stored:
            names = [name.removesuffix(_SIZES) for name in stored if name.endswith(_SIZES)]
            texts = {
                name: _texts(stored[f"{name}{_TOKENS}"], stored[f"{name}{_SIZES}"])
                for name in names
            }
        return cls(texts.pop(_TRAIN), texts)


def write_outputs(
    model: Path,
    pieces: Pieces,
    tokens: int,
    context: int,
    seed: int,
    path: Path,
    tell: Callable[[str], None],
) -> Outputs:
    """Let the target write at least `tokens` tokens in texts of at most `context`, prompt included,
    every second one greedily and the others at temperature 1; and held-out ones, greedily.

    They are kept in `path` while they come, and what stands there is not written again."""
    done = Outputs.load(path) if path.exists() else Outputs([], {})
    if done.held_out:
        return done
    engine = Engine(EngineConfig(model=str(model), skip_tokenizer_init=True, max_model_len=context))
    try:
        train, kept = done.train, time.monotonic()
        longest = min(LONGEST_ANSWER, context // 2)
        written = _answered_tokens(train)
        while written < tokens:
            rng = Random(f"outputs {seed} {len(train)}")
            count = min(AT_ONCE, max(_LEAST_AT_ONCE, (tokens - written) // longest))
            prompts = _prompts(pieces.train, count, context - longest, rng)
            texts = _write(engine, prompts, longest, len(train), greedy=2)
            train += texts
            written += _answered_tokens(texts)
            tell(f"the target has written {written:,} of {tokens:,} tokens")
            if time.monotonic() - kept > KEPT_S:
                done.save(path)
                kept = time.monotonic()
        longest = min(HELD_OUT_ANSWER, context // 2)
        for name, texts_of_file in pieces.held_out.items():
            rng = Random(f"held-out {seed} {name}")
            asked = _prompts(texts_of_file, HELD_OUT_PROMPTS, context - longest, rng)
            done.held_out[name] = _write(engine, asked, longest, 0, greedy=1)
        done.save(path)
        return done
    finally:
        engine.close()


def _answered_tokens(texts: Sequence[Written]) -> int:
    return sum(len(text.tokens) - text.prompt for text in texts)


def _write(
    engine: Engine, prompts: Sequence[Sequence[int]], longest: int, first: int, greedy: int
) -> list[Written]:
    """One text after each prompt, of which the first has the number `first`; every `greedy`-th is
    not sampled."""
    answers: dict[str, list[int]] = {}
    requests = [
        Request(
            request_id=str(number),
            prompt_token_ids=list(prompt),
            params=SamplingParams(
                temperature=float(number % greedy != 0), max_tokens=longest, seed=number
            ),
            detokenize=False,
        )
        for number, prompt in enumerate(prompts, first)
    ]

    def done(output: RequestOutput) -> None:
        answers[output.request_id] = output.outputs[0].token_ids

    drive(engine, requests, done)
    return [
        Written([*each.prompt_token_ids, *answers[each.request_id]], len(each.prompt_token_ids))
        for each in requests
    ]


def _prompts(pieces: Sequence[Piece], count: int, longest: int, rng: Random) -> list[list[int]]:
    """Questions as they are, and beginnings, of various lengths, of parts of texts. The first token
    of a text comes along: it may be one with which every text begins.

    Raises ConfigError if no piece can be one.
    """
    usable = [p for p in pieces if p.prompt <= longest and (p.prompt or len(p.tokens) > 1)]
    if not usable:
        raise ConfigError(f"no text of the data gives a prompt of at most {longest} tokens.")
    prompts: list[list[int]] = []
    while len(prompts) < count:
        piece = rng.choice(usable)
        if piece.prompt:
            prompts.append(list(piece.tokens[: piece.prompt]))
            continue
        most = min(longest, len(piece.tokens) - 1)
        length = rng.randint(min(LEAST_PROMPT, most), most)
        start = rng.randrange(len(piece.tokens) - length)
        prompts.append([piece.tokens[0], *piece.tokens[start + 1 : start + length]])
    return prompts


def _texts(tokens: Tokens, sizes: npt.NDArray[np.int32]) -> list[Written]:
    ends = np.cumsum(sizes[:, 0])
    return [
        Written(tokens[end - length : end].tolist(), int(prompt))
        for end, (length, prompt) in zip(ends, sizes, strict=True)
    ]
