"""Perplexity on held-out text, and the share of exercises that are answered rightly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from ockham.lab.tasks import items
from recipes.lab.data import Tokens
from recipes.lab.model import LabModel

_TOKENS_AT_ONCE = 4096
_TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"


@dataclass(frozen=True)
class Score:
    """How well a stream was predicted."""

    nats: float
    tokens: int
    targets: Tokens

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood of a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.nats_per_token)

    def bits_per_byte(self, tokenizer: Tokenizer) -> float:
        """Bits per byte of the predicted text; an end of text counts as a token of no bytes."""
        lengths = token_byte_lengths(tokenizer)
        return self.nats / math.log(2) / int(lengths[self.targets].sum())


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each token id the number of bytes that it stands for; special tokens have none."""
    special = tokenizer.get_added_tokens_decoder()
    return np.array(
        [
            0 if i in special else len(tokenizer.id_to_token(i) or "")  # a character for each byte
            for i in range(tokenizer.get_vocab_size())
        ]
    )


@torch.no_grad()
def evaluate(
    model: LabModel,
    stream: Tokens,
    context: int,
    *,
    bfloat16: bool = False,
    most_windows: int | None = None,
) -> Score:
    """Score disjoint windows: of each, ``context`` tokens are predicted, from those before them."""
    windows = (len(stream) - 1) // context
    if windows < 1:
        raise ValueError(f"The stream has {len(stream)} tokens, too few for a window of {context}.")
    starts = np.arange(windows)[:most_windows] * context
    rows = np.stack([stream[start : start + context + 1] for start in starts])
    nats = 0.0
    device = next(model.parameters()).device
    ids = torch.from_numpy(rows.astype(np.int64)).to(device)
    for part in torch.split(ids, max(1, _TOKENS_AT_ONCE // context)):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(part[:, :-1])
        nats += F.cross_entropy(
            logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"
        ).item()
    targets = rows[:, 1:].flatten()
    return Score(nats, len(targets), targets)


@torch.no_grad()
def share_right(
    model: LabModel,
    tokenizer: Tokenizer,
    task: str,
    level: str,
    *,
    number: int,
    bfloat16: bool = False,
) -> float:
    """The share of so many test items of a task's level whose answer, with the end of its turn, is
    at each of its tokens what the model holds likeliest: what greedy decoding gives, in one
    pass."""
    device, right = next(model.parameters()).device, 0
    for item in items(task, 0, number, "test", level, lambda text: len(tokenizer.encode(text).ids)):
        asked = "".join(_TURN.format(**message) for message in item.messages)
        prompt = tokenizer.encode(f"{asked}<|im_start|>assistant\n").ids
        answer = tokenizer.encode(f"{item.answer}<|im_end|>").ids
        ids = torch.tensor([[*prompt, *answer]], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            hidden = model.hidden(ids[:, :-1])[0, len(prompt) - 1 :]
            likeliest = model.head(hidden).argmax(-1)
        right += int(torch.equal(likeliest, ids[0, len(prompt) :]))
    return right / number
